"""Bounds on Adam's update, and the stable region of its hyperparameters (beta, gamma).

Symbols: ``beta`` decays the second moment and ``gamma`` the first (torch's ``betas[1]`` and ``betas[0]``);
n = 0, 1, 2, ... is the step index; u_n is the update at eps = 0. For Adam, |u_n| is bounded by a number
that depends on (beta, gamma, n) alone:

* ``exact_bound``: Cauchy-Schwarz on the discrete sums. It is attained (``extremal_gradients``), and it stays
  finite as n grows if and only if r = gamma^2 / beta < 1.
* ``continuous_bound``: the paper's, from the continuous-time kernels. It stays finite if and only if
  C = ``coefficient`` > 0, where C agrees with -ln r to first order in 1 - beta and 1 - gamma.

For k-Adam both hold with the rates of the last stage. All functions take floats or NumPy arrays that
broadcast, compute in float64, and raise ``ValueError`` for rates outside their range. Sources: Gould & Tanaka,
arXiv 2411.05746, section 3, for C and the continuous bound; ``notebooks/02_stable_region.ipynb`` derives both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from kadam.stages import Betas, make_stages

Array = NDArray[np.float64]


def coefficient(beta: ArrayLike, gamma: ArrayLike) -> Array:
    """C(beta, gamma) = 2/gamma - 1/beta - 1 of the paper; the stable region is C > 0.

    Rates in [0, 1), by the limits at zero: infinity at gamma = 0, -infinity at beta = 0 < gamma.
    """
    beta, gamma = _rates(beta, gamma)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gamma == 0, np.inf, 2 / gamma - 1 / beta - 1)


def exact_growth_rate(beta: ArrayLike, gamma: ArrayLike) -> Array:
    """(1/2) ln r with r = gamma^2 / beta: the growth per step of ln ``exact_bound`` as n grows, where r > 1.

    It is also the exact growth of ln |u_n| of a coordinate whose gradient has vanished, apart from the bias
    corrections: there m decays as gamma^n and sqrt(v) as beta^(n/2). Negative means decay. Rates in [0, 1), by the
    limits at zero: -infinity at gamma = 0, infinity at beta = 0 < gamma.
    """
    beta, gamma = _rates(beta, gamma)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gamma == 0, -np.inf, np.log(gamma) - np.log(beta) / 2)


def continuous_growth_rate(beta: ArrayLike, gamma: ArrayLike) -> Array:
    """-C/2: the paper's growth per step of ln ``continuous_bound`` as n grows, where C < 0. Rates in [0, 1)."""
    return -coefficient(beta, gamma) / 2


def exact_bound(n: ArrayLike, beta: ArrayLike, gamma: ArrayLike) -> Array:
    """B_n = (1-gamma)/sqrt(1-beta) sqrt(1-beta^(n+1))/(1-gamma^(n+1)) sqrt(sum_{j=0..n} r^j), r = gamma^2/beta.

    No gradient sequence makes |u_n| of Adam larger. B_0 = 1; infinite where a number overflows, and for
    beta = 0 < gamma, n > 0. n may be infinite: the limit, (1-gamma) / sqrt((1-beta) (1-r)) for r < 1. Rates in [0, 1).
    """
    with np.errstate(over="ignore"):
        return np.exp(log_exact_bound(n, beta, gamma))


def log_exact_bound(n: ArrayLike, beta: ArrayLike, gamma: ArrayLike) -> Array:
    """ln ``exact_bound``, which does not overflow."""
    beta, gamma = _rates(beta, gamma)
    n = _steps(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_beta, log_gamma = np.log(beta), np.log(gamma)
        log_r = 2 * log_gamma - log_beta  # nan for beta = gamma = 0, where only j = 0 counts
        log_sum = np.where(gamma == 0, 0.0, _log_geometric_sum(log_r, n))
        rest = (
            np.log1p(-gamma)
            - np.log1p(-beta) / 2
            + np.log(-np.expm1((n + 1) * log_beta)) / 2
            - np.log(-np.expm1((n + 1) * log_gamma))
        )
    return np.where(n == 0, 0.0, rest + log_sum / 2)


def log_vanished_update(n: ArrayLike, beta: ArrayLike, gamma: ArrayLike) -> Array:
    """ln |u_n| of a coordinate whose gradient vanished before step n, up to a constant::

        n (1/2) ln r + (1/2) ln(1 - beta^(n+1)) - ln(1 - gamma^(n+1)),   r = gamma^2 / beta

    After the gradient has vanished m_n falls as gamma^n and v_n as beta^n, exactly; the rest is bias
    correction. Rates in (0, 1).
    """
    beta, gamma = _rates(beta, gamma, positive=True)
    n = _steps(n)
    corrections = np.log(-np.expm1((n + 1) * np.log(beta))) / 2 - np.log(-np.expm1((n + 1) * np.log(gamma)))
    return n * exact_growth_rate(beta, gamma) + corrections


def continuous_bound(n: ArrayLike, beta: ArrayLike, gamma: ArrayLike) -> Array:
    """The paper's bound on |u(t_n)| of continuous-time Adam (zero initial mass, bias-corrected)::

        (1-gamma)/gamma sqrt(beta/(1-beta)) sqrt(1-beta^(n+1))/(1-gamma^(n+1)) sqrt((1 - e^{-Cn})/C)

    The last factor is sqrt(n) at C = 0. This does not bound the discrete algorithm. Rates in (0, 1).
    """
    beta, gamma = _rates(beta, gamma, positive=True)
    n = _steps(n)
    c = coefficient(beta, gamma)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        last = np.where(c == 0, n, -np.expm1(-c * n) / np.where(c == 0, 1, c))
        return (
            (1 - gamma) / gamma * np.sqrt(beta / (1 - beta))
            * np.sqrt(-np.expm1((n + 1) * np.log(beta))) / -np.expm1((n + 1) * np.log(gamma))
            * np.sqrt(last)
        )  # fmt: skip


def extremal_gradients(n: int, beta: float, gamma: float) -> Array:
    """The gradients g_0 ... g_n, shape (n + 1,), for which |u_n| equals ``exact_bound``: g_j = (beta/gamma)^j.

    Any multiple attains it too, and nothing else does. Scaled so that the largest is 1. Rates in (0, 1).

    Raises:
        ValueError: the sequence is so steep or long that its squares would underflow in float64.
    """
    beta_, gamma_ = _rates(beta, gamma, positive=True)
    j = np.arange(int(_steps(n)) + 1)
    exponent = j * (np.log(beta_) - np.log(gamma_))
    if np.ptp(exponent) > 340:  # e^-680 is near the least normal number
        raise ValueError(
            f"n: {n} (at beta = {beta}, gamma = {gamma} float64 holds it up to {int(340 / abs(exponent[1]))})"
        )
    sequence: Array = np.exp(exponent - exponent.max())
    return sequence


def level_curve(gamma: ArrayLike, c: float = 0.0) -> Array:
    """The beta at which C(beta, gamma) = ``c``: 1/beta = 2/gamma - 1 - c. NaN where that is no rate in (0, 1).

    ``gamma`` in (0, 1).
    """
    _, gamma = _rates(0.5, gamma, positive=True)
    inverse = 2 / gamma - 1 - c
    return np.where(inverse > 1, 1 / np.where(inverse > 1, inverse, 1), np.nan)


def normal_curve(gamma: ArrayLike, through: tuple[float, float] = (0.999, 0.9)) -> Array:
    """The beta of the curve perpendicular to the level curves of C that passes ``through`` (beta, gamma).

    It is 2 beta^3 + gamma^3 = const, because grad C = (1/beta^2, -2/gamma^2). NaN where that is no rate in (0, 1).
    """
    beta0, gamma0 = _rates(*through, positive=True)
    _, gamma = _rates(0.5, gamma, positive=True)
    beta = np.cbrt((2 * beta0**3 + gamma0**3 - gamma**3) / 2)
    return np.where((beta > 0) & (beta < 1), beta, np.nan)


def normal_curve_at(c: ArrayLike, through: tuple[float, float] = (0.999, 0.9)) -> tuple[Array, Array]:
    """The points (beta, gamma) of the normal curve ``through`` a point at which C takes the values ``c``.

    Raises:
        ValueError: the curve leaves the unit square before it reaches one of the values; names the range.
    """
    beta0, gamma0 = (float(rate) for rate in _rates(*through, positive=True))
    total = 2 * beta0**3 + gamma0**3
    tiny = 1e-9
    low = max(tiny, float(np.cbrt(total - 2 * (1 - tiny) ** 3)))
    high = min(1 - tiny, float(np.cbrt(total - 2 * tiny**3)))

    def c_at(gamma: float) -> float:
        return float(coefficient(normal_curve(gamma, through), gamma))

    values = np.asarray(c, dtype=float)
    least, most = c_at(high), c_at(low)
    if not np.all((values >= least) & (values <= most)):
        raise ValueError(f"c: {c!r} (on the normal curve through {through} C lies in [{least:.4g}, {most:.4g}])")
    gammas = [brentq(lambda gamma, v=value: c_at(gamma) - v, low, high, xtol=1e-15) for value in values.ravel()]
    gamma = np.reshape(gammas, values.shape)
    return normal_curve(gamma, through), gamma


@dataclass(frozen=True)
class Description:
    """Where a choice of ``betas`` lies, as numbers; ``str`` puts them in words. Made by ``describe``.

    Attributes:
        gamma, beta: rates of the last stage, which alone bounds the update.
        k: number of stages.
        c: ``coefficient``; > 0 in the paper's stable region.
        bound: limit of ``exact_bound``: no update is ever larger. Infinite from gamma^2 = beta on.
        growth_rate: ``exact_growth_rate``, per step; > 0 where the bound grows exponentially.
        memories: 1/(1-gamma) and 1/(1-beta), in steps: over how many the moments average.
    """

    gamma: float
    beta: float
    k: int
    c: float
    bound: float
    growth_rate: float
    memories: tuple[float, float]

    def __str__(self) -> str:
        special = {(True, True): " (signSGD)", (True, False): " (RMSprop)"}.get((self.gamma == 0, self.beta == 0), "")
        last = f", the last of {self.k} stages" if self.k > 1 else ""
        side = "inside" if self.c > 0 else "at the edge of" if self.c == 0 else "outside"
        if self.bound < np.inf:
            what = f"No gradients can make an update larger than {self.bound:.4g}."
            if self.c <= 0:
                what += " The paper's bound grows here, the exact one does not: gamma^2 < beta."
        elif self.beta == 0:
            what = "An update has no bound: the second moment forgets at once what the first remembers."
        else:
            how = f"e^({self.growth_rate:.3g} n)" if self.growth_rate > 0 else "the square root of n"
            what = f"The bound on an update grows as {how}: {digits_of_exact_bound(self.beta, self.gamma)}."
            if self.growth_rate > 0:
                what += " So does an update whose gradient has vanished, until eps stops it."
        return (
            f"(gamma, beta) = ({self.gamma:.6g}, {self.beta:.6g}){last}{special}: {side} the stable region, "
            f"C = {self.c:.4g}. {what} Memory in steps: {self.memories[0]:.4g} of the first moment, "
            f"{self.memories[1]:.4g} of the second."
        )


def describe(betas: Betas, k: int = 1, schedule: str = "inverse_exp") -> Description:
    """What the theory says of ``betas``, given as ``KAdam`` takes them: (gamma, beta), first moment before second.

    Args:
        betas, k, schedule: as in ``kadam.make_stages``, with its errors; k = 1 is Adam.
    """
    gamma, beta = (float(rate) for rate in make_stages(betas, k, schedule)[-1])
    rate, bound = float(exact_growth_rate(beta, gamma)), float(exact_bound(np.inf, beta, gamma))
    if abs(rate) < 1e-12:  # 0.9^2 is not quite 0.81
        rate, bound = 0.0, np.inf
    return Description(
        gamma, beta, int(k), float(coefficient(beta, gamma)), bound, rate, (1 / (1 - gamma), 1 / (1 - beta))
    )


def digits_of_exact_bound(beta: float, gamma: float) -> str:
    """``exact_bound`` after 100 and after 10,000 steps, in words, as powers of ten."""
    early, late = log_exact_bound([100, 10_000], beta, gamma) / np.log(10)
    return f"10^{early:.1f} at step 100, 10^{late:.1f} at step 10,000"


def _log_geometric_sum(log_r: Array, n: Array) -> Array:
    """ln sum_{j=0..n} r^j, without overflow, given ln r."""
    # for r > 1 the sum is r^n times the same sum of 1/r
    small = -np.abs(log_r)
    series = np.where(small == 0, n + 1, np.expm1((n + 1) * small) / np.where(small == 0, 1, np.expm1(small)))
    return np.log(series) + np.where(log_r > 0, n * log_r, 0)


def _rates(beta: ArrayLike, gamma: ArrayLike, positive: bool = False) -> tuple[Array, Array]:
    arrays = []
    for name, rate in (("beta", beta), ("gamma", gamma)):
        array: Any = np.asarray(rate, dtype=float)
        lowest = array > 0 if positive else array >= 0
        if not np.all(lowest & (array < 1)):
            raise ValueError(f"{name}: {rate!r} (must lie in {'(0, 1)' if positive else '[0, 1)'})")
        arrays.append(array)
    return arrays[0], arrays[1]


def _steps(n: ArrayLike) -> Array:
    array = np.asarray(n, dtype=float)
    if not np.all((array >= 0) & (array == np.floor(array))):
        raise ValueError(f"n: {n!r} (the step index must be a whole number >= 0)")
    return array
