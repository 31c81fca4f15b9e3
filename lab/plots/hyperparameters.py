"""Page 03's figures: curves of (beta, gamma), what runs on them took and reached, and a chart of popular settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kadam import stability
from lab import figures
from lab.experiments.hyperparameters import distances
from lab.study.hyperparameters import (
    BETA_FIXED,
    DEFAULT,
    GAMMA_FIXED,
    NORMAL,
    POPULAR,
    TUNINGS,
    Found,
)

Array = NDArray[np.float64]
TICKS = (20, 30, 50, 70, 100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000)
LABELS = {"steps": "steps to the target loss", "loss": "best test loss (nats)"}


def normal_curve(results: Mapping[str, Found], measure: str) -> Figure:
    """A measure over C along the normal curve, untuned and tuned, a panel for every task."""
    fig, axes = plt.subplots(1, len(results), figsize=(7, 3.3), squeeze=False)
    for ax, (task, found) in zip(axes.flat, results.items(), strict=True):
        c = found.plan.on(NORMAL, found.plan.c)
        for tuning, colour, marker in zip(TUNINGS, (figures.PALETTE[7], figures.PALETTE[2]), "xo", strict=True):
            values = np.where(np.isfinite(shown := found.on(NORMAL, measure, tuning)), shown, np.nan)
            figures.band(ax, c, values, color=colour, marker=marker, ms=5, label=tuning)
        ax.axvline(0, color="0.7", lw=0.8)
        ax.set(xlabel="C along the normal curve", ylabel="" if ax is not axes[0, 0] else LABELS[measure], title=task)
        if measure == "steps":
            _steps(ax, found, missed=any(found.missed(NORMAL, tuning) for tuning in TUNINGS))
        ax.legend()
    return fig


def along_level_curves(results: Mapping[str, Found]) -> Figure:
    """Steps over the distance walked from the end with beta = 0.999: on the normal curve, and on the level curves."""
    fig, axes = _tasks_and_tunings(results)
    for ax, found, tuning in axes:
        for curve in (NORMAL, *found.plan.levels):
            along = distances(*found.plan.curves[curve])
            x = along[-1] - along if curve == NORMAL else along
            _line(ax, x, found, curve, tuning)
        _finished(ax, found, tuning, (NORMAL, *found.plan.levels), "distance from β = 0.999")
    return fig


def along_lines(results: Mapping[str, Found]) -> Figure:
    """Steps over C: on the normal curve, and where only beta or only gamma moves."""
    fig, axes = _tasks_and_tunings(results)
    curves = (NORMAL, GAMMA_FIXED, BETA_FIXED)
    for ax, found, tuning in axes:
        for curve in curves:
            _line(ax, found.plan.on(curve, found.plan.c), found, curve, tuning)
        _finished(ax, found, tuning, curves, "C")
    return fig


def _tasks_and_tunings(results: Mapping[str, Found]) -> tuple[Figure, list[tuple[Axes, Found, str]]]:
    fig, axes = plt.subplots(len(results), len(TUNINGS), figsize=(7, 3.1 * len(results)), squeeze=False)
    panels = []
    for row, (task, found) in zip(axes, results.items(), strict=True):
        for ax, tuning in zip(row, TUNINGS, strict=True):
            ax.set_title(f"{task}, {tuning}")
            panels.append((ax, found, tuning))
    return fig, panels


def _line(ax: Axes, x: Array, found: Found, curve: str, tuning: str) -> None:
    place = list(found.plan.curves).index(curve)
    style = {"color": figures.PALETTE[(2, 4, 5, 1, 3)[place]], "marker": "osDv^"[place], "ms": 5, "label": curve}
    figures.band(ax, x, found.on(curve, "steps", tuning), **style)


def _finished(ax: Axes, found: Found, tuning: str, curves: Sequence[str], label: str) -> None:
    _steps(ax, found, missed=any(found.missed(curve, tuning) for curve in curves))
    ax.set(xlabel=label, ylabel=LABELS["steps"] if tuning == TUNINGS[0] else "")
    ax.legend()


def _steps(ax: Axes, found: Found, missed: bool) -> None:
    """A logarithmic axis of steps; the length of a run where some runs did not get there."""
    low, high = ax.get_ylim()
    figures.plain_log(ax.yaxis, TICKS)
    ax.set_ylim(max(low, 5.0) / 1.1, high * 1.2)
    if missed:
        ax.axhline(found.length, color="0.4", lw=0.8, ls=":")


def chart() -> Figure:
    """The memories of both moments: the stable region, level curves of C, the normal curve, popular settings."""
    fig, ax = plt.subplots(figsize=(7, 5.6))
    gamma = 1 - 1 / np.geomspace(1.0001, 2500, 1000)
    x, exact_edge = _memory(gamma), _memory(gamma**2)
    ax.fill_between(x, exact_edge, 6e4, color=figures.STABLE, alpha=0.12, lw=0)
    ax.fill_between(x, 1, exact_edge, color=figures.UNSTABLE, alpha=0.15, lw=0)
    ax.plot(x, _memory(stability.level_curve(gamma)), **figures.THEORY, label="C = 0")
    ax.plot(x, exact_edge, color="black", lw=1.2, ls=":", label="γ² = β, the exact edge")
    beta = 1 - 1 / np.geomspace(1.0001, 9000, 1000)
    for c in (0.01, 0.05, 0.1, float(stability.coefficient(*DEFAULT)), 1.0):
        on_curve = _memory(2 / (1 / beta + 1 + c))  # of gamma, where C = c at that beta
        ax.plot(on_curve, _memory(beta), color="0.55", lw=0.8)
        ax.text(on_curve[-1], 1e4, f"C = {c:.2g}", rotation=90, color="0.4", fontsize=9, ha="center", va="bottom")
    path = _memory(stability.normal_curve(gamma))
    ax.plot(x, np.where(path < 9000, path, np.nan), color=figures.PALETTE[2], lw=1.4, label="normal curve")
    _popular(ax)
    ax.text(1.1, 15000, "updates\nbounded", color=figures.STABLE, va="center")
    ax.text(22, 2.2, "updates may grow\nexponentially", color=figures.UNSTABLE, va="center")
    ax.set(xlim=(0.9, 2500), ylim=(1, 6e4), xlabel="memory of the first moment, 1/(1 − γ) steps",
           ylabel="memory of the second moment, 1/(1 − β) steps")  # fmt: skip
    figures.plain_log(ax.xaxis, [1, 10, 100, 1000])
    figures.plain_log(ax.yaxis, [1, 10, 100, 1000, 10000])
    ax.legend(loc="lower right")
    return fig


def _memory(rate: Array) -> Array:
    memory: Array = 1 / (1 - rate)
    return memory


def _popular(ax: Axes) -> None:
    places = {"shorter second memory": ("right", -7, 0), "large language models": ("right", -7, 0),
              "equal, short": ("right", -7, 0), "default with β and γ exchanged": ("right", -7, 0),
              "less momentum": ("left", 6, -13), "more momentum": ("left", 7, 0), "equal, long": ("left", 7, 0),
              "RMSprop": ("left", 2, 12), "Adam's default": ("left", 6, 6)}  # fmt: skip
    for name, (beta, gamma) in POPULAR.items():
        colour = figures.STABLE if stability.coefficient(beta, gamma) > 0 else figures.UNSTABLE
        point = float(_memory(np.array(gamma))), float(_memory(np.array(beta)))
        ax.plot(*point, "o", ms=6, color=colour, zorder=3)
        side, right, up = places[name]
        box = {"facecolor": "white", "alpha": 0.5, "lw": 0, "pad": 0.1}
        text = name.replace("default with β and γ exchanged", "default with β\nand γ exchanged")
        ax.annotate(
            text, point, fontsize=9, xytext=(right, up), textcoords="offset points", ha=side, va="center", bbox=box
        )
