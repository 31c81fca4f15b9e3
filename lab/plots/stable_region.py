"""Page 02's figures: growth of Adam's largest update over the plane of (beta, gamma), what carries it, what ends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from kadam import stability
from lab import figures
from lab.study.stable_region import GROWN, Pair, Points

Array = NDArray[np.float64]
WIDE = (7.0, 3.4)  # inches, at 90 dots: two panels in 630 pixels
NARROW = (5.4, 3.4)
DOTTED: dict[str, Any] = {**figures.THEORY, "linestyle": ":"}
SLOPE = "growth of ln ‖uₙ‖∞ a step"


def _minus(text: str) -> str:
    return text.replace("-", "−")


def growth(points: Points, updates: Array, measured: Array, window: int) -> Figure:
    """The largest update over a run at some points, with the exact bound; and its growth over C, with the paper's.

    ``updates`` have shape (points, seeds, steps), ``measured`` growth (points, seeds).
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    outside, steps = points.c < 0, updates.shape[-1]
    beyond = np.flatnonzero(outside)
    shown = sorted({beyond[0], beyond[len(beyond) // 3], beyond[2 * len(beyond) // 3], len(points.c) - 1})
    for i in shown:
        colour = figures.UNSTABLE if outside[i] else figures.STABLE
        figures.band(left, np.arange(steps), updates[i], color=colour, linewidth=1.2)
        left.plot(np.arange(steps), stability.exact_bound(np.arange(steps), *points.pairs[i]), **figures.THEORY)
        level = np.median(updates[i, :, -1])
        label = _minus(f"C = {points.c[i]:.3f}")
        left.annotate(label, (steps, level), (3, 0), textcoords="offset points", color=colour, va="center", fontsize=9)
    left.plot([], [], **figures.THEORY, label="exact bound")
    left.set(yscale="log", xlabel="step n", ylabel="largest update ‖uₙ‖∞", xlim=(0, 1.42 * steps))
    left.set(xticks=np.linspace(0, steps, 3))
    left.legend(loc="upper left")
    for side, colour, label in ((outside, figures.UNSTABLE, "C < 0"), (~outside, figures.STABLE, "C > 0")):
        x = np.repeat(points.c[side], measured.shape[1])
        right.plot(x, measured[side].ravel(), "o", color=colour, ms=4, alpha=0.7, label=f"measured, {label}")
    least = points.c.min()
    right.plot([least, 0, points.c.max()], [-least / 2, 0, 0], **figures.THEORY, label="paper: |C|/2, else 0")
    right.set(xlabel="C(β, γ)", ylabel=f"{SLOPE}, last {window}")
    right.legend()
    return fig


def errors(points: Points, prediction: Mapping[str, Array], measured: Array) -> Figure:
    """By how many per cent measured growth, (points, seeds), exceeds each prediction, over C < 0."""
    fig, ax = plt.subplots(figsize=NARROW)
    names = {"paper": "|C|/2", "exact": "½ ln(γ²/β)", "vanished": "½ ln(γ²/β), bias corrections"}
    for i, (name, marker) in enumerate(zip(names, "os^", strict=True)):
        off = 100 * (measured / prediction[name][:, None] - 1)
        colour = figures.PALETTE[2 + i]
        ax.plot(points.c, off.mean(axis=1), marker, color=colour, ms=5, label=names[name])
        ax.vlines(points.c, off.min(axis=1), off.max(axis=1), color=colour, lw=1)
    ax.axhline(0, **figures.THEORY)
    ax.set(xlabel="C(β, γ)", ylabel="measured above predicted (%)")
    ax.legend(title="prediction", loc="lower left")
    return fig


def edges(points: Points, measured: Array) -> Figure:
    """Growth at short memories, (points, seeds), over beta: a panel for every gamma, with both predictions."""
    gammas = np.unique(points.gamma)
    fig, axes = plt.subplots(1, len(gammas), figsize=WIDE, squeeze=False)
    for ax, gamma in zip(axes.flat, gammas, strict=True):
        here = points.gamma == gamma
        beta, values = points.beta[here], measured[here]
        for side, colour in ((points.rate[here] > 0, figures.UNSTABLE), (points.rate[here] <= 0, figures.STABLE)):
            ax.plot(np.repeat(beta[side], values.shape[1]), values[side].ravel(), "o", color=colour, ms=4, alpha=0.7)
        paper = float(stability.level_curve(gamma))
        line = np.linspace(beta.min(), max(paper, beta.max()) * 1.05, 200)
        ax.plot(line, np.maximum(0, stability.exact_growth_rate(line, gamma)), **figures.THEORY, label="½ ln(γ²/β)")
        ax.plot(line, np.maximum(0, stability.continuous_growth_rate(line, gamma)), **DOTTED, label="paper: |C|/2")
        ax.axvspan(gamma**2, paper, color="0.93", zorder=0)
        top = 1.5 * values.max()
        ax.set(xlabel="β", ylabel=SLOPE if ax is axes[0, 0] else "", title=f"γ = {gamma:g}", ylim=(-0.1 * top, top))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


def _edges_on(ax: Axes) -> None:
    line = np.linspace(0.01, 0.99, 200)
    for beta, look, label in ((stability.level_curve(line), figures.THEORY, "C = 0"), (line**2, DOTTED, "γ² = β")):
        ax.plot(line, beta, color="white", lw=2.6)
        ax.plot(line, beta, **look, label=label)
    ax.set(xlabel="γ", ylabel="β", xlim=(0, 1), ylim=(0, 1))


def plane(points: Points, largest: Array) -> Figure:
    """The largest update of the run at every point of the plane, (points,), with both edges."""
    side = round(len(largest) ** 0.5)
    axis = points.beta.reshape(side, side)[:, 0]
    fig, ax = plt.subplots(figsize=(5.4, 4.4))
    values = np.log10(np.minimum(largest, 1e6)).reshape(side, side)
    image = ax.pcolormesh(axis, axis, values, cmap="cividis", shading="nearest", vmin=0, vmax=6)
    bar = fig.colorbar(image, ax=ax, label="log₁₀ of the largest update (6: or more)")
    bar.ax.axhline(np.log10(GROWN), color="white", lw=2)
    _edges_on(ax)
    ax.legend(loc="upper left", frameon=True)
    return fig


def quadratic(found: xr.Dataset) -> Figure:
    """For the first seed: the largest update at the least learning rate, and at how many rates the loss diverges."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 4.0))
    axis, one = found["beta"].values, found.isel(seed=0)
    large = np.log10(one["largest_update"].isel(lr=0).values)
    count = one["loss_diverges"].sum("lr").values
    rates = ", ".join(f"{lr:g}" for lr in found["lr"].values)
    panels = (
        (left, large, 6.0, "log₁₀ of the largest update"),
        (right, count, 3.0, "rates at which the loss diverges"),
    )
    for ax, values, most, label in panels:
        image = ax.pcolormesh(axis, axis, values, cmap="cividis", shading="nearest", vmin=0, vmax=most)
        fig.colorbar(image, ax=ax, label=label, location="bottom", ticks=range(int(most) + 1))
        _edges_on(ax)
    left.set(title=f"learning rate {found['lr'].values[0]:g}")
    right.set(title=f"of the rates {rates}", ylabel="")
    left.legend(loc="upper left", frameon=True)
    return fig


def gradients(examples: Mapping[str, tuple[Pair, Array]], window: int) -> Figure:
    """Sizes of the gradients, (steps, watched), of ten watched coordinates, and the fading that attains the bound."""
    fig, axes = plt.subplots(1, len(examples), figsize=WIDE, squeeze=False)
    for ax, (title, ((beta, gamma), values)) in zip(axes.flat, examples.items(), strict=True):
        size = np.abs(np.asarray(values, dtype=float))[:, :10]
        steps = len(size)
        start, every = steps // 5, np.arange(steps)
        ax.plot(every, np.where(size > 0, size, np.nan), color=figures.UNSTABLE, lw=0.7, alpha=0.7)
        here = size[start : start + max(2, steps // 25)]
        level = np.exp(np.nanmedian(np.log(np.where(here > 0, here, np.nan))))
        line = every[start:]
        ax.plot(line, level * (beta / gamma) ** (line - start), **figures.THEORY, label="(β/γ)ⁿ")
        ax.axvspan(steps - window, steps, color="0.93", zorder=0)
        ax.set(yscale="log", xlabel="step n", ylabel="size of the gradient" if ax is axes[0, 0] else "")
        ax.set(title=_minus(title))
    axes[0, 0].legend(loc="lower left")
    return fig


def saturation(epsilons: Sequence[float], largest: Array, free: Array, ended: ArrayLike, exponent: float) -> Figure:
    """The largest update of the run, (epsilons, seeds), over eps, with step 7's power; and without eps, (seeds,)."""
    fig, ax = plt.subplots(figsize=NARROW)
    eps, which = np.asarray(epsilons), np.asarray(ended)
    for fill, some in ((figures.UNSTABLE, which), ("none", ~which)):
        for x, values in zip(eps[some], largest[some], strict=True):
            ax.plot(np.full(len(values), x), values, "o", color=figures.UNSTABLE, mfc=fill, ms=5)
    if not which.all():
        ax.plot([], [], "o", color=figures.UNSTABLE, mfc="none", ms=5, label="ended by the run's end")
    ax.axhline(float(np.mean(free)), color=figures.UNSTABLE, lw=1, label="ε = 0, at the run's end")
    first = int(np.argmax(which))
    line = eps[first:]
    level = float(largest[first].mean())
    ax.plot(line, level * (line / line[0]) ** -exponent, **figures.THEORY, label=f"ε^(−p), p = {exponent:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="ε", ylabel="largest update of the run")
    ax.legend()
    return fig


def variations(ratios: Mapping[str, Array]) -> Figure:
    """Growth over what is predicted outside, (seeds,), for every variation."""
    fig, ax = plt.subplots(figsize=(6.4, 3.2))
    for i, (name, values) in enumerate(ratios.items()):
        colour = figures.STABLE if "inside" in name else figures.UNSTABLE
        ax.plot(values, np.full(len(values), i), "o", ms=5, alpha=0.7, color=colour)
    ax.set(yticks=range(len(ratios)), yticklabels=list(ratios), xlabel="growth over the predicted rate")
    ax.axvline(1, **figures.THEORY)
    ax.axvline(0, color="0.7", lw=0.8)
    ax.invert_yaxis()
    return fig
