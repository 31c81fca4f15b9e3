"""Page 01's figures: parameters and errors along runs, orders, and the edge of stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lab import figures
from lab.study import continuous_time as study

COLOURS = {"adam-paper": 0, "adam": 1, "2-adam": 2, "batches": 3, "adamw-paper": 0, "adamw": 1}
LABELS = {
    "adam-paper": "paper's equation", "adam": "matched memory", "2-adam": "2-Adam, matched",
    "batches": "a batch per step, matched", "adamw-paper": "paper's equation", "adamw": "matched memory",
}  # fmt: skip


def tracking(runs: xr.Dataset, sixteen: str, arms: Sequence[str], title: str) -> Figure:
    """Left: 16 parameters of the first seed, algorithm and flow, of the arm ``sixteen``. Right: errors of ``arms``."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7))
    run = runs.sel(arm=sixteen).isel(seed=0)
    start = run.discrete.isel(step=0)
    steps = np.arange(runs.sizes["step"])
    for i in range(run.sizes["parameter"]):
        left.plot(steps, (run.discrete - start).isel(parameter=i), color=figures.PALETTE[i % 10], lw=2.5, alpha=0.6)
        left.plot(steps, (run.continuous - start).isel(parameter=i), **figures.THEORY)
    moved = (run.discrete - start).values
    low, high = np.nanmin(moved), np.nanmax(moved)
    left.set(ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low)))  # a flow that is lost leaves the panel
    left.plot([], [], color="0.5", lw=2.5, alpha=0.6, label="algorithm")
    left.plot([], [], **figures.THEORY, label=LABELS[sixteen])
    left.set(xlabel="step n", ylabel="parameter − its start", title=f"{title}: 16 random parameters")
    left.legend(loc="lower left")
    for arm in arms:
        _errors(right, runs.sel(arm=arm), color=figures.PALETTE[COLOURS[arm]], label=LABELS[arm])
    _limit(right, study.LIMIT)
    right.set(yscale="log", xlabel="step n", ylabel="error / distance", title=f"{title}: all parameters")
    right.legend(loc="lower right")
    return fig


def _errors(ax: Axes, runs: xr.Dataset, **line: object) -> None:
    """A band over seeds as far as all flows came; from there a line for each, with a cross where it gave up."""
    errors, came = runs.error.values, study.done(runs.outcome)
    together = int((~np.isnan(errors)).sum(axis=1).min())
    figures.band(ax, np.arange(1, together), errors[:, 1:together], **line)
    for error, whole in zip(errors, came, strict=True):
        last = int((~np.isnan(error)).sum()) - 1
        ax.plot(np.arange(together - 1, last + 1), error[together - 1 : last + 1], color=line["color"], lw=0.8)
        if not whole:
            ax.plot(last, error[last], "x", color=line["color"], ms=6)


def _limit(ax: Axes, value: float) -> None:
    ax.axhline(value, color="0.5", lw=1.0, ls=":")
    ax.annotate(f"{100 * value:g} %", (0, value), (2, 2), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=9, color="0.4")  # fmt: skip


def orders(errors: xr.DataArray, pairs: Sequence[str]) -> Figure:
    """Largest difference to the algorithm over the number of steps, a panel for each of ``pairs``."""
    fig, axes = plt.subplots(1, len(pairs), figsize=(8, 4.2), sharey=True)
    counts = errors["count"].values
    for ax, pair in zip(axes, pairs, strict=True):
        found = errors.sel(pair=pair)
        for i, model in enumerate(found.model.values):
            ax.loglog(
                counts,
                found.sel(model=model),
                marker="o^sD"[i],
                color=figures.PALETTE[(4, 0, 2, 1)[i]],
                ms=5,
                label=model,
            )
        for power, anchor in ((1, "paper's equation"), (2, "matched memory")):
            ax.loglog(
                counts, float(found.sel(model=anchor)[0]) * (counts[0] / counts) ** power, **figures.THEORY, zorder=0
            )
        ax.set(xlabel="steps N = 1/η", title=pair)
        figures.plain_log(ax.xaxis, counts.tolist())
    axes[0].plot([], [], **figures.THEORY, label="orders 1 and 2")
    axes[0].set(ylabel="largest difference to the algorithm")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def growths(ks: ArrayLike, found: Mapping[str, ArrayLike]) -> Figure:
    """Growth per step over K, with the edges that the derivation gives."""
    fig, ax = plt.subplots(figsize=(6, 3.4))
    for name, colour in (("paper's equation", 0), ("matched memory", 1), ("Adam", 7)):
        ax.plot(ks, found[name], "o-", ms=4, color=figures.PALETTE[colour], label=name)
    for k in (1 + 1 / 0.9, study.EDGE):
        ax.axvline(k, **figures.THEORY)
    ax.plot([], [], **figures.THEORY, label="edges derived: 2.11 and 38")
    ax.axhline(0, color="0.7", lw=0.8, zorder=0)
    figures.plain_log(ax.xaxis, (1, 2, 5, 10, 20, 50, 100))
    ax.set(xlabel="K", ylabel="growth per step (ln)")
    ax.legend()
    return fig


def sharpness(runs: Mapping[str, tuple[xr.Dataset, xr.Dataset]]) -> Figure:
    """Left: K along the run, a band over seeds. Right: the error of matched memory over K, a line for each seed."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7))
    for (label, (flow, measured)), colour in zip(runs.items(), figures.PALETTE, strict=False):
        at, k = measured["at"].values.astype(int), measured.sharpness.values
        figures.band(left, at[0], np.maximum(k, 1e-2), marker="o", ms=3, color=colour, label=label)
        for error, steps, values in zip(flow.error.values, at, k, strict=True):
            there = steps < len(error)
            right.plot(values[there], error[steps[there]], "o-", ms=3, lw=0.8, color=colour, alpha=0.6)
        right.plot([], [], "o-", ms=3, color=colour, label=label)
    left.axhline(study.EDGE, **figures.THEORY, label="Adam's edge, 38")
    right.axvline(study.EDGE, **figures.THEORY, label="Adam's edge, 38")
    left.set(yscale="log", xlabel="step n", ylabel="K", title="K along training")
    right.set(xscale="log", yscale="log", xlabel="K", ylabel="error / distance", title="the flow's error over K")
    left.legend()
    right.legend()
    return fig
