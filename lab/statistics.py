"""Intervals: every statistical claim carries one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Interval = tuple[float, float]
EVERYTHING = (-np.inf, np.inf)
Test = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]  # of lower and upper ends


@dataclass(frozen=True)
class Estimate:
    """A measured number, and how sure it is.

    Attributes:
        value: the number.
        interval: the confidence interval at a level, or None where there is no chance in it.
        n: how many ``unit`` it rests on, or None.
        unit: what is counted, such as seeds.
        how: by which statistic.
        shown: the number in words where it would mislead, such as "4 of 5".
    """

    value: float
    interval: Callable[[float], Interval] | None = None
    n: int | None = None
    unit: str = "seeds"
    how: str = ""
    shown: str = ""


def mean(values: ArrayLike, unit: str = "seeds") -> Estimate:
    """Mean of independent finite ``values``, shape (n,), with Student's interval. Not for shares, counts or give-ups.

    Raises:
        ValueError: a value is not finite.
    """
    array = _finite(values)
    value = float(array.mean())
    return Estimate(value, lambda level: mean_interval(array, level)[1], len(array), unit, "mean, Student's t,")


def median(values: ArrayLike, unit: str = "seeds") -> Estimate:
    """Median of independent ``values``, shape (n,), some of which may be infinite: a run that diverged or gave up.

    The interval lies between two of the sorted values, by the binomial distribution of how many are below the median;
    it is unbounded where n values cannot give that level.

    Raises:
        ValueError: a value is NaN.
    """
    array = np.sort(np.asarray(values, dtype=float))
    if np.isnan(array).any() or not len(array):
        raise ValueError(f"values: {values!r} (must be numbers, at least one)")

    def interval(level: float) -> Interval:
        skipped = int(stats.binom.ppf((1 - level) / 2, len(array), 0.5))  # P(fewer than that below) ≤ (1 - level)/2
        if skipped < 1:
            return EVERYTHING
        return float(array[skipped - 1]), float(array[len(array) - skipped])

    middle = float(np.median(array)) if np.isfinite(array).all() else float(array[(len(array) - 1) // 2])
    return Estimate(middle, interval, len(array), unit, "median, order statistics,")


def share(successes: int, n: int, unit: str = "seeds") -> Estimate:
    """A share of independent trials, in words "k of n", with the exact (Clopper-Pearson) interval.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or no trials.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: {successes!r} (must be from 0 to n = {n!r}, which must be at least 1)")

    def interval(level: float) -> Interval:
        found = stats.binomtest(int(successes), int(n)).proportion_ci(level, method="exact")
        return float(found.low), float(found.high)

    return Estimate(successes / n, interval, n, unit, "share, exact interval,", f"{successes} of {n}")


def share_of(holds: ArrayLike) -> Estimate:
    """In how many seeds something ``holds``, (seeds,): their ``share``."""
    yes = np.asarray(holds, dtype=bool)
    return share(int(yes.sum()), len(yes))


def ahead(differences: ArrayLike) -> Estimate:
    """How many of several comparisons, (comparisons, seeds), are below zero in the mean.

    The interval goes from those certainly below to those possibly below, by intervals that hold for all comparisons
    together (``simultaneous_intervals``).
    """
    return _counted(differences, lambda low, high: high < 0, lambda low, high: low < 0, "ahead")


def within(differences: ArrayLike, half: float) -> Estimate:
    """How many of several comparisons, (comparisons, seeds), are at most ``half`` in the mean, whatever their sign.

    The interval goes from those certainly within to those possibly within, as that of ``ahead``.
    """
    return _counted(
        differences,
        lambda low, high: (low >= -half) & (high <= half),
        lambda low, high: (low <= half) & (high >= -half),
        "within",
    )


def _counted(differences: ArrayLike, surely: Test, possibly: Test, word: str) -> Estimate:
    """How many comparisons pass a test of the ends of their intervals; a mean is an interval without width."""
    array = np.asarray(differences, dtype=float)

    def interval(level: float) -> Interval:
        low, high = simultaneous_intervals(array, level)[1].T
        return float(surely(low, high).sum()), float(possibly(low, high).sum())

    middle = array.mean(axis=1)
    count = int(surely(middle, middle).sum())
    how = f"those surely {word} to those possibly {word},"
    return Estimate(float(count), interval, array.shape[1], "seeds", how, f"{count} of {len(array)}")


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"values: {values!r} (must be finite numbers, at least one)")
    return array


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """Mean of independent ``values``, shape (seeds,), and its Student-t confidence interval; infinite for one value."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, (-np.inf, np.inf)
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, (mean - half, mean + half)


def regression(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line of y on x; NaN where all x are equal."""
    if np.ptp(x) == 0:
        return np.nan, np.nan
    result = stats.linregress(x, y)
    return float(result.slope), float(result.intercept)


def rank_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> float:
    """Spearman's rho of x and y, (n,); with ``given``, (n,), the partial one, of what is not linear in its ranks.

    Ties share their mean rank, so that runs which never got there (infinite) are last together. Zero where something
    is constant, or wholly a function of ``given`` by ranks: no order is left to agree with.
    """
    ranks = [stats.rankdata(values) for values in (x, y)]
    ranks = [rank - rank.mean() for rank in ranks]
    if given is not None:
        other = stats.rankdata(given)
        other = other - other.mean()
        ranks = [rank - other * (rank @ other) / max(float(other @ other), 1.0) for rank in ranks]
    size = float(np.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    return float(np.clip(ranks[0] @ ranks[1] / size, -1, 1)) if size > 1e-9 else 0.0


def simultaneous_intervals(
    differences: ArrayLike, level: float = 0.95, draws: int = 20_000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of ``differences``, (comparisons, seeds), and intervals, (comparisons, 2), that hold all together.

    The studentised bootstrap of the largest |t| (fixed random stream): seeds are drawn anew from the normal
    distribution that has the sample's covariances, so what comparisons share (a common baseline, a seed) is not paid
    for twice. One comparison gets Student's interval; one seed gives infinite ones. Differences that are the same for
    every seed get an interval without width.

    Raises:
        ValueError: not two dimensions, or a difference that is not finite.
    """
    array = np.asarray(differences, dtype=float)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"differences: shape {array.shape} (must be (comparisons, seeds), all finite)")
    comparisons, seeds = array.shape
    mean = array.mean(axis=1)
    if seeds < 2:
        return mean, np.stack([np.full(comparisons, -np.inf), np.full(comparisons, np.inf)], axis=1)
    centred = array - mean[:, None]
    weights = np.random.default_rng(0).standard_normal((draws, seeds, seeds))
    drawn = np.matmul(centred, weights)  # (draws, comparisons, seeds)
    error = drawn.std(axis=2, ddof=1)
    with np.errstate(invalid="ignore"):
        t = np.abs(drawn.mean(axis=2)) / np.where(error > 0, error, np.inf)  # times the root of seeds
    half = np.quantile(t.max(axis=1), level) * array.std(axis=1, ddof=1)
    return mean, np.stack([mean - half, mean + half], axis=1)
