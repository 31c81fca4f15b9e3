"""Work-precision of ``kadam.integrate`` against general solvers: gradient evaluations for a given error.

    PYTHONPATH=. python benchmarks/integrators.py [--quick] [--out results/benchmarks]

The second-order form with matched memory is solved by kadam, by scipy's DOP853, Radau and LSODA, and by torchdiffeq's
dopri5. The general solvers get the same equation, start and gradient, a state scaled to size one, and a second moment
that is cut off at zero where a trial step makes it negative. Errors are against DOP853 at a relative tolerance of
1e-10, the largest over all times n lr, as a share of the distance travelled. The implicit solvers run on the small
problem only: a Jacobian by differences takes as many gradients as the state has entries, tens of thousands on the
others. As a second comparison, DOP853 is given the equation without stiffness, theta' = f - (lr/2) f', where f' costs
a second gradient; its errors are against its own tight solution.

Writes integrators.md and integrators.png. ``--quick`` takes the small problem alone, and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from kadam.flow import Flow
from kadam.integrate import integrate
from kadam.update import Stage
from lab import figures
from lab.files import RESULTS, write
from lab.problems import Problem, algorithm, error_over_distance, logistic, perceptron, transformer

Array = NDArray[np.float64]
TARGET = 1e-5
GENERAL = ("DOP853", "Radau", "LSODA", "dopri5")


class Case(NamedTuple):
    """A problem, its flow, the steps of the algorithm to follow, and the solvers to run."""

    problem: Problem
    flow: Flow
    steps: int
    solvers: tuple[str, ...]

    @property
    def times(self) -> Array:
        return np.arange(self.steps + 1) * self.flow.lr


class Point(NamedTuple):
    """One run: gradient evaluations, error as a share of the distance travelled, seconds."""

    evaluations: int
    error: float
    seconds: float


class TooMany(Exception):
    """The evaluation limit of a general solver."""


def cases(quick: bool) -> dict[str, Case]:
    adam = [Stage(0.9, 0.999)]
    small = Case(logistic(), Flow(adam, 1e-3), 200 if quick else 1000, GENERAL)
    if quick:
        return {"logistic regression, 5 parameters": small}
    explicit = ("DOP853", "dopri5")
    return {
        "logistic regression, 5 parameters": small,
        "perceptron on MNIST-1D, 2,698 parameters": Case(perceptron(), Flow(adam, 1e-3), 100, explicit),
        "transformer, 5,680 parameters": Case(transformer(), Flow(adam, 1e-3, eps=1e-8), 100, explicit),
    }


class General:
    """A case as y' = derivative(t, y), for general solvers; counts gradient evaluations."""

    def __init__(self, case: Case, slow: bool = False, limit: int = 50_000) -> None:
        self.case, self.slow, self.limit, self.evaluations = case, slow, limit, 0
        flow, theta = case.flow, case.problem.theta
        self.crude = replace(flow, form="first")
        first = self.gradient(theta, 0.0)
        state = (self.crude if slow else flow).start(theta, first, self.gradient)
        self.rows = range(2, len(state))  # of the position
        size = first.abs().clamp(min=1e-2 * first.square().mean().sqrt().item())
        moments = [size, size**2 * (1 - flow.stages[0].beta)]
        self.scale = torch.stack([*moments, *[torch.full_like(theta, flow.lr)] * len(self.rows)])
        self.start = (state / self.scale).flatten()

    def gradient(self, theta: Tensor, t: float) -> Tensor:
        if self.evaluations >= self.limit:
            raise TooMany
        self.evaluations += 1
        return self.case.problem.gradient(theta, t)

    def derivative(self, t: float, y: Tensor) -> Tensor:
        state = y.view(self.scale.shape) * self.scale
        state[1].clamp_(min=0)
        theta = state[list(self.rows)].sum(dim=0)
        grad = self.gradient(theta, t)
        if not self.slow:
            return (self.case.flow.derivative(t, state, grad) / self.scale).flatten()
        change = self.crude.derivative(t, state, grad)
        f, lr = change[-1], self.case.flow.lr
        grad_change = (self.gradient(theta + 1e-3 * lr * f, t) - grad) / (1e-3 * lr)

        def u(s: Tensor) -> Tensor:
            return self.crude.respond(t + s, grad + s * grad_change, lambda row, _: state[row] + s * change[row]).u

        zero = torch.zeros((), dtype=torch.float64)
        u_change = torch.func.jvp(u, (zero,), (torch.ones_like(zero),))[1]
        change[-1] = f - lr / 2 * (torch.where(grad == 0, 0.0, u_change) - self.case.flow.weight_decay * f)
        return (change / self.scale).flatten()

    def solve(self, solver: str, tolerance: float) -> Tensor | None:
        """theta at the times of the case, or None if the solver gave up."""
        times = self.case.times
        try:
            if solver == "dopri5":
                path = odeint(lambda t, y: self.derivative(float(t), y), self.start, torch.from_numpy(times),
                              rtol=tolerance, atol=tolerance, method="dopri5")  # fmt: skip
            else:
                solution = solve_ivp(lambda t, y: self.derivative(t, torch.from_numpy(y)).numpy(), (0, times[-1]),
                                     self.start.numpy(), solver, times, rtol=tolerance, atol=tolerance)  # fmt: skip
                if not solution.success:
                    return None
                path = torch.from_numpy(solution.y.T.copy())
        except (TooMany, AssertionError):  # torchdiffeq asserts that its step does not underflow
            return None
        states = path.view(len(times), *self.scale.shape) * self.scale
        return states[:, list(self.rows)].sum(dim=1)


def measure(case: Case, quick: bool) -> tuple[dict[str, list[Point]], float]:
    """The points of every solver, and the difference of kadam's tightest solution to the reference."""
    reference = General(case).solve("DOP853", 1e-10)
    slow_reference = General(case, slow=True).solve("DOP853", 1e-10)
    if reference is None or slow_reference is None:
        raise RuntimeError("the reference solver gave up")
    results: dict[str, list[Point]] = {"kadam": []}
    agreement = np.inf
    for tolerance in 10.0 ** -np.arange(1, 5 if quick else 8):
        began = time.perf_counter()
        solution = integrate(case.flow, case.problem.gradient, case.problem.theta, case.times, tolerance=tolerance)
        agreement = error_over_distance(solution.theta, reference).max().item()
        results["kadam"].append(Point(solution.statistics.evaluations, agreement, time.perf_counter() - began))
    for solver in (*case.solvers, "DOP853, slow form"):
        slow = solver.endswith("slow form")
        results[solver] = []
        for tolerance in 10.0 ** -np.arange(1, 7 if quick else 10):
            began = time.perf_counter()
            general = General(case, slow)
            path = general.solve(solver.split(",")[0], tolerance)
            if path is not None and path.isfinite().all():
                error = error_over_distance(path, slow_reference if slow else reference).max().item()
                results[solver].append(Point(general.evaluations, error, time.perf_counter() - began))
    return results, agreement


def evaluations_at(points: list[Point], error: float = TARGET) -> float:
    """Evaluations for an error: log-linear between the points on the lower edge; infinite if never reached."""
    best: list[Point] = []
    for point in sorted(points):
        if not best or point.error < best[-1].error:
            best.append(point)
    if not best or best[-1].error > error:
        return np.inf
    logs = np.log([[point.error, point.evaluations] for point in reversed(best)])
    return float(np.exp(np.interp(np.log(error), logs[:, 0], logs[:, 1])))


def draw(axes: plt.Axes, name: str, results: dict[str, list[Point]], adam: int) -> None:
    markers = dict(zip(("kadam", *GENERAL, "DOP853, slow form"), "osD^vX", strict=True))
    for i, (solver, marker) in enumerate(markers.items()):
        if results.get(solver):
            points = np.array([point[:2] for point in results[solver]])
            look = dict(marker=marker, color=figures.PALETTE[i], ms=5, lw=2 if i == 0 else 1)
            axes.loglog(points[:, 0], points[:, 1], label=solver, **look)
    axes.axhline(TARGET, **figures.THEORY)
    axes.axvline(adam, color="0.6", lw=1, ls=":")
    axes.text(adam, 0.98, "Adam itself ", transform=axes.get_xaxis_transform(), fontsize=8, color="0.4", rotation=90,
              ha="right", va="top")  # fmt: skip
    axes.set(xlabel="gradient evaluations", ylabel="error / distance travelled", title=name, ylim=(1e-11, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small problem alone, a few seconds, nothing written")
    parser.add_argument("--out", type=Path, default=RESULTS / "benchmarks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures.style()
    chosen = cases(given.quick)
    figure, axes = plt.subplots(1, len(chosen), figsize=(4.6 * len(chosen), 4), squeeze=False)
    lines = []
    for axis, (name, case) in zip(axes[0], chosen.items(), strict=True):
        results, agreement = measure(case, given.quick)
        draw(axis, name, results, case.steps)
        needed = {solver: evaluations_at(points) for solver, points in results.items()}
        best = min(needed[solver] for solver in case.solvers)
        model = integrate(case.flow, case.problem.gradient, case.problem.theta, case.times)
        to_adam = error_over_distance(model.theta, algorithm(case.flow, case.problem, case.steps)).max().item()
        block = [
            f"## {name}, {case.steps} steps of Adam\n",
            "| solver | gradient evaluations at error 1e-5 | over kadam's |",
            "| --- | --- | --- |",
            *(f"| {solver} | {count:.0f} | {count / needed['kadam']:.1f} |" for solver, count in needed.items()),
            f"\nBest general solver on the same equation over kadam: {best / needed['kadam']:.1f}. At its tightest"
            f" tolerance kadam is {agreement:.1e} from the reference. At the default one it takes"
            f" {model.statistics.evaluations} evaluations and is {to_adam:.1e} of the distance from Adam itself.\n",
        ]
        print("\n".join(block), flush=True)
        lines += block
        if not best / needed["kadam"] >= 5:
            print(f"NOT REACHED on {name}: five times fewer gradient evaluations than the best general solver")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    if not given.quick:
        given.out.mkdir(parents=True, exist_ok=True)
        heading = [
            "# Gradient evaluations for a given error",
            "",
            (__doc__ or "").split("\n\n")[2].replace("\n", " "),
            "",
        ]
        write(given.out / "integrators.md", "\n".join(heading + lines))
        figure.savefig(given.out / "integrators.png", metadata={"Software": None})


if __name__ == "__main__":
    main()
