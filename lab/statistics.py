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
