"""Figures of page 04: from arrays with named axes (``lab.study.meta_adaptive``) to figures."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kadam.invariance import LAWS, momentum_factor
from lab import figures
from lab.study.meta_adaptive import ARMS, SPHERE_LAWS, closed_angles, closed_norm, factors, hidden, losses

COLOURS = dict(zip(LAWS, (figures.PALETTE[i] for i in (1, 2, 4, 0)), strict=True)) | {"nudged": "0.5"}
PAPER = dict(color=figures.PALETTE[1], ls=":", lw=1.6)
TASKS = dict(zip(("perceptron", "transformer"), zip(figures.PALETTE, "os", strict=False), strict=False))


def factor(found: Mapping[str, xr.Dataset]) -> Figure:
    """The fitted factor over the momentum's, of every task, with the laws."""
    fig, ax = plt.subplots(figsize=(5.8, 4.0))
    for task, each in found.items():
        colour, marker = TASKS[task]
        x, fitted = momentum_factor(each.gamma.values), factors(each)
        middle = fitted.mean(axis=1)
        bars = [middle - fitted.min(axis=1), fitted.max(axis=1) - middle]
        ax.errorbar(x, middle, bars, fmt=marker, ms=7, mfc="none", color=colour, label=f"{task}, fitted")
        ax.plot(x, factors(each, "fitted_lag").mean(axis=1), marker="_", ms=18, mew=2, ls="", color=colour,
                label=f"{task}, lag law")  # fmt: skip
        for gamma, at in zip(each.gamma.values, x, strict=True):
            ax.annotate(f"γ = {gamma:g}", (at, 0.62), ha="center", fontsize=9)
    ends = np.array([1, float(max(x))])
    ax.plot(ends, ends, label="(1+γ)/(1−γ)", **figures.THEORY)
    ax.axhline(1, label="the paper's law", **PAPER)
    ax.set(xscale="log", yscale="log", xlabel="(1+γ)/(1−γ)", ylabel="factor c of η²‖u‖²", ylim=(0.5, None),
           xlim=(0.7, 1.5 * ends[1]))  # fmt: skip
    ax.legend()
    return fig


def norms(found: xr.Dataset, settings: list[list[float]], gamma: float) -> Figure:
    """Predicted over measured squared norm along the run, a panel for each setting, at one gamma."""
    rows = (len(settings) + 1) // 2
    fig, axes = plt.subplots(rows, 2, figsize=(7.2, 0.5 + 2.4 * rows), sharex=True, sharey=True, squeeze=False)
    each = hidden(found).sel(gamma=gamma)
    for i, (ax, (lr, decay)) in enumerate(zip(axes.flat, settings, strict=False)):
        for law in LAWS:
            ratio = (each[law] / each.squared_norm).isel(setting=i).median("unit").transpose("seed", "time")
            figures.band(ax, each.time.values, ratio.values, color=COLOURS[law], label=law)
        ax.axhline(1, **figures.THEORY)
        ax.set(title=f"η = {lr:g}, λ = {decay:g}", ylim=(0, 1.5))
    for ax in axes[-1]:
        ax.set(xlabel="step")
    fig.supylabel("predicted / measured ‖W‖²", fontsize=10)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title="law")
    return fig


def assumptions(calm: xr.Dataset, found: Mapping[str, xr.Dataset]) -> Figure:
    """Left, inner products of the weight with earlier gradients; right, with the update, and by the lag law."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 4.2))
    lags = calm.lag.values
    for g, colour in zip(calm.gamma.values, figures.PALETTE, strict=False):
        values = calm.lagged.isel(scale=0).sel(gamma=g).transpose("seed", "lag").values
        figures.band(left, lags, values, color=colour, marker="o", ms=4, label=f"γ = {g:g}")
        free = (1 - g**lags) * momentum_factor(g) if g else lags > 0
        left.plot(lags, free, label="uncorrelated" if g == calm.gamma.values[-1] else None, **figures.THEORY)
    left.axhline(0, label="Assumption 1", **PAPER)
    left.set(yscale="symlog", xlabel="lag (steps)", ylabel="−⟨W(t), g(t − lag)⟩ / (η‖u‖²√v)", title="Assumption 1",
             ylim=(-0.5, None))  # fmt: skip
    left.yaxis.set_minor_locator(NullLocator())
    left.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    ends = []
    for task, each in found.items():
        colour, marker = TASKS[task]
        both = hidden(each)[["inner", "inner_lag"]].mean(["seed", "setting"])
        law, measured = (1 + both[name].values.ravel() for name in ("inner_lag", "inner"))
        right.plot(law, measured, marker, ls="", mfc="none", color=colour, label=task)
        ends += [law.min(), law.max()]
    right.plot([min(ends), max(ends)], [min(ends), max(ends)], label="the lag law", **figures.THEORY)
    right.set(xscale="log", yscale="log", xlabel="1 + 2⟨W, u⟩ / η‖u‖², lag law", ylabel="measured",
              title="Assumption 2")  # fmt: skip
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return fig


def equilibrium(calm: xr.Dataset, gamma: float) -> Figure:
    """Left, the squared norm from different first weights; right, the angle turned over a number of steps."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 4.0))
    for scale, colour in zip(calm.scale.values, figures.PALETTE, strict=False):
        path = calm.path.sel(scale=scale, gamma=gamma).transpose("seed", "step").values
        figures.band(left, calm.step.values, path, color=colour, label=f"first weights × {scale:g}")
    at = dict(gamma=gamma)
    left.axhline(float(closed_norm(calm).sel(at).mean()), label="closed form", **figures.THEORY)
    left.axhline(float(closed_norm(calm, momentum=False).sel(at).mean()), label="the paper's law", **PAPER)
    left.set(yscale="log", xlabel="step", ylabel="‖W‖²", title=f"norm, γ = {gamma:g}")
    angles = closed_angles(calm)
    for g, colour in zip(calm.gamma.values, figures.PALETTE, strict=False):
        turned = calm.turned.sel(gamma=g).stack(run=("scale", "seed")).transpose("run", "span").values
        figures.band(right, calm.span.values, turned, color=colour, marker="o", ms=4, label=f"γ = {g:g}")
        label = "uncorrelated" if g == calm.gamma.values[-1] else None
        right.plot(calm.span.values, angles.sel(gamma=g), label=label, **figures.THEORY)
    right.set(xscale="log", yscale="log", xlabel="n (steps)", ylabel="angle in n steps (rad, rms)", title="rotation")
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return fig


def sphere(found: xr.Dataset) -> Figure:
    """On the sphere: the angle to the real directions, and the length of the path, by the law that gives the norm."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8))
    for law in SPHERE_LAWS[1:]:
        name = {"nudged": "true ‖W‖, start turned", "paper": "paper's law"}.get(law, f"{law} law")
        for ax, top, bottom in ((left, "apart", "travelled"), (right, "length", "real_length")):
            values = (found[top].sel(law=law) / found[bottom]).mean("weight").transpose("seed", "step").values
            figures.band(ax, found.step.values, values, color=COLOURS[law], label=name)
    right.axhline(1, **figures.THEORY)
    left.set(xlabel="step", ylabel="angle to real / travelled", ylim=(0, None), title="where it leads")
    right.set(xlabel="step", ylabel="length / real length", ylim=(0.8, 1.4), title="length of the path")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def direct(found: Mapping[str, xr.Dataset]) -> Figure:
    """By task: the test loss over the learning rate, and at every arm's tuned rate, a circle a seed."""
    fig, axes = plt.subplots(len(found), 2, figsize=(7.2, 1 + 3.0 * len(found)), squeeze=False, width_ratios=[1.25, 1])
    for (left, right), (task, each) in zip(axes, found.items(), strict=True):
        tuned = losses(each)
        least, most = float(tuned.min()), float(tuned.max())
        top = most + 1.5 * (most - least)
        for k, arm in enumerate(ARMS):
            curve = each.stopped.sel(arm=arm).transpose("seed", "lr").values
            colour = figures.PALETTE[k]
            figures.band(left, each.lr.values, curve, color=colour, marker="o", ms=4, label=arm)
            values = tuned.sel(arm=arm).values
            right.plot(values, [k] * len(values), "o", color=colour, mfc="none")
            right.plot(values.mean(), k, "|", color=colour, ms=16, mew=2)
        ticks = [float(lr) for lr in each.lr.values]
        figures.plain_log(left.xaxis, ticks[:: 1 + len(ticks) // 5])
        left.set(xlabel="learning rate η", ylabel="test loss (nats)", title=task,
                 ylim=(least - 0.3 * (most - least), top))  # fmt: skip
        right.set(yticks=[], ylim=(len(ARMS) - 0.4, -0.6), xlabel="test loss at tuned η (nats)", title=task)
        right.locator_params(axis="x", nbins=5)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
