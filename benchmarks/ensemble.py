"""Time of a run in an ensemble against that of a run alone, through torch.optim.Adam, in one interleaved measurement.

    python benchmarks/ensemble.py [--quick] [--out results/benchmarks]

Two problems: a map of Adam on a quadratic of 10 dimensions, 100 x 100 values of (beta, gamma) x 3 learning rates, with
and without a look at every update; and a small perceptron in 256 members, each with its own seed and order of the
data. A round times the ensemble and then some single runs with each of torch's implementations; a figure is the median
of the rounds' ratios, with their range. That both arrive at the same parameters is checked. Writes ensemble.json and
ensemble.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kadam import ensemble
from lab.experiments.quadratic import hessian
from lab.files import ROOT
from lab.provenance import commit

ADAMS: dict[str, dict[str, Any]] = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
SEEN: dict[str, ensemble.Observer] = {"u": ensemble.Member.largest_update}


class Problem:
    """Members, how an ensemble trains them and how one of them is trained alone."""

    def __init__(self, members: list[dict[str, Any]], steps: int, tolerance: float) -> None:
        self.members, self.steps, self.tolerance = members, steps, tolerance

    def arguments(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def start(self, i: int) -> tuple[list[nn.Parameter], Callable[[int], Tensor]]:
        """Parameters of member i, and the loss at a step."""
        raise NotImplementedError

    def together(self, observe: dict[str, Any]) -> tuple[float, ensemble.Runs]:
        loss, init, batches, in_dims = self.arguments()
        begin = time.perf_counter()
        runs = ensemble.train(loss, init, self.members, batches, self.steps, observe, in_dims=in_dims, keep_params=True)
        return time.perf_counter() - begin, runs

    def alone(self, i: int, adam: dict[str, Any]) -> tuple[float, list[nn.Parameter]]:
        begin = time.perf_counter()
        params, loss = self.start(i)
        member = self.members[i]
        optimizer = torch.optim.Adam(params, lr=member["lr"], betas=member["betas"], **adam)
        for step in range(1, self.steps + 1):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
        return time.perf_counter() - begin, params

    def check(self, runs: ensemble.Runs, i: int, params: list[nn.Parameter]) -> None:
        assert runs.params is not None
        for ours, theirs in zip(runs.params.values(), params, strict=True):
            assert runs.diverged_at[i] == 0 and theirs.isfinite().all()
            distance = (ours[i] - theirs).abs().max().item()
            assert distance < self.tolerance, f"member {i} is off by {distance:.2g}: not the same run"


class Quadratic(Problem):
    def __init__(self, side: int, steps: int) -> None:
        rates = 1 - np.logspace(-0.3, -3.5, side)
        super().__init__([
            dict(lr=lr, betas=(gamma, beta), weight_decay=0.0, k=1)
            for lr in (1e-3, 1e-2, 1e-1) for beta in rates for gamma in rates
        ], steps, 1e-3)  # fmt: skip
        self.matrix = hessian(100.0, 10, 0)
        self.first = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def arguments(self) -> tuple[Any, ...]:
        def loss(params: dict[str, Tensor], batch: None) -> Tensor:
            return params["theta"] @ (self.matrix @ params["theta"]) / 2

        return loss, lambda seed: {"theta": self.first}, None, None

    def start(self, i: int) -> tuple[list[nn.Parameter], Callable[[int], Tensor]]:
        theta = nn.Parameter(self.first.clone())
        return [theta], lambda step: theta @ (self.matrix @ theta) / 2


class Perceptron(Problem):
    def __init__(self, count: int, steps: int, width: int = 32, batch: int = 32) -> None:
        gammas = np.linspace(0.5, 0.95, count)
        super().__init__([
            dict(lr=1e-3, betas=(float(gamma), 0.999), weight_decay=0.0, k=1, seed=i)
            for i, gamma in enumerate(gammas)
        ], steps, 0.05)  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self.x, self.y = torch.randn(4000, 40, generator=generator), torch.randint(10, (4000,), generator=generator)
        self.order = torch.randint(4000, (steps, count, batch), generator=generator)

    def module(self) -> nn.Module:
        width = self.width
        return nn.Sequential(
            nn.Linear(40, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )  # fmt: skip

    def arguments(self) -> tuple[Any, ...]:
        return *ensemble.from_module(self.module, F.cross_entropy), ensemble.indexed(self.order, self.x, self.y), 0

    def start(self, i: int) -> tuple[list[nn.Parameter], Callable[[int], Tensor]]:
        torch.manual_seed(self.members[i]["seed"])
        module = self.module()

        def loss(step: int) -> Tensor:
            chosen = self.order[step - 1, i]
            return F.cross_entropy(module(self.x[chosen]), self.y[chosen])

        return list(module.parameters()), loss


def compare(problem: Problem, rounds: int, singles: int) -> dict[str, Any]:
    """Seconds of all members together, and of one alone, per round; members for the latter are taken evenly."""
    count = len(problem.members)
    seconds: dict[str, list[float]] = {"together": [], "with a look at every update": []}
    ratios: dict[str, list[float]] = {name: [] for name in ADAMS}
    for adam in ADAMS.values():  # whatever is done once
        problem.alone(0, adam)
    for i in range(rounds):
        order = ({}, SEEN) if i % 2 else (SEEN, {})
        for observe in order:
            duration, runs = problem.together(observe)
            seconds["with a look at every update" if observe else "together"].append(duration)
        for name, adam in ADAMS.items():
            alone = []
            for j in range(singles):
                member = (2 * j + 1) * count // (2 * singles)
                duration, params = problem.alone(member, adam)
                alone.append(duration)
                problem.check(runs, member, params)
            seconds.setdefault(f"alone, {name}", []).append(statistics.mean(alone))
            ratios[name].append(statistics.mean(alone) / (seconds["together"][-1] / count))
        print(f"  round {i + 1}: together {seconds['together'][-1]:.2f} s,",
              ", ".join(f"{name} {ratios[name][-1]:.0f}x" for name in ADAMS), flush=True)  # fmt: skip
    return {
        "members": count, "steps": problem.steps, "parameters": sum(p.numel() for p in problem.start(0)[0]),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times faster": {name: [statistics.median(v), min(v), max(v)] for name, v in ratios.items()}, "rounds": rounds,
    }  # fmt: skip


def table(title: str, result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    return "\n".join([
        f"**{title}**: {result['members']:,} members, {result['parameters']:,} parameters, {result['steps']:,} steps: "
        f"{seconds['together']:.1f} s together ({seconds['with a look at every update']:.1f} s with a look at every "
        f"update); median of {result['rounds']} rounds\n",
        "| `torch.optim.Adam` | a run alone, ms | a run in the ensemble, ms | times faster [range] |",
        "|---|---|---|---|",
        *(
            f"| {name} | {1e3 * seconds[f'alone, {name}']:.1f} | {1e3 * seconds['together'] / result['members']:.3f} | "
            f"{middle:.3g} [{low:.3g}, {high:.3g}] |"
            for name, (middle, low, high) in result["times faster"].items()
        ),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the map's members, one round")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    quick = options.quick
    problems: dict[str, tuple[Problem, int]] = {
        "Quadratic, float64": (Quadratic(30 if quick else 100, 1000), 5),
        "Perceptron 40-32-32-10, batches of 32, float32": (Perceptron(256, 200), 10),
    }
    results, parts = {}, []
    for name, (problem, singles) in problems.items():
        print(name, flush=True)
        results[name] = compare(problem, 1 if quick else 5, singles)
        parts.append(table(name, results[name]))
    about = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit(),
             "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "quick": quick}  # fmt: skip
    head = (
        "Time of a run by `kadam.ensemble` against that of a run through `torch.optim.Adam`. "
        f"{about['machine']}, torch {about['torch']}, commit {about['commit']}. Written by `benchmarks/ensemble.py`."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ensemble.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    (options.out / "ensemble.md").write_text("\n\n".join([head, *parts]) + "\n")
    print((options.out / "ensemble.md").read_text())


if __name__ == "__main__":
    main()
