"""Page 03, C against speed and generalisation: the points, the runs at them, and what makes numbers of them.

A *point* is a choice of beta and gamma. Values of runs come as arrays (seeds, points) over the points of a curve. A run
that never reaches the target counts as one that took the whole run, in every measure; among ranks it is last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from kadam import stability
from lab.experiments.hyperparameters import convnet_on_mnist1d, distances, level_points, transformer_on_words
from lab.grid import grid
from lab.measures import steps_to
from lab.records import Result
from lab.statistics import EVERYTHING, Estimate, Interval, mean, rank_correlation

Array = NDArray[np.float64]
Rows = list[tuple[str, ...]]

DEFAULT = (0.999, 0.9)  # beta, gamma
NORMAL, GAMMA_FIXED, BETA_FIXED = "normal curve", "γ = 0.9", "β = 0.999"
UNTUNED, TUNED = "untuned", "tuned"
TUNINGS = (UNTUNED, TUNED)
CHANCE = 0.05  # of chance orders, how many may pass a test
WEAKEST = -0.5  # the weakest rank correlation that ever counts as "goes with"
HALF = 0.5  # the margin of "speed varies less along a level curve"
RUNS: dict[str, Callable[..., Result]] = {"convnet": convnet_on_mnist1d, "transformer": transformer_on_words}


# --- the points ---


@dataclass(frozen=True)
class Plan:
    """The points of a page.

    Attributes:
        curves: beta and gamma of every curve's points, each (points,).
        points: all of them, once, as the runs take them: (beta, gamma).
        where: the places of every curve's points among ``points``.
        c: C at all points.
    """

    curves: dict[str, tuple[Array, Array]]
    points: list[tuple[float, float]]
    where: dict[str, NDArray[np.int64]]
    c: Array

    @property
    def levels(self) -> list[str]:
        """The names of the level curves."""
        return [name for name in self.curves if name.startswith("C = ")]

    def on(self, name: str, values: ArrayLike) -> Array:
        """What belongs to a curve, of ``values`` whose last axis is that of all points."""
        return np.asarray(values)[..., self.where[name]]

    def rows(self) -> Rows:
        """For a table: every curve, how many points, its two ends, its length in the plane of beta and gamma."""
        return [
            (name, str(len(b)), f"β = {b[0]:.4f}, γ = {g[0]:.4f}", f"β = {b[-1]:.4f}, γ = {g[-1]:.4f}",
             f"{self.c[self.where[name][0]]:.2f} … {self.c[self.where[name][-1]]:.2f}", f"{distances(b, g)[-1]:.3f}")
            for name, (b, g) in self.curves.items()
        ]  # fmt: skip


def plan(normal_points: int, line_points: int, lowest_c: float, other_c: float) -> Plan:
    """The normal curve through ``DEFAULT``, two level curves, and two lines on which one of beta and gamma is fixed.

    The normal curve goes from C = ``lowest_c`` to the default's C, at equal steps of C. The level curves, C of the
    default and C = ``other_c``, start at beta = 0.999 and are as long as the normal curve. The lines end in the default
    and start at C = 0.02.

    Raises:
        ValueError: a curve is not what its name says.
    """
    centre = float(stability.coefficient(*DEFAULT))
    normal = stability.normal_curve_at(np.linspace(lowest_c, centre, normal_points))
    length = distances(*normal)[-1]
    on_lines = np.linspace(0.02, centre, line_points)
    curves = {
        NORMAL: normal,
        f"C = {centre:.2f}": level_points(centre, 0.999, length, line_points),
        f"C = {other_c:.2f}": level_points(other_c, 0.999, length, line_points),
        GAMMA_FIXED: (np.array([stability.level_curve(0.9, c) for c in on_lines]), np.full(line_points, 0.9)),
        BETA_FIXED: (np.full(line_points, 0.999), 2 / (on_lines + 1 / 0.999 + 1)),
    }
    named = {name: [tuple(p) for p in np.round(np.transpose(pair), 9).tolist()] for name, pair in curves.items()}
    points = sorted({point for of_curve in named.values() for point in of_curve})
    where = {name: np.array([points.index(point) for point in of_curve]) for name, of_curve in named.items()}
    c = stability.coefficient(*np.transpose(points))
    found = Plan(curves, points, where, c)
    wrong = [name for name in found.levels if np.ptp(found.on(name, c)) > 1e-6]
    wrong += [name for name in (GAMMA_FIXED, BETA_FIXED) if not np.allclose(found.on(name, c), on_lines)]
    if wrong:
        raise ValueError(f"points: {', '.join(wrong)} (must have the C that the curve's name says)")
    return found


# --- the runs ---


def trained(
    task: str, points: Sequence[tuple[float, float]], lrs: Sequence[float], seeds: Sequence[int], steps: int, every: int
) -> xr.Dataset:
    """A sweep over learning rates and seeds; a run trains the ``task`` at all ``points`` together.

    ``validation_loss`` and ``test_loss`` have the axes lr, seed, point, evaluation; ``steps`` those of evaluations.
    """
    inner = {name: ["point", "evaluation"] for name in ("validation_loss", "test_loss")}
    dims = {**inner, "steps": ["evaluation"], "diverged_at": ["point"]}
    label = f"{task}: learning rates and seeds"
    axes = {"lr": lrs, "seed": seeds}
    return grid(RUNS[task], label, axes, dims, points=list(points), steps=steps, every=every)


def measured(runs: xr.Dataset, target: float) -> xr.Dataset:
    """Speed and generalisation of every point, untuned (the first learning rate) and tuned.

    Tuned is, for every point, the learning rate that does best on validation data in the mean over seeds: fewest steps
    to the same target, or least loss. Rates that need the same steps, as where no run gets there, are told apart by
    loss.

    Returns:
        Over the axes tuning, seed, point: ``steps`` to the test loss ``target``, at most the run's length; ``missed``,
        whether it never got there; ``loss``, the test loss where the validation loss is least, infinite after a
        divergence. Over tuning, point: ``lr_of_steps`` and ``lr_of_loss``, the places of the rates in the grid.
    """
    at = runs["steps"].values.reshape(-1, runs.sizes["evaluation"])[0]
    validation, test = (
        np.where(np.isnan(runs[name].values), np.inf, runs[name].values) for name in ("validation_loss", "test_loss")
    )
    stopped = np.take_along_axis(test, validation.argmin(axis=-1)[..., None], axis=-1)[..., 0]
    stopped = np.where(np.isinf(test).any(axis=-1), np.inf, stopped)
    to_target = steps_to(target, test, at)
    least = validation.min(axis=-1).mean(axis=1)  # (lr, point)
    fewest = np.minimum(steps_to(target, validation, at), at[-1]).mean(axis=1)
    by_steps, by_loss = np.lexsort((least, fewest), axis=0)[0], least.argmin(axis=0)
    first = np.zeros_like(by_steps)
    axes = ("tuning", "seed", "point")
    chosen = {"steps": (first, by_steps), "loss": (first, by_loss)}
    steps, loss = (
        np.stack([_at_rates(values, index) for index in chosen[name]])
        for name, values in (("steps", to_target), ("loss", stopped))
    )
    rates = {f"lr_of_{name}": (("tuning", "point"), np.stack(found)) for name, found in chosen.items()}
    values = {"steps": (axes, np.minimum(steps, at[-1])), "missed": (axes, np.isinf(steps)), "loss": (axes, loss)}
    labels = {"tuning": list(TUNINGS), "seed": runs["seed"].values}
    return xr.Dataset({**values, **rates}, labels, {"length": int(at[-1]), "lrs": list(runs["lr"].values)})


def _at_rates(values: Array, index: NDArray[np.int64]) -> Array:
    """(lr, seed, point) at each point's rate, (point,): (seed, point)."""
    return np.moveaxis(values[index, :, np.arange(len(index))], 0, -1)


# --- what decides ---


def correlations(c: ArrayLike, values: ArrayLike) -> Array:
    """Spearman's rank correlation ρ of C, (points,), and a measure, (seeds, points): one number a seed."""
    return np.array([round(rank_correlation(c, of_seed), 9) for of_seed in np.asarray(values)])


def goes_with(c: ArrayLike, values: ArrayLike) -> Estimate:
    """The rank correlation of C and a measure, (seeds, points): mean over seeds, Student's interval cut to [-1, 1]."""
    found = mean(correlations(c, values))

    def interval(level: float) -> Interval:
        low, high = found.interval(level) if found.interval else (-1.0, 1.0)
        return max(low, -1.0), min(high, 1.0)

    return replace(found, interval=interval)


def chance_limit(points: int) -> float:
    """The weakest rank correlation that at most one in twenty of all orders of so many points reaches.

    From the exact distribution of the sum of squared rank differences; cut to three digits towards zero. Never weaker
    than ``WEAKEST``.

    Raises:
        ValueError: more points than that can be counted for.
    """
    if not 1 <= points <= 14:
        raise ValueError(f"points: {points!r} (must be from 1 to 14)")
    counts = squared_rank_differences(points)
    reached = np.cumsum(counts[::-1])[::-1] / counts.sum()  # by sums at least that large: orders as far from C's
    far = np.flatnonzero((reached <= CHANCE) & (counts > 0))
    if not len(far):
        return -1.0
    rho = 1 - 6 * int(far[0]) / (points**3 - points)
    return min(math.trunc(rho * 1000) / 1000, WEAKEST)


def squared_rank_differences(points: int) -> NDArray[np.int64]:
    """How many of all orders of ``points`` ranks have the sum 0, 1, 2, ... of squared differences to 1, 2, 3, ..."""
    most = (points**3 - points) // 3
    ways = {0: np.eye(1, most + 1, dtype=np.int64)[0]}  # by the set of ranks given away so far
    for place in range(points):
        later: dict[int, NDArray[np.int64]] = {}
        for used, counts in ways.items():
            for rank in range(points):
                if used & (1 << rank):
                    continue
                d, key = (rank - place) ** 2, used | (1 << rank)
                total = later.setdefault(key, np.zeros(most + 1, dtype=np.int64))
                total[d:] += counts[: most + 1 - d]
        ways = later
    return ways[(1 << points) - 1]


def factor(steps: ArrayLike) -> Array:
    """By what factor two points of a curve differ in steps, (seeds, points): (seeds,), the geometric mean over pairs.

    It does not grow with the number of points, as the factor between the slowest and the fastest would.
    """
    logs = np.log(np.asarray(steps, dtype=float))
    first, second = np.triu_indices(logs.shape[-1], 1)  # every pair once
    return np.exp(np.abs(logs[..., first] - logs[..., second]).mean(axis=-1))


def relative_variation(steps: ArrayLike, on_normal: ArrayLike) -> Array:
    """How much speed varies along a level curve, as a multiple of how much it does along the normal curve: (seeds,).

    The ratio of the logarithms of ``factor``; ``steps`` and ``on_normal``, (seeds, points), are at most the run's
    length. On the normal curve this understates the variation, against the claim. 1 where nothing varies there.
    """
    level, normal = np.log(factor(steps)), np.log(factor(on_normal))
    return np.where(normal > 0, level / np.where(normal > 0, normal, 1.0), 1.0)


def varies_less(levels: Sequence[ArrayLike], on_normal: ArrayLike, length: float) -> Estimate:
    """``relative_variation``, the mean over the level curves, and over seeds with Student's interval.

    A run on a level curve that took the whole ``length`` never got there: its curve may vary more than it seems. The
    interval's upper end takes such a curve to vary at least as much as the normal curve.
    """
    least = [relative_variation(steps, on_normal) for steps in levels]
    missed = [(np.asarray(steps) >= length).any(axis=-1) for steps in levels]
    most = [np.where(never, np.maximum(ratio, 1.0), ratio) for ratio, never in zip(least, missed, strict=True)]
    low, high = mean(np.mean(least, axis=0)), mean(np.mean(most, axis=0))

    def interval(level: float) -> Interval:
        ends = [found.interval(level) if found.interval else EVERYTHING for found in (low, high)]
        return min(ends[0][0], ends[1][0]), max(ends[0][1], ends[1][1])

    return replace(low, interval=interval)


# --- what chance would do ---


def passes(found: Estimate, limit: float) -> bool:
    """Whether the whole 95 % interval lies at or below the limit."""
    return found.interval is not None and found.interval(0.95)[1] <= limit


def shuffled_order(c: ArrayLike, values: ArrayLike, limit: float, draws: int) -> float:
    """The share of shuffles of C over a curve's points that pass the test of order (a fixed random stream)."""
    generator = np.random.default_rng(0)
    return float(np.mean([passes(goes_with(generator.permutation(c), values), limit) for _ in range(draws)]))


def shuffled_curves(
    levels: Sequence[ArrayLike], on_normal: ArrayLike, length: float, limit: float, draws: int
) -> float:
    """The share of shuffles of all three curves' points among the curves that pass the test of the level curves."""
    curves = [np.asarray(steps) for steps in (*levels, on_normal)]
    everything, ends = np.concatenate(curves, axis=1), np.cumsum([steps.shape[1] for steps in curves])[:-1]
    generator = np.random.default_rng(0)

    def passed() -> bool:
        *some, normal = np.split(generator.permutation(everything, axis=1), ends, axis=1)
        return passes(varies_less(some, normal, length), limit)

    return float(np.mean([passed() for _ in range(draws)]))


# --- a task's results, curve by curve ---


@dataclass(frozen=True)
class Found:
    """What a task's runs gave at the points of a plan; ``measure`` is ``steps`` or ``loss``."""

    plan: Plan
    data: xr.Dataset

    @property
    def length(self) -> int:
        """Steps of a run."""
        return int(self.data.attrs["length"])

    def on(self, curve: str, measure: str, tuning: str) -> Array:
        """A measure over a curve's points: (seeds, points)."""
        return self.plan.on(curve, self.data[measure].sel(tuning=tuning).values)

    def levels(self, tuning: str) -> list[Array]:
        """Steps on each level curve."""
        return [self.on(name, "steps", tuning) for name in self.plan.levels]

    def order(self, curve: str, measure: str, tuning: str) -> Estimate:
        """``goes_with`` of C and a measure on a curve."""
        return goes_with(self.plan.on(curve, self.plan.c), self.on(curve, measure, tuning))

    def level(self, tuning: str) -> Estimate:
        """``varies_less`` of the level curves."""
        return varies_less(self.levels(tuning), self.on(NORMAL, "steps", tuning), self.length)

    def order_by_chance(self, draws: int, curve: str, measure: str, tuning: str, limit: float) -> float:
        """``shuffled_order`` of C and a measure on a curve."""
        return shuffled_order(self.plan.on(curve, self.plan.c), self.on(curve, measure, tuning), limit, draws)

    def level_by_chance(self, draws: int, tuning: str) -> float:
        """``shuffled_curves`` of the normal and the level curves."""
        return shuffled_curves(self.levels(tuning), self.on(NORMAL, "steps", tuning), self.length, HALF, draws)

    def at_edge(self, curve: str, measure: str) -> int:
        """At how many of a curve's points the tuned learning rate is the first or the last of the grid."""
        places = self.plan.on(curve, self.data[f"lr_of_{measure}"].sel(tuning=TUNED).values)
        return int(np.isin(places, (0, len(self.data.attrs["lrs"]) - 1)).sum())

    def missed(self, curve: str, tuning: str) -> int:
        """How many of a curve's runs never got to the target."""
        return int(self.plan.on(curve, self.data["missed"].sel(tuning=tuning).values).sum())

    def remark(self, measure: str, tuning: str, *curves: str) -> str:
        """What a reader of a verdict on ``curves`` must know: tuned rates at the grid's edge, or nothing."""
        edge = sum(self.at_edge(curve, measure) for curve in curves)
        points = sum(len(self.plan.where[curve]) for curve in curves)
        if tuning == UNTUNED or not edge:
            return ""
        return f"at {edge} of {points} points the tuned learning rate is the first or the last of the grid"


def found(
    plan: Plan, task: str, lrs: Sequence[float], seeds: Sequence[int], steps: int, every: int, target: float
) -> Found:
    """The ``measured`` results of a task's sweep."""
    return Found(plan, measured(trained(task, plan.points, lrs, seeds, steps, every), target))


# --- tables ---


def rate_rows(results: Mapping[str, Found], measure: str) -> Rows:
    """For a table: at the points of every curve the tuned rates, how many at the grid's edge, runs without success."""
    rows: Rows = []
    for task, of in results.items():
        rates, seeds = np.asarray(of.data.attrs["lrs"]), of.data.sizes["seed"]
        for curve, index in of.plan.where.items():
            tuned = rates[of.plan.on(curve, of.data[f"lr_of_{measure}"].sel(tuning=TUNED).values)]
            missed = [f"{of.missed(curve, tuning)} of {seeds * len(index)}" for tuning in TUNINGS]
            edge = f"{of.at_edge(curve, measure)} of {len(index)}"
            rows.append((task, curve, f"{tuned.min():g} … {tuned.max():g}", edge, *missed))
    return rows


def factor_rows(results: Mapping[str, Found]) -> Rows:
    """For a table: the median over seeds of the factor in steps between two points of a curve."""
    return [
        (task, tuning, *(f"{np.median(factor(of.on(curve, 'steps', tuning))):.2f}" for curve in of.plan.curves))
        for task, of in results.items()
        for tuning in TUNINGS
    ]


def inside_rows(results: Mapping[str, Found]) -> Rows:
    """For a table: the rank correlations on the part of the normal curve with C > 0, the mean over seeds."""
    rows: Rows = []
    for task, of in results.items():
        c = of.plan.on(NORMAL, of.plan.c)
        for tuning in TUNINGS:
            values = [of.on(NORMAL, measure, tuning)[:, c > 0] for measure in ("steps", "loss")]
            rows.append((task, tuning, *(f"{correlations(c[c > 0], part).mean():+.2f}" for part in values)))
    return rows


def look_rows(results: Mapping[str, Found]) -> Rows:
    """For a table: over all points, the rank correlations of steps with C, gamma, beta; of two, with the other held."""
    rows: Rows = []
    for task, of in results.items():
        beta, gamma = np.transpose(of.plan.points)
        looks = ((of.plan.c, None), (gamma, None), (beta, None), (of.plan.c, gamma), (gamma, of.plan.c))
        for tuning in TUNINGS:
            steps = of.data["steps"].sel(tuning=tuning).values
            means = (np.mean([rank_correlation(x, of_seed, other) for of_seed in steps]) for x, other in looks)
            rows.append((task, tuning, *(f"{value:+.2f}" for value in means)))
    return rows


# --- popular settings ---

POPULAR = {
    "Adam's default": (0.999, 0.9),
    "shorter second memory": (0.99, 0.9),
    "large language models": (0.95, 0.9),
    "equal, long": (0.95, 0.95),
    "equal, short": (0.9, 0.9),
    "more momentum": (0.999, 0.99),
    "less momentum": (0.999, 0.5),
    "RMSprop": (0.999, 0.0),
    "default with β and γ exchanged": (0.9, 0.999),
}  # beta, gamma


def popular_rows() -> Rows:
    """For a table: where the popular settings lie, and how large an update can become there."""
    rows: Rows = []
    for name, (beta, gamma) in POPULAR.items():
        said = stability.describe((gamma, beta))
        most = f"{said.bound:.3g}" if np.isfinite(said.bound) else f"grows as e^({said.growth_rate:.2g} n)"
        memory = [f"{steps:.4g}" for steps in said.memories]
        rows.append((name, f"β = {beta:g}, γ = {gamma:g}", f"{said.c:.3g}", most, *memory))
    return rows
