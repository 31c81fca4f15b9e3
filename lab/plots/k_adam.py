"""Figures of page 05: from arrays with named axes (``lab.study.k_adam``) to figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from kadam import SCHEDULES
from lab import figures
from lab.study.k_adam import LEVEL, PAIRS, TWOS, Sized, chosen, compared, less_adam, named

Array = NDArray[np.float64]

COLOURS = {name: figures.PALETTE[i] for i, name in enumerate([*TWOS, "one lag"])} | {"Adam": "0.45"}
MARKERS = dict(zip([*TWOS, "one lag", "Adam"], "osD^vx", strict=True))
OTHERS = {
    "NAdam": "#6b6100", "SGD, momentum": figures.PALETTE[9], "schedule-free AdamW": figures.PALETTE[5],
}  # fmt: skip
NATS = [0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.2, 1.5, 2, 3, 4, 4.5, 5, 5.5, 6]


def short(name: str) -> str:
    """The schedule's name without its k."""
    return name.split(",")[0]


def _differences(
    ax: Axes, found: Sequence[tuple[float, float, float, str]], names: Sequence[str], top: float, edge: float = np.inf
) -> None:
    """Means with their intervals, one below the other; what lies beyond ``edge`` is an arrow with its number."""
    for i, (name, (mean, low, high, _)) in enumerate(zip(names, found, strict=True)):
        if abs(mean) > edge:
            side = np.sign(mean)
            ax.plot(0.95 * side * edge, top - i, marker=">" if side > 0 else "<", ms=6, color=COLOURS[name])
            ax.annotate(f"{mean:+.2f}", (0.88 * side * edge, top - i), va="center", ha="right" if side > 0 else "left",
                        fontsize=9, color=COLOURS[name])  # fmt: skip
            continue
        low, high = np.clip([low, high], -10, 10)
        ax.errorbar(mean, top - i, xerr=[[mean - low], [high - mean]], fmt=MARKERS[name], ms=5, capsize=2,
                    color=COLOURS[name])  # fmt: skip


def _edge(found: Sequence[Sequence[tuple[float, float, float, str]]], names: Sequence[str]) -> float:
    """How far an axis should go: to the ends of all intervals but those of ``naive``, which would dwarf the others."""
    rows = [row for each in found for name, row in zip(names, each, strict=True) if short(name) != "naive"]
    finite = [abs(end) for row in rows for end in row[:3] if np.isfinite(end)]
    return 1.1 * max([*finite, 2 * LEVEL])


def _zero(ax: Axes) -> None:
    ax.axvspan(-LEVEL, LEVEL, color="0.88", zorder=0)
    ax.axvline(0, color="0.45", lw=1)


def tasks(data: Mapping[str, xr.Dataset], shared_lr: float) -> Figure:
    """Every arm's best test loss less Adam's, on every task, at the shared learning rate and tuned."""
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 1 + 1.1 * len(data)), sharey=True)
    others, step = PAIRS[1:], len(PAIRS)
    labels: dict[float, str] = {}
    for ax, lr, title in zip(axes, (shared_lr, None), (f"η = {shared_lr:g} for all", "η tuned for each"), strict=True):
        found = [compared(less_adam(chosen(each, lr), others)) for each in data.values()]
        edge = _edge(found, others)
        for row, (task, each) in enumerate(zip(data, found, strict=True)):
            top = -float(row * step)
            _differences(ax, each, others, top, edge)
            labels |= {top - i: f"{task}:  {short(name)}" if i == 0 else short(name) for i, name in enumerate(others)}
        _zero(ax)
        ax.set(title=title, xlabel="best test loss less Adam's (nats)", xlim=(-edge, edge))
        ax.locator_params(axis="x", nbins=5)
        ax.text(0.02, 1.0, "ahead", transform=ax.transAxes, va="bottom", fontsize=9)
        ax.text(0.98, 1.0, "behind", transform=ax.transAxes, va="bottom", ha="right", fontsize=9)
    axes[0].set_yticks(list(labels), list(labels.values()))
    return fig


def over_k(data: xr.Dataset, ks: Sequence[int], shared_lr: float) -> Figure:
    """Best test loss over the number of stages, at the shared learning rate and tuned."""
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
    for ax, lr, title in zip(axes, (shared_lr, None), (f"η = {shared_lr:g} for all", "η tuned for each"), strict=True):
        loss = chosen(data, lr).loss
        for schedule, two in zip(SCHEDULES, TWOS, strict=True):
            values = loss.sel(arm=[named(schedule, k) for k in ks]).transpose("seed", "arm")
            figures.band(ax, ks, values, color=COLOURS[two], marker=MARKERS[two], ms=5, label=schedule)
        ax.axhline(float(loss.sel(arm="Adam").median()), color="0.45", lw=1, ls=":", label="Adam (k = 1)")
        ax.set(xlabel="k", xticks=list(ks), title=title)
        figures.plain_log(ax.yaxis, NATS)
    axes[0].set(ylabel="best test loss (nats)")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def over_rates(data: Mapping[str, xr.Dataset]) -> Figure:
    """Best test loss of k <= 2 over the learning rate, a panel for each task."""
    rows = (len(data) + 1) // 2
    fig, axes = plt.subplots(rows, 2, figsize=(7.2, 0.5 + 2.7 * rows), squeeze=False)
    for ax, (task, each) in zip(axes.flat, data.items(), strict=False):
        lrs = each.lr.values
        for name in [*TWOS, "one lag", "Adam"]:
            values = each.loss.sel(arm=name).transpose("seed", "lr")
            figures.band(ax, lrs, values, color=COLOURS[name], marker=MARKERS[name], ms=4, label=short(name))
        ax.set(title=task, xlabel="learning rate η", ylabel="best test loss (nats)")
        figures.plain_log(ax.xaxis, [float(lr) for lr in lrs[:: 1 + len(lrs) // 5]])
        ax.set_yscale("log")
        _fewer(ax)
    for ax in axes.flat[len(data) :]:
        ax.set_visible(False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return fig


def _fewer(ax: Axes) -> None:
    low, high = ax.get_ylim()
    ticks = [float(tick) for tick in np.round(np.arange(0.2, 8, 0.2), 1) if low <= tick <= high]
    figures.plain_log(ax.yaxis, ticks[:: 1 + len(ticks) // 7])
    ax.set_ylim(low, high)


def sizes(found: Mapping[str, Sized], names: Sequence[str]) -> Figure:
    """Best test loss less Adam's where the steps are of equal size."""
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 2.5), sharey=True)
    for ax, (title, each) in zip(axes, found.items(), strict=True):
        differences = compared(each.differences)
        edge = _edge([differences], names)
        _differences(ax, differences, names, 0.0, edge)
        _zero(ax)
        ax.set(title=f"equal size, {title}", xlabel="best test loss less Adam's (nats)", xlim=(-edge, edge))
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_yticks(-np.arange(len(names)), [short(name) for name in names])
    return fig


def gains(shifts: Mapping[str, xr.DataArray], gain: Mapping[str, float]) -> Figure:
    """Tuned learning rate over Adam's, against the gain: mean over seeds, with its extremes."""
    fig, ax = plt.subplots(figsize=(5.4, 3.7))
    exact = np.linspace(1.4, 5, 50)
    ax.plot(exact, 1 / exact, **figures.THEORY, label="1 / gain")
    ax.fill_between(exact, 0.5 / exact, 2 / exact, color="0.92", label="within a factor of two")
    for i, (task, marker) in enumerate(zip(shifts, "o^sDv", strict=False)):
        for name in [*TWOS, "one lag"]:
            ratio = 2 ** shifts[task].sel(arm=name).values
            mean = 2 ** np.log2(ratio).mean()
            x = gain[name] * 1.02 ** (i - 1.5 + (4 if name == "one lag" else 0))  # side by side, not on top
            ax.errorbar(x, mean, yerr=[[mean - ratio.min()], [ratio.max() - mean]], fmt=marker, ms=5, lw=0.8,
                        color=COLOURS[name])  # fmt: skip
        ax.plot([], [], marker=marker, ls="", color="0.4", label=task)
    for name in [*TWOS, "one lag"]:
        ax.plot([], [], marker="s", ls="", ms=7, color=COLOURS[name], label=short(name))
    ax.set(xlabel="gain in noise", ylabel="tuned η of 2-Adam / tuned η of Adam")
    figures.plain_log(ax.xaxis, [1.5, 2, 3, 4, 5])
    figures.plain_log(ax.yaxis, [0.03, 0.06, 0.12, 0.25, 0.5, 1, 2])
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return fig


def edges(runs: xr.Dataset, limit: Mapping[str, float], lr: float) -> Figure:
    """Learning rate times preconditioned sharpness in full-batch training, and every chain's limit."""
    fig, ax = plt.subplots(figsize=(6.2, 3.9))
    for name in map(str, runs.arm.values):
        figures.band(ax, runs["at"].values, runs.step.sel(arm=name).transpose("seed", "at"), color=COLOURS[name],
                     marker=MARKERS[name], ms=4)  # fmt: skip
        ax.axhline(limit[name], **figures.THEORY)
        label = {"Adam": "", "one lag": "Adam, one lag"}.get(name, short(name))
        ax.annotate(label, (1.01, limit[name]), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                    color="black" if name == "one lag" else COLOURS[name], annotation_clip=False)  # fmt: skip
    ax.set(xlabel="step", ylabel="η × preconditioned sharpness", yscale="log", title=f"full batches, η = {lr:g}")
    handles = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], ms=4, label=short(name)) for name in PAIRS]
    fig.legend(handles=handles, loc="outside lower center", ncols=6)
    return fig


def updates(found: Mapping[str, Mapping[str, Array]], lr: float) -> Figure:
    """rms of the update over the steps of training."""
    fig, ax = plt.subplots(figsize=(5.6, 3.4))
    for name, values in found.items():
        figures.band(ax, values["steps"], values["size"][:, :, -1], color=COLOURS[name], label=short(name))
    ax.set(xlabel="step", ylabel="rms of the update, one coordinate", ylim=(0, 1.1), title=f"training, η = {lr:g}")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    return fig


def optimizers(data: xr.Dataset, others: xr.Dataset, names: Sequence[str]) -> Figure:
    """Best test loss so far over the steps, tuned: some arms, and the other optimizers."""
    fig, ax = plt.subplots(figsize=(6.4, 3.7))
    for each, shown, colours in ((chosen(data), names, COLOURS), (chosen(others), list(OTHERS), OTHERS)):
        for name in shown:
            losses = each.test_loss.sel(arm=name).transpose("seed", "step").values
            so_far = np.minimum.accumulate(np.where(np.isnan(losses), np.inf, losses), axis=-1)
            figures.band(ax, each.step.values, so_far, color=colours[name], label=name)
    ax.set(xlabel="step", ylabel="best test loss so far (nats)")
    figures.plain_log(ax.yaxis, NATS)
    ax.legend()
    return fig
