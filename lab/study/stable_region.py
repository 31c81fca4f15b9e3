"""Page 02, the stable region: the page's runs, and what makes numbers of them.

``beta`` decays the second moment and ``gamma`` the first. *Updates* are the largest update over all parameters, step by
step; their *growth* is the slope of its logarithm over the last steps of a run. Beyond the exact edge, gamma^2 = beta,
theory lets it grow; the paper's edge is C = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from kadam import stability
from lab.experiments.quadratic import quadratic_map
from lab.experiments.stable_region import transformer_on_words
from lab.grid import grid
from lab.hostile import Rates, hostile_sequences, ratio_to_bound
from lab.statistics import regression

Array = NDArray[np.float64]
Pair = tuple[float, float]
Settings = dict[str, Any]
Rows = list[tuple[str, ...]]

DEFAULT: Pair = (0.999, 0.9)  # beta, gamma
LEAST, MOST = -0.048, 0.2  # the values of C between which the points of the normal curve lie
WATCHED = 50  # coordinates with the largest last update
GROWN = 20.0  # a largest update above this has grown; inside the exact edge no sequence gets there in the steps taken
VANISHED = 0.01  # of the first moment: what the last gradients of a vanished coordinate add to it
FEW = 0.05  # share of a plane: no more than this is "hardly any", this or more is "some"
LAST_STEPS = 50  # of a single pass, over which its loss is taken: the text is new, so it is loss on unseen text
SHORT_GAMMAS = (0.5, 0.7)  # short memories, where the two edges lie far apart
POSITIONS = (-1.0, -0.5, -0.25, 0.5)
STRONG = 4  # among these points: gamma = 0.7 at position -1
BLOCKS = 8  # of text: a full gradient is over all of them
DEFAULT_LRS = [0.004, 0.008, 0.016]  # among which the default is tuned
QUADRATIC_LRS = [1e-3, 1e-1, 1.0]
ATTAINING: list[Pair] = [(0.999, 0.9), (0.95, 0.9), (0.9, 0.97), (0.9523, 0.9987)]  # where the bound is attained


# --- points of the plane ---


@dataclass(frozen=True)
class Points:
    """Pairs (beta, gamma), and what the theory says of them; every array has shape (points,)."""

    beta: Array
    gamma: Array

    @property
    def c(self) -> Array:
        """The paper's C."""
        return stability.coefficient(self.beta, self.gamma)

    @property
    def rate(self) -> Array:
        """The exact rate of growth, per step; negative inside the exact edge."""
        return stability.exact_growth_rate(self.beta, self.gamma)

    @property
    def pairs(self) -> list[Pair]:
        """The points as plain numbers."""
        return [(float(beta), float(gamma)) for beta, gamma in zip(self.beta, self.gamma, strict=True)]

    def __getitem__(self, chosen: Any) -> Points:
        return Points(self.beta[chosen], self.gamma[chosen])

    def settings(self, **common: Any) -> dict[int, Settings]:
        """The arguments of a run at every point, by its number."""
        return {i: {"pairs": [list(pair)], **common} for i, pair in enumerate(self.pairs)}


def normal_curve(outside: int, inside: int) -> Points:
    """Points of the normal curve: so many with C < 0, evenly down to ``LEAST``, and with C > 0, up to ``MOST``."""
    below = LEAST * np.arange(outside, 0, -1) / outside
    above = MOST * np.arange(1, inside + 1) / inside
    return Points(*stability.normal_curve_at(np.concatenate([below, above])))


def across_the_edges() -> Points:
    """For each of ``SHORT_GAMMAS``, betas at ``POSITIONS``, which count from gamma^2 = beta (0) to C = 0 (1)."""
    gamma, position = (x.ravel() for x in np.meshgrid(SHORT_GAMMAS, POSITIONS, indexing="ij"))
    exact = gamma**2
    return Points(exact + position * (stability.level_curve(gamma) - exact), gamma)


def plane(side: int) -> Points:
    """side x side points over the whole plane, beta first."""
    axis = np.linspace(0.02, 0.98, side)
    return Points(*(x.ravel() for x in np.meshgrid(axis, axis, indexing="ij")))


# --- runs ---


def runs(label: str, settings: Mapping[Any, Settings], seeds: Iterable[int], **common: Any) -> xr.Dataset:
    """Transformers on words: axes ``point`` (the keys of ``settings``), ``seed``, then ``step``, then ``watched``."""
    dims = {"largest_update": ["step"], "loss": ["step"], "gradients": ["step", "watched"],
            "updates": ["step", "watched"], "carriers": ["watched"]}  # fmt: skip
    return grid(transformer_on_words, label, {"point": settings, "seed": [int(seed) for seed in seeds]}, dims, **common)


def variations(at: Pair, lr: float) -> dict[str, Settings]:
    """What should not change the growth at a point, and k-Adam with it as the last and as the first of two stages."""
    here, default = list(at), list(DEFAULT)
    return {
        "float64": dict(pairs=[here], lr=lr, dtype="float64"),
        "learning rate × 1/4": dict(pairs=[here], lr=lr / 4),
        "learning rate × 4": dict(pairs=[here], lr=4 * lr),
        "weight decay 0.1": dict(pairs=[here], lr=lr, weight_decay=0.1),
        "2-Adam, last stage outside": dict(pairs=[default, here], lr=lr),
        "2-Adam, last stage inside": dict(pairs=[here, default], lr=lr),
    }


def full_gradients(at: Pair, lr: float) -> Settings:
    """A run without gradient noise: every step reads the whole text, of ``BLOCKS`` blocks."""
    return dict(pairs=[list(at)], lr=lr, blocks=BLOCKS, batch=BLOCKS, dtype="float64")


def tunings(at: Pair, lrs: Sequence[float], eps: float) -> dict[str, Settings]:
    """Every learning rate at one point."""
    return {f"ε = {eps:g}, η = {lr:g}": dict(pairs=[list(at)], lr=lr, eps=eps) for lr in lrs}


def quadratic(side: int, seeds: Iterable[int], steps: int = 1000) -> xr.Dataset:
    """Adam on a convex quadratic over the plane at ``QUADRATIC_LRS``; axes ``seed``, ``lr``, ``beta``, ``gamma``."""
    axis = np.linspace(0.02, 0.98, side).tolist()
    names = ("update_grows", "loss_diverges", "largest_update", "diverged_at", "largest_last", "slope", "final_loss")
    found = grid(
        quadratic_map, "quadratic", {"seed": list(seeds)}, {name: ["lr", "beta", "gamma"] for name in names},
        betas=axis, gammas=axis, lrs=QUADRATIC_LRS, condition=100.0, steps=steps, window=steps // 5, eps=0.0,
    )  # fmt: skip
    return found.assign_coords(lr=QUADRATIC_LRS, beta=axis, gamma=axis)


def on_points(found: xr.Dataset) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Of quadratics, each (seeds, lrs, points): does the update still grow, does the loss diverge, has it ``GROWN``."""
    names = ("update_grows", "loss_diverges", "largest_update")
    grows, diverges, largest = (found[name].stack(point=("beta", "gamma")).values for name in names)
    return grows, diverges, largest > GROWN


def finished(found: xr.Dataset) -> xr.Dataset:
    """The seeds all of whose runs finished: a run that diverged has no growth."""
    whole = (found["outcome"] == "finished").all("point")
    return found.isel(seed=np.flatnonzero(whole.values))


# --- the bound ---


def ratio_of_hostile(batches: int, count: int = 20_000, steps: int = 200) -> float:
    """The largest |u_n| over the exact bound, n >= 1, of gradient sequences made to break it."""
    generator = np.random.default_rng(0)
    ratios = [ratio_to_bound(*hostile_sequences(count, steps, generator))[1:].max() for _ in range(batches)]
    return float(np.max(ratios))


def ratio_of_extremal(n: int = 300) -> float:
    """|u_n| over the exact bound of the sequence that is to attain it: at ``ATTAINING``, the one farthest from 1."""
    ratios = [ratio_to_bound(stability.extremal_gradients(n, *pair)[None], _rates(pair, 1))[-1] for pair in ATTAINING]
    return float(max(ratios, key=lambda ratio: abs(ratio - 1)))


def ratio_to_bounds(updates: ArrayLike, points: Points) -> float:
    """The largest update over the exact bound, n >= 1; ``updates`` (points, seeds, steps). At n = 0 both are 1."""
    array = np.asarray(updates, dtype=float)
    bounds = np.array([stability.exact_bound(np.arange(array.shape[-1]), *pair) for pair in points.pairs])
    return float((array / bounds[:, None])[..., 1:].max())


def updates_of(gradients: ArrayLike, pair: Pair) -> Array:
    """The largest |u_n| of Adam at eps = 0 over gradient sequences, (sequences, steps) -> (steps,)."""
    array = np.asarray(gradients, dtype=float)
    bounds = stability.exact_bound(np.arange(array.shape[1]), *pair)
    return np.asarray(ratio_to_bound(array, _rates(pair, len(array))) * bounds)


def _rates(pair: Pair, count: int) -> Rates:
    return np.full(count, pair[0]), np.full(count, pair[1])


# --- growth ---


def growth(updates: ArrayLike, window: int) -> Array:
    """Least-squares slope of ln of ``updates``, (..., steps) -> (...), per step, over the last ``window`` steps."""
    return _slope(np.log(np.asarray(updates, dtype=float)), window)


def _slope(logs: Array, window: int) -> Array:
    x = np.arange(window) - (window - 1) / 2
    return np.asarray(logs[..., -window:] @ x / (x @ x))


def predicted(points: Points, steps: int, window: int) -> dict[str, Array]:
    """Growth at every point, (points,): by the paper, by the exact rate, and with the bias corrections of step 6."""
    every = np.arange(steps)
    logs = np.array([stability.log_vanished_update(every, *pair) for pair in points.pairs])
    return {"paper": -points.c / 2, "exact": points.rate, "vanished": _slope(logs, window)}


def regressions(prediction: ArrayLike, measured: ArrayLike) -> tuple[Array, Array]:
    """Slopes and intercepts, (seeds,) each, of measured growth (points, seeds) on predicted (points,)."""
    fits = np.array([regression(np.asarray(prediction), seed) for seed in np.asarray(measured).T])
    return fits[:, 0], fits[:, 1]


def error_ratio(one: ArrayLike, other: ArrayLike, measured: ArrayLike) -> Array:
    """Root mean square error of one prediction (points,) over that of another, (seeds,); measured (points, seeds)."""
    errors = [np.sqrt(np.mean((np.asarray(p)[:, None] - np.asarray(measured)) ** 2, axis=0)) for p in (one, other)]
    return np.asarray(errors[0] / errors[1])


def sets_in(points: Points, measured: ArrayLike) -> Array:
    """Where growth sets in, from gamma^2 = beta (0) to C = 0 (1): the mean over the gammas, (seeds,).

    For every gamma a line is drawn through measured growth, (points, seeds), over ln beta, in which the exact rate is
    linear; growth sets in where it is zero. Only points beyond the exact edge are used: within it nothing can grow, so
    what is measured there says nothing.
    """
    array, positions = np.asarray(measured, dtype=float), []
    for gamma in np.unique(points.gamma):
        used = (points.gamma == gamma) & (points.rate > 0)
        slopes, intercepts = regressions(np.log(points.beta[used]), array[used])
        edge, paper = gamma**2, float(stability.level_curve(gamma))
        positions.append((np.exp(-intercepts / slopes) - edge) / (paper - edge))
    return np.asarray(np.mean(positions, axis=0))


# --- the plane ---


def grown(found: xr.Dataset) -> NDArray[np.bool_]:
    """Whether the largest update of each run, (points, seeds), exceeded ``GROWN``, or the run diverged."""
    return np.asarray((found["largest_update"].max("step") > GROWN) | (found["outcome"] != "finished"))


def wrong(grew: ArrayLike, expected: ArrayLike) -> float:
    """The share of points at which growth was not as expected."""
    return float(np.mean(np.asarray(grew) != np.asarray(expected)))


def share_beyond(grew: ArrayLike, points: Points) -> float:
    """The share of the points beyond the exact edge that grew.

    Raises:
        ValueError: no point lies beyond it.
    """
    beyond = points.rate > 0
    if not beyond.any():
        raise ValueError(f"points: {points.pairs!r} (one at least must have gamma^2 > beta)")
    return float(np.asarray(grew)[beyond].mean())


def hardly_grows(grows: ArrayLike, points: Points) -> NDArray[np.bool_]:
    """Whether the update still grows at ``FEW`` of the points beyond the exact edge at most, at every learning rate.

    ``grows`` has shape (seeds, lrs, points); the result has shape (seeds,).
    """
    return np.asarray((np.asarray(grows)[..., points.rate > 0].mean(axis=-1) <= FEW).all(axis=-1))


def rates_differ(diverges: ArrayLike) -> NDArray[np.bool_]:
    """Whether the first and the last learning rate differ in divergence at ``FEW`` of the plane at least.

    ``diverges`` has shape (seeds, lrs, points); the result has shape (seeds,).
    """
    array = np.asarray(diverges)
    return np.asarray((array[:, 0] != array[:, -1]).mean(axis=-1) >= FEW)


# --- what carries the growth, and what ends it ---


def vanished(gradients: ArrayLike, gamma: float, window: int) -> NDArray[np.bool_]:
    """Whether the last ``window`` gradients, (..., steps, watched), add less than ``VANISHED`` of the first moment."""
    array = np.asarray(gradients, dtype=float)
    steps = array.shape[-2]
    terms = gamma ** (steps - 1 - np.arange(steps))[:, None] * array
    return np.asarray(np.abs(terms[..., -window:, :].sum(-2)) < VANISHED * np.abs(terms.sum(-2)))


def fading(gradients: ArrayLike, beta: float, gamma: float) -> Array:
    """How fast gradients fade from a fifth to two fifths of a run, over (beta/gamma)^n: median of the watched.

    ``gradients`` have shape (..., steps, watched). 1 is the fading that attains the bound; faster is more.
    """
    size = np.abs(np.asarray(gradients, dtype=float))
    first, last = size.shape[-2] // 5, 2 * size.shape[-2] // 5 - 1
    with np.errstate(divide="ignore"):
        fall = np.log(size[..., last, :]) - np.log(size[..., first, :])
    return np.asarray(np.median(fall, axis=-1) / (last - first) / np.log(beta / gamma))


def saturation(pair: Pair) -> float:
    """The exponent p of step 7: the largest update is proportional to eps^-p."""
    return float(2 * stability.exact_growth_rate(*pair) / -np.log(pair[0]))


def stopped(largest: ArrayLike, free: ArrayLike) -> NDArray[np.bool_]:
    """Which eps ended the growth: every run's largest update, (epsilons, seeds), is under half that without eps."""
    return np.asarray((np.asarray(largest) < 0.5 * np.asarray(free).mean()).all(axis=1))


def saturation_exponents(epsilons: ArrayLike, largest: ArrayLike, free: ArrayLike) -> Array:
    """The exponent of the largest update, (epsilons, seeds), in 1/eps, (seeds,), where eps ended the growth.

    Raises:
        ValueError: fewer than two of the epsilons ended it.
    """
    ended = stopped(largest, free)
    if ended.sum() < 2:
        raise ValueError(f"epsilons: {epsilons!r} (at least two must end the growth, {ended.sum()} do)")
    return regressions(-np.log(np.asarray(epsilons)[ended]), np.log(np.asarray(largest)[ended]))[0]


# --- does it harm? ---


def losses(found: xr.Dataset) -> Array:
    """Loss over the last steps of each run, (points, seeds); infinite where it diverged."""
    last = found["loss"].isel(step=slice(-LAST_STEPS, None)).mean("step")
    return np.asarray(last.where(found["outcome"] == "finished", np.inf))


def tuned(of: ArrayLike) -> Array:
    """The loss of each seed, (seeds,), in the setting that is best on the *other* seeds, from (settings, seeds)."""
    array = np.asarray(of, dtype=float)
    seeds = array.shape[1]
    if seeds == 1:
        return np.asarray(array.min(axis=0))
    others = [[i for i in range(seeds) if i != seed] for seed in range(seeds)]
    return np.array([array[array[:, rest].mean(axis=1).argmin(), seed] for seed, rest in enumerate(others)])


def best_at_edge(of: ArrayLike, lrs: Sequence[float]) -> bool:
    """Whether the best learning rate in the mean, of (lrs, seeds), is the first or the last."""
    best = int(np.asarray(of, dtype=float).mean(axis=1).argmin())
    return best in (0, len(lrs) - 1)


# --- tables ---


def curve_rows(points: Points, measured: Array, lost: Array) -> Rows:
    """Of every point its place, both rates, and mean growth and loss, (points, seeds)."""
    columns = (points.c, *zip(*points.pairs, strict=True), -points.c / 2, points.rate, measured.mean(1), lost.mean(1))
    digits = (3, 5, 5, 4, 4, 4, 1)
    return [
        tuple(f"{x:.{places}f}" for x, places in zip(row, digits, strict=True)) for row in zip(*columns, strict=True)
    ]


def quadratic_rows(diverges: ArrayLike, large: ArrayLike, points: Points) -> Rows:
    """Of every learning rate the shares of points, median of the seeds; arguments have shape (seeds, lrs, points)."""
    beyond = points.rate > 0
    parts = [np.asarray(large)[..., beyond], np.asarray(diverges)[..., beyond], np.asarray(diverges)[..., ~beyond]]
    shares = [np.median(part.mean(axis=-1), axis=0) for part in parts]
    return [(f"{lr:g}", *(f"{each[i]:.1%}" for each in shares)) for i, lr in enumerate(QUADRATIC_LRS)]


def mean_losses(found: xr.Dataset) -> list[tuple[str, float]]:
    """Every setting with its loss, mean of the seeds."""
    return list(zip(found["point"].values.tolist(), losses(found).mean(axis=1).tolist(), strict=True))
