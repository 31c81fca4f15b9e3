"""Page 01, Adam as a differential equation: its runs, and what makes numbers of them.

An *arm* is an algorithm together with the flow that models it. The error of a flow is its Euclidean distance to the
algorithm over all parameters, as a share of the algorithm's largest distance from its start. A flow that *gave up* came
to no end within the gradients that it was allowed; its error ends early, and is NaN from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from torch import Tensor

from kadam.flow import Flow, Memory, memory_of
from kadam.integrate import integrate
from kadam.stages import make_stages
from kadam.update import Stage
from lab.experiments.continuous_time import distance_to_flow, edge, tracking
from lab.grid import grid
from lab.problems import Problem, algorithm, error_over_distance, logistic, sharpness, transformer
from lab.statistics import Estimate, share_of

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = list[tuple[str, ...]]

EDGE, PAPER_EDGE = 38.0, 1 + 1 / 0.9  # of Adam, and of the paper's equation, at gamma = 0.9
LIMIT, COARSE = 0.01, 0.05  # of the distance: two lines in one; at the large rate the integrator itself may be 1 % off
DONE = "reached end"
LONG = "β = 0.999, γ = 0.9"
PAIRS = {LONG: Stage(0.9, 0.999), "β = 0.95, γ = 0.8": Stage(0.8, 0.95), "β = 0.5, γ = 0.3": Stage(0.3, 0.5)}
MODELS: dict[str, dict[str, Any]] = {
    "θ̇ = f, matched memory": dict(form="first"), "paper's equation": dict(memory="paper"),
    "rates (1−α)/α": dict(memory="rates"), "matched memory": {},
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "adam": {}, "adam-paper": dict(memory="paper"), "adamw": dict(weight_decay=0.1),
    "adamw-paper": dict(weight_decay=0.1, memory="paper"), "2-adam": dict(k=2), "swapped": dict(swapped=True),
    "batches": dict(batches=True),
}  # fmt: skip
NAMES = {
    "adam": "Adam, matched memory", "adam-paper": "Adam, paper's equation", "adamw": "AdamW, matched memory",
    "adamw-paper": "AdamW, paper's equation", "2-adam": "2-Adam, matched memory",
    "swapped": "Adam, matched memory, β and γ swapped", "batches": "Adam, matched memory, another batch at every step",
}  # fmt: skip
DIMS = {"error": ["step"], "discrete": ["step", "parameter"], "continuous": ["step", "parameter"],
        "names": ["parameter"], "spread": ["quantile"], "sharpness": ["point"], "at": ["point"]}  # fmt: skip


# --- the runs ---


def tracked(seeds: Sequence[int], **settings: Any) -> xr.Dataset:
    """Algorithm and flow on the transformer: every arm from every seed's initial weights."""
    return grid(tracking, "transformer", {"arm": ARMS, "seed": list(seeds)}, DIMS, **settings)


def tracked_at_the_edge(seeds: Sequence[int], **settings: Any) -> xr.Dataset:
    """Adam and matched memory at a large rate; the integrator works to 1 % and may take ten gradients a step."""
    return grid(tracking, "large rate", {"seed": list(seeds)}, DIMS, tolerance=1e-2, effort=10, **settings)


def sharpness_along(seeds: Sequence[int], **settings: Any) -> xr.Dataset:
    """K along Adam's runs, ``sharpness`` after the steps ``at``."""
    return grid(edge, "sharpness", {"seed": list(seeds)}, DIMS, **settings)


# --- measures of runs ---


def done(outcome: ArrayLike) -> Mask:
    """Whether each flow came to the end."""
    return np.array(np.asarray(outcome) == DONE)


def largest(error: ArrayLike, came: ArrayLike) -> Array:
    """The largest error of each flow, (..., steps) -> (...); infinite for one that gave up."""
    return np.where(came, np.nanmax(np.asarray(error, dtype=float), axis=-1), np.inf)


def worst(runs: xr.Dataset) -> xr.DataArray:
    """``largest`` of every run."""
    return runs.outcome.copy(data=largest(runs.error, done(runs.outcome)))


def in_figure(runs: xr.Dataset) -> Array:
    """``off_in_figure`` of every run's 16 parameters."""
    return off_in_figure(runs.discrete, runs.continuous, done(runs.outcome))


def at_the_end(error: ArrayLike, came: ArrayLike) -> Array:
    """The error of each flow, (..., steps), at the last step; infinite for one that gave up."""
    return np.where(came, np.asarray(error, dtype=float)[..., -1], np.inf)


def first_beyond(error: ArrayLike, came: ArrayLike, limit: float) -> Array:
    """The step at which each flow's error, (..., steps), is first above ``limit`` or gone; infinite if never."""
    gone = ~np.asarray(came, dtype=bool)[..., None]
    beyond = np.concatenate([~(np.asarray(error, dtype=float) <= limit), gone], axis=-1)
    beyond[..., 0] = False  # they start together; an error of 0/0 there says nothing
    return np.where(beyond.any(axis=-1), beyond.argmax(axis=-1), np.inf)


def off_in_figure(discrete: ArrayLike, continuous: ArrayLike, came: ArrayLike) -> Array:
    """Largest difference of two sets of curves, (..., steps, curves), over the height of their figure; (...).

    The figure shows all curves of ``discrete`` from a common start. Infinite for a flow that gave up.
    """
    solid, dashed = (np.asarray(curves, dtype=float) for curves in (discrete, continuous))
    moved = solid - solid[..., :1, :]
    height = np.nanmax(moved, axis=(-2, -1)) - np.nanmin(moved, axis=(-2, -1))
    return np.where(came, np.nanmax(np.abs(dashed - solid), axis=(-2, -1)) / height, np.inf)


def off_when_late(discrete: ArrayLike, part: int = 20) -> Array:
    """The same for curves, (..., steps, curves), against themselves a ``part``-th of the run later."""
    curves = np.asarray(discrete, dtype=float)
    late = max(1, curves.shape[-2] // part)
    solid = curves[..., :-late, :]
    return off_in_figure(solid, curves[..., late:, :], np.ones(curves.shape[:-2], dtype=bool))


def comes_to(k: ArrayLike, edge: float) -> Mask:
    """Whether K, (seeds, points), is ``edge`` or more at some point of each run."""
    return np.array((np.asarray(k, dtype=float) >= edge).any(axis=-1))


def largest_until(error: ArrayLike, at: ArrayLike, k: ArrayLike, edge: float) -> Array:
    """Each flow's largest error up to the last measurement of K, at the steps ``at``, before K first is ``edge``.

    Where the first measurement is there already: up to that one.

    Args:
        error: (seeds, steps), NaN where the flow had given up.
        at, k: (seeds, points).

    Returns:
        (seeds,), infinite where the flow had given up by then.
    """
    errors, steps = np.asarray(error, dtype=float), np.asarray(at, dtype=int)
    below = np.logical_and.accumulate(np.asarray(k, dtype=float) < edge, axis=-1).sum(axis=-1)
    last = np.take_along_axis(steps, np.maximum(below, 1)[:, None] - 1, axis=1)[:, 0]
    found = []
    for run, end in zip(errors, last, strict=True):
        part = run[1 : end + 1]
        found.append(np.inf if end >= len(run) or np.isnan(part).any() else part.max())
    return np.array(found)


def within_until(error: ArrayLike, measured: xr.Dataset, edge: float, limit: float) -> Estimate:
    """Of the seeds in which K comes to ``edge``, those in which the error stays within ``limit`` until then."""
    k = measured.sharpness
    return seeds_of(largest_until(error, measured["at"], k, edge) <= limit, comes_to(k, edge))


def closer(one: ArrayLike, other: ArrayLike, factor: float = 5.0) -> Mask:
    """Whether the largest error of ``one`` is at most that of ``other`` over ``factor``; never if it gave up."""
    first, second = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    return np.array(np.isfinite(first) & (factor * first <= second))


def seeds_of(holds: ArrayLike, among: ArrayLike | None = None) -> Estimate:
    """In how many seeds it ``holds``, of those ``among`` which it may be asked (all if None)."""
    yes = np.asarray(holds, dtype=bool)
    asked = yes if among is None else yes[np.asarray(among, dtype=bool)]
    if not len(asked):
        return Estimate(0.0, lambda level: (0.0, 1.0), len(yes), shown="none to ask")
    return share_of(asked)


def counted(holds: ArrayLike) -> Estimate:
    """In what share of these very seeds it ``holds``, without an interval: what a control asks."""
    yes = np.asarray(holds, dtype=bool)
    return Estimate(float(yes.mean()), None, len(yes), shown=f"{yes.sum()} of {len(yes)}")


def bends_alike(discrete: ArrayLike, last: int = 50) -> Array:
    """Correlation of successive bends (second differences) of the curves, (seeds, steps, curves), at the end; (seeds,).

    Near 1 where the path is smooth, negative where steps alternate.
    """
    found = []
    for run in np.asarray(discrete, dtype=float):
        bends = np.diff(run[~np.isnan(run).any(axis=1)], 2, axis=0)[-last:]
        found.append((bends[1:] * bends[:-1]).sum() / max((bends[1:] ** 2).sum(), 1e-300))
    return np.array(found)


def edge_rows(runs: Mapping[str, tuple[xr.Dataset, xr.Dataset]]) -> Rows:
    """Of every learning rate, with its flows and its K: when K and the flow's error rise, and how Adam's path bends."""
    rows: Rows = []
    for label, (flow, measured) in runs.items():
        came, k = done(flow.outcome), measured.sharpness.values
        there = np.where(comes_to(k, EDGE / 2), measured["at"].values[0][(k >= EDGE / 2).argmax(axis=1)], np.inf)
        lost = first_beyond(flow.error, came, COARSE)
        bends = bends_alike(flow.discrete)
        rows.append((label, _spread(k.max(axis=1), ".1f"), _steps(there), _steps(lost), _spread(bends, "+.2f"),
                     f"{(~came).sum()} of {len(came)}"))  # fmt: skip
    return rows


def _steps(values: Array) -> str:
    """Median and range of the steps at which something happened, and how often."""
    happened = values[np.isfinite(values)]
    if not len(happened):
        return "never"
    return _spread(happened, ".0f") + ("" if len(happened) == len(values) else f", {len(happened)} of {len(values)}")


def _spread(values: Array, form: str) -> str:
    return f"{np.median(values):{form}} ({values.min():{form}} … {values.max():{form}})"


def summary_rows(runs: xr.Dataset) -> Rows:
    """Of every arm: in how many seeds it stays within 1 %, how many gave up, and the errors of those that did not."""
    rows: Rows = []
    for arm in runs.arm.values:
        of_arm = runs.sel(arm=arm)
        came, most = done(of_arm.outcome), worst(of_arm).values
        first = first_beyond(of_arm.error, came, LIMIT)
        count, left = len(most), first[np.isfinite(first)]
        rows.append((
            NAMES[str(arm)], f"{(most <= LIMIT).sum()} of {count}", f"{(~came).sum()} of {count}",
            f"{np.median(most[came]):.1e}" if came.any() else "–", f"{np.median(left):.0f}" if len(left) else "never",
            f"{np.median(of_arm.evaluations):.0f}",
        ))  # fmt: skip
    return rows


# --- orders on a logistic regression ---


class Massless(Flow):
    """Matched memory that starts from zero mass: it loses the first gradient."""

    @cached_property
    def memories(self) -> tuple[Memory, ...]:
        return tuple(memory._replace(start=0.0) for memory in super().memories)


def off(
    counts: Sequence[int], stages: Sequence[Stage], problem: Problem | None = None, kind: Callable[..., Flow] = Flow,
    **model: Any,
) -> Array:  # fmt: skip
    """Largest difference between algorithm and flow over a unit of time, for all ``counts`` of steps."""
    problem = logistic(away=2.0) if problem is None else problem
    return np.array([distance_to_flow(problem, kind(stages, 1 / count, **model), count) for count in counts])


def order(counts: Sequence[int], errors: ArrayLike) -> float:
    """The power of the learning rate with which ``errors`` fall: least squares on the logarithms."""
    return float(-np.polyfit(np.log(counts), np.log(np.asarray(errors, dtype=float)), 1)[0])


def errors_by_count(counts: Sequence[int]) -> xr.DataArray:
    """``off`` for every pair of rates and every model, with weight decay 1."""
    found = [[off(counts, [stage], weight_decay=1.0, **model) for model in MODELS.values()] for stage in PAIRS.values()]
    return xr.DataArray(found, {"pair": list(PAIRS), "model": list(MODELS), "count": list(counts)})


def orders_of(errors: xr.DataArray) -> xr.DataArray:
    """The order of every pair and model."""
    return xr.apply_ufunc(
        lambda found: order(errors["count"].values.tolist(), found), errors, input_core_dims=[["count"]], vectorize=True
    )


def order_rows(errors: xr.DataArray) -> Rows:
    """A line for every model: the orders at all pairs, and the error with the most steps at the first."""
    orders, last = orders_of(errors), errors.isel(count=-1)
    return [
        (str(model), *(f"{float(orders.sel(pair=pair, model=model)):.2f}" for pair in orders.pair.values),
         f"{float(last.sel(pair=LONG, model=model)):.1e}")
        for model in errors.model.values
    ]  # fmt: skip


def gain(errors: xr.DataArray, model: str = "paper's equation", other: str = "matched memory") -> float:
    """log10 of the error of ``model`` over that of ``other``, with the most steps, at β = 0.999, γ = 0.9."""
    last = errors.isel(count=-1).sel(pair=LONG)
    return float(np.log10(last.sel(model=model) / last.sel(model=other)))


def cascade_orders(counts: Sequence[int], ks: Sequence[int] = (2, 3)) -> list[float]:
    """The order of matched memory for k-Adam."""
    return [order(counts, off(counts, make_stages((0.9, 0.999), k), weight_decay=1.0)) for k in ks]


def fresh_orders(counts: Sequence[int], seeds: Sequence[int]) -> list[float]:
    """The order of matched memory on a new logistic regression for every seed."""
    stages = [PAIRS[LONG]]
    return [order(counts, off(counts, stages, logistic(seed, away=2.0), weight_decay=1.0)) for seed in seeds]


def straight(offset: float) -> Problem:
    """One coordinate whose gradient is offset - t, whatever the coordinate."""
    zero = torch.zeros(1, dtype=torch.float64)
    return Problem(lambda theta, t: torch.full_like(theta, offset - t), zero, ["x"])


def mass_and_lag_difference(memory: str = "matched") -> float:
    """Largest difference between a memory's mass and mean lag and the discrete ones, over 200 random cases."""
    generator = np.random.default_rng(0)
    differences = []
    decays, steps = 1 - np.exp(-generator.uniform(0.1, 7, 200)), generator.integers(0, 50, 200)
    for alpha, n in zip(decays, steps, strict=True):
        of, lags = memory_of(alpha, 1.0, memory), np.arange(n + 1)
        weights, fading = (1 - alpha) * alpha**lags, np.exp(-of.rate * n)
        weight = of.gain / of.rate  # the integrals of the kernel, and of lag times kernel, in closed form:
        mass = weight * (1 - fading) + of.present + of.start * fading
        lag = weight * (1 / of.rate - fading * (n + 1 / of.rate)) + of.start * fading * n
        differences += [mass - weights.sum(), (lag - weights @ lags) / max(1, n)]
    return float(np.abs(differences).max())


def evaluations_for(steps: int = 1000, within: float = 1e-3) -> int:
    """Gradients that the integrator takes to follow ``steps`` of Adam on a logistic regression.

    Raises:
        RuntimeError: it did not come to the end, or is off by more than ``within`` of the distance.
    """
    near, adam = logistic(), Flow([PAIRS[LONG]], 1e-3)
    solution = integrate(adam, near.gradient, near.theta, np.arange(steps + 1) * adam.lr)
    if not solution.ok or error_over_distance(solution.theta, algorithm(adam, near, steps)).max().item() > within:
        raise RuntimeError(f"flow: {solution}")
    return solution.statistics.evaluations


# --- the edge of stability ---


def growth(k: float, memory: str | None = None) -> float:
    """Growth per step, as a logarithm, of a linear coordinate with K = ``k``, γ = 0.9: Adam's, or a flow's.

    The denominator is held fixed by an eps that is large beside the gradient.
    """
    linear = Problem(lambda theta, t: k * theta, torch.full((1,), 1e-100, dtype=torch.float64), ["x"])
    flow = Flow([PAIRS[LONG]], lr=1.0, eps=1.0, memory=memory or "matched")
    if memory is None:
        path = algorithm(flow, linear, 80)
    else:
        path = integrate(flow, linear.gradient, linear.theta, np.arange(81.0), tolerance=1e-2).theta
    size = path[:, 0].abs().log()
    return (size[61:].max() - size[41:61].max()).item() / 20


def edges() -> dict[str, float]:
    """K from which each oscillation grows, found by bisection."""
    return {
        "adam": float(brentq(growth, 35, 40, xtol=0.05)),
        "paper": float(brentq(lambda k: growth(k, "paper"), 1.5, 3, xtol=0.02)),
    }


def growths(ks: Sequence[float]) -> dict[str, list[float]]:
    """The growth of Adam and of both equations over K."""
    of: Mapping[str, str | None] = {"Adam": None, "paper's equation": "paper", "matched memory": "matched"}
    return {name: [growth(k, memory) for k in ks] for name, memory in of.items()}


def known_sharpness(size: int = 50) -> float:
    """K by power iteration over the exact K, for a quadratic loss whose curvatures are spaced evenly up to K = 38."""
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    matrix = turned @ torch.diag(torch.linspace(0, EDGE, size, dtype=torch.float64)) @ turned.T
    problem = Problem(lambda theta, t: matrix @ theta, torch.zeros(size, dtype=torch.float64), ["x"] * size)
    return sharpness(problem, problem.theta, torch.ones(size, dtype=torch.float64)) / EDGE


# --- where every model fails ---


def pulled_back(theta: Tensor, t: float) -> Tensor:
    """The gradient of a problem whose second coordinate starts at its own minimum, which moves away."""
    return torch.stack([torch.tanh(theta[0] - 2), theta[1] - theta[0] ** 2])


def hard_cases(lr: float) -> Rows:
    """Three cases in which the equation is of no use, and what the integrator says."""
    stages = [PAIRS[LONG]]
    rest = logistic()  # from theta = 0 it comes to its minimum
    chatter = [distance_to_flow(rest, Flow([Stage(0.8, 0.95)], 1 / n), n, tolerance=1e-4) for n in (200, 400)]
    rows: Rows = [("at a minimum, β = 0.95, γ = 0.8", f"difference to Adam {found:.0e}", f"η = {1 / n:g}")
            for n, found in zip((200, 400), chatter, strict=True)]  # fmt: skip
    exact = transformer(seed=0)
    flow = Flow(stages, lr, eps=0.0)
    without = integrate(flow, exact.gradient, exact.theta, [0.0, 20 * lr], max_evaluations=150)
    rows += [("transformer without ε, 20 steps", f"{without.outcome} at step {without.t / lr:.1f}",
              f"{without.statistics.evaluations} gradients")]  # fmt: skip
    start = torch.zeros(2, dtype=torch.float64)
    for eps in (0.0, 1e-2):
        run = integrate(Flow(stages, 0.005, eps=eps), pulled_back, start, [0.5], max_evaluations=300)
        rows += [
            (f"start at a zero of the gradient, ε = {eps:g}", run.outcome, f"{run.statistics.evaluations} gradients")
        ]
    return rows
