"""The data sets that need no download: MNIST-1D, and the words of the Python language reference."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab.files import ROOT


class DataError(RuntimeError):
    """A data set is missing or is not what the registry says."""


class Labelled(NamedTuple):
    """Inputs x and integer labels y of three disjoint parts; test is the published one."""

    x: Tensor
    y: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor


class Words(NamedTuple):
    """``tokens``: int64, shape (length,), indices into ``vocabulary`` (most frequent first)."""

    tokens: Tensor
    vocabulary: list[str]


@cache
def mnist1d() -> Labelled:
    """MNIST-1D (Greydanus & Kobak, arXiv 2011.14439) as the package ``mnist1d`` generates it.

    4,000 training and 1,000 test signals of 40 samples, float32, 10 classes: the published set (seed 42). The
    1,000 validation signals are generated alike with seed 43.

    Raises:
        DataError: the package's signals are not the registered ones.
    """
    published, fresh = _generate_mnist1d(42), _generate_mnist1d(43)
    _check("mnist1d", published["y"].tobytes() + published["y_test"].tobytes(), float(np.abs(published["x"]).mean()))

    def tensors(part: dict[str, np.ndarray], suffix: str) -> tuple[Tensor, Tensor]:
        return torch.tensor(part[f"x{suffix}"], dtype=torch.float32), torch.tensor(part[f"y{suffix}"])

    return Labelled(*tensors(published, ""), *tensors(fresh, "_test"), *tensors(published, "_test"))


def _generate_mnist1d(seed: int) -> dict[str, np.ndarray]:
    import mnist1d.data

    arguments = mnist1d.data.get_dataset_args()
    arguments.seed = seed
    # the package seeds the global generators; the caller's stay as they were
    states = random.getstate(), np.random.get_state()
    try:
        return mnist1d.data.make_dataset(arguments)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@cache
def words() -> Words:
    """The Python language reference as CPython carries it (``pydoc_data.topics``), split into words and punctuation.

    About 0.46 M characters, 90 k tokens, 5 k types, of which 2 k occur once. Its text, hence its checksum, changes
    with the version of Python.
    """
    from pydoc_data.topics import topics

    split = re.findall(r"\w+|[^\w\s]+", "\n".join(topics[name] for name in sorted(topics)))
    types, first, counts = np.unique(split, return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    index = {str(types[position]): rank for rank, position in enumerate(order)}
    return Words(torch.tensor([index[word] for word in split]), list(index))


SETS: dict[str, Callable[[], NamedTuple]] = {"mnist1d": mnist1d, "words": words}


@cache
def checksum(name: str) -> str:
    """SHA-256 over the tensors of a named data set, as loaded."""
    if name not in SETS:
        raise ValueError(f"name: {name!r} (must be one of {', '.join(SETS)})")
    total = hashlib.sha256()
    for part in SETS[name]():
        if isinstance(part, Tensor):
            # float32 rounds away differences of the last float64 bits between machines
            total.update(part.numpy().tobytes())
    return total.hexdigest()


def _check(name: str, exact: bytes, mean: float) -> None:
    """Compare a generated set with the registry: integers by SHA-256, floats by their mean size."""
    expected = json.loads((ROOT / "data" / "registry.json").read_text())[name]
    found = hashlib.sha256(exact).hexdigest()
    if found != expected["labels_sha256"] or abs(mean - expected["mean_abs"]) > 1e-9:
        raise DataError(
            f"data set {name!r}, from the package {expected['source']}: labels have SHA-256 {found} and signals mean"
            f" size {mean!r}, but data/registry.json says {expected['labels_sha256']} and {expected['mean_abs']!r}"
        )
