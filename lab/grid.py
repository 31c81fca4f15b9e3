"""A sweep over a product of settings, as arrays whose axes have names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lab.records import Result
from lab.sweep import sweep


def grid(
    run: Callable[..., Result], label: str, axes: Mapping[str, Mapping[Any, Mapping[str, Any]] | Sequence[Any]],
    dims: Mapping[str, Sequence[str]] | None = None, **common: Any,
) -> xr.Dataset:  # fmt: skip
    """A sweep over the product of ``axes``, as a data set whose axes have names: pick by ``.sel(arm="Adam", seed=3)``.

    Args:
        run, label: as for ``sweep``.
        axes: for each axis, in order, either the values of the argument of its name; or a mapping from the labels of
            the axis to the arguments that they stand for. Where a later axis gives an argument again, it wins.
        dims: names for the axes of what a run returns, by its name there; else ``<name>_0``, ``<name>_1`` ….
        common: arguments of all runs.

    Returns:
        a variable for everything that a run returns, with the axes in front. Where runs return arrays of different
        lengths (a flow that gave up), the shorter ones of numbers end with NaN, those of whole numbers become floats.

    Raises:
        ValueError: texts of different shapes, or arrays with different numbers of axes, under one name.
        Exception: as ``sweep``.
    """
    steps = [
        [(point_label, dict(found)) for point_label, found in values.items()] if isinstance(values, Mapping)
        else [(value, {name: value}) for value in values]
        for name, values in axes.items()
    ]  # fmt: skip
    arguments = [
        {key: value for _, given in point for key, value in given.items()} for point in itertools.product(*steps)
    ]
    results = sweep(run, [{**common, **given} for given in arguments], label)
    sizes = [len(values) for values in steps]
    variables = {}
    for name in results[0]:
        values = _padded(name, [np.asarray(result[name]) for result in results])
        inner = (dims or {}).get(name) or [f"{name}_{i}" for i in range(values.ndim - 1)]
        variables[name] = ((*axes, *inner), values.reshape(*sizes, *values.shape[1:]))
    labels = {name: [point_label for point_label, _ in values] for name, values in zip(axes, steps, strict=True)}
    return xr.Dataset(variables, labels)


def _padded(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {array.shape for array in arrays}
    if len(shapes) == 1:
        return np.stack(arrays)
    if len({len(shape) for shape in shapes}) > 1 or any(array.dtype.kind not in "iuf" for array in arrays):
        raise ValueError(f"{name}: shapes {sorted(shapes)} (must be alike, or numbers of different lengths)")
    largest = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *largest), np.nan)
    for index, array in enumerate(arrays):
        where: tuple[Any, ...] = (index, *(slice(size) for size in array.shape))
        stacked[where] = array
    return stacked
