"""What the curves of runs are compared by: one number a run, or the learning rate at which it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

Array = NDArray[np.float64]


def steps_to(target: float, losses: Array, steps: Array) -> Array:
    """The step at which each run's loss, (..., evaluations), first is ``target`` or less; infinite where it never is.

    Interpolated linearly between the evaluations at ``steps``; at the first of them, if it is reached by then.
    """
    reached = losses <= target  # NaN is not
    first = reached.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    high, low = (np.take_along_axis(losses, i[..., None], axis=-1)[..., 0] for i in (before, first))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(first > 0, (high - target) / (high - low), 1.0)
    crossing = steps[before] + share * (steps[first] - steps[before])
    return np.where(reached.any(axis=-1), crossing, np.inf)


def judged(observed: Mapping[str, Array], at: Array, target: float, chance: float) -> dict[str, Array]:
    """What is compared, one number a run, from ``validation_loss``, ``test_loss``, ``test_accuracy``.

    ``loss`` and ``accuracy``: the best on the test part; ``stopped``: the test loss where the validation loss is least;
    ``validation``: the least; ``steps``: to the test loss ``target`` (evaluations are at ``at``), infinite if never.
    A run that diverged has the loss ``chance`` and the accuracy 0, whatever it reached before; no loss counts as more
    than ``chance``, so that none is judged worse than diverging.
    """
    diverged = np.isnan(observed["test_loss"]).any(axis=-1)
    losses = {
        name: np.where(np.isnan(observed[name]), np.inf, observed[name]) for name in ("validation_loss", "test_loss")
    }
    validation, test = losses["validation_loss"], losses["test_loss"]
    stopped = np.take_along_axis(test, validation.argmin(axis=-1)[..., None], axis=-1)[..., 0]
    best = {"loss": test.min(axis=-1), "stopped": stopped, "validation": validation.min(axis=-1)}
    return {
        **{name: np.where(diverged, chance, np.minimum(values, chance)) for name, values in best.items()},
        "accuracy": np.where(diverged, 0.0, observed["test_accuracy"].max(axis=-1)),
        "steps": np.where(diverged, np.inf, steps_to(target, test, at)),
    }


def best_lr(lrs: Sequence[float], losses: Array) -> Array:
    """The learning rate of least loss, (lrs, ...) -> (...): the vertex of a parabola in ln lr and ln loss.

    Through the best of the grid and its neighbours; the best itself where it is the first or the last.
    """
    x, y = np.log(np.asarray(lrs)), np.log(np.asarray(losses, dtype=float))
    best = y.argmin(axis=0)
    if len(x) < 3:
        return np.exp(x[best])
    middle = np.clip(best, 1, len(x) - 2)
    x0, x1, x2 = (x[middle + i] for i in (-1, 0, 1))
    y0, y1, y2 = (np.take_along_axis(y, (middle + i)[None], axis=0)[0] for i in (-1, 0, 1))
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = (x0 + x1) / 2 - left * (x2 - x0) / (2 * (right - left))
    return np.exp(np.where(best == middle, vertex, x[best]))


def lr_of_size(size: float, lrs: Sequence[float], update_rms: Array) -> float:
    """The learning rate at which lr times the update's rms is ``size``, from the rms at ``lrs``, (lrs,)."""
    size, lr = float(size), float(lrs[0])
    for _ in range(50):
        lr = size / float(np.interp(np.log(lr), np.log(lrs), update_rms))
    return lr


def tuned(data: xr.Dataset) -> xr.DataArray:
    """Each arm's learning rate of least ``validation`` loss, over arm, lr, seed, in the mean over seeds: (arm,)."""
    best = data.validation.mean("seed").transpose("arm", "lr").values.argmin(axis=1)
    return xr.DataArray(data.lr.values[best], {"arm": data.arm}, ["arm"])


def on_edge(data: xr.Dataset, names: Sequence[str] | None = None) -> list[str]:
    """The arms, among ``names`` if given, whose tuned learning rate is the first or the last of the grid."""
    rates, ends = tuned(data), (data.lr.values[0], data.lr.values[-1])
    return [
        str(arm) for arm in data.arm.values if (names is None or arm in names) and rates.sel(arm=arm).item() in ends
    ]
