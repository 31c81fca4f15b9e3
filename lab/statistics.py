"""Intervals: every statistical claim carries one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Interval = tuple[float, float]


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """Mean of independent ``values``, shape (seeds,), and its Student-t confidence interval; infinite for one value."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, (-np.inf, np.inf)
    half = float(stats.t.ppf((1 + level) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return mean, (mean - half, mean + half)


def bootstrap_interval(values: ArrayLike, level: float = 0.95, draws: int = 10_000) -> tuple[float, Interval]:
    """Mean of independent ``values``, shape (n,), and its percentile bootstrap interval (a fixed random stream)."""
    array = np.asarray(values, dtype=float)
    chosen = np.random.default_rng(0).integers(len(array), size=(draws, len(array)))
    low, high = np.quantile(array[chosen].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    mean = float(array.mean())
    return mean, (min(float(low), mean), max(float(high), mean))


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
