"""The data sets by name.

MNIST-1D, which is generated, and the words of the Python language reference, which the repository carries, need no
download; CIFAR-10, WikiText-2 and Tiny Shakespeare are files, which ``lab.registry`` finds or fetches.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import lzma
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lab import files, fingerprint, registry
from lab.registry import DataError


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


class Text(NamedTuple):
    """Three disjoint parts of a text, each int64, shape (length,), indices into one ``vocabulary``.

    The vocabulary is that of the whole text, most frequent first.
    """

    tokens: Tensor
    tokens_validation: Tensor
    tokens_test: Tensor
    vocabulary: list[str]


LARGE = ("cifar10", "wikitext2", "tinyshakespeare")


@cache
def mnist1d() -> Labelled:
    """MNIST-1D (Greydanus & Kobak, arXiv 2011.14439) as the package ``mnist1d`` generates it.

    4,000 training and 1,000 test signals of 40 samples, float32, 10 classes: the published set (seed 42). The
    1,000 validation signals are generated alike with seed 43. Generated once, they are kept in .cache/, under the
    versions that they depend on; a damaged file is generated anew. ``KADAM_CACHE=off`` does not matter here: these
    are checked data, no results.

    Raises:
        DataError: the package's signals are not the registered ones.
    """
    published, fresh = _kept_mnist1d(42), _kept_mnist1d(43)
    _check("mnist1d", published["y"].tobytes() + published["y_test"].tobytes(), float(np.abs(published["x"]).mean()))

    def tensors(part: dict[str, np.ndarray], suffix: str) -> tuple[Tensor, Tensor]:
        return torch.tensor(part[f"x{suffix}"], dtype=torch.float32), torch.tensor(part[f"y{suffix}"])

    return Labelled(*tensors(published, ""), *tensors(fresh, "_test"), *tensors(published, "_test"))


def _kept_mnist1d(seed: int) -> dict[str, np.ndarray]:
    versions = "-".join(f"{name}-{importlib.metadata.version(name)}" for name in ("mnist1d", "numpy", "scipy"))
    path = files.CACHE / f"{versions}-seed-{seed}.npz"
    arrays = files.read_arrays(path)
    if arrays is None:
        arrays = _generate_mnist1d(seed)
        files.write_arrays(path, arrays)
    return arrays


def _generate_mnist1d(seed: int) -> dict[str, np.ndarray]:
    import mnist1d.data

    arguments = mnist1d.data.get_dataset_args()
    arguments.seed = seed
    # the package seeds the global generators; the caller's stay as they were
    states = random.getstate(), np.random.get_state()
    try:
        generated = mnist1d.data.make_dataset(arguments)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return {name: generated[name] for name in ("x", "y", "x_test", "y_test")}


@cache
def words() -> Words:
    """The Python language reference of CPython 3.11.7, which the repository carries, in words and punctuation.

    465,048 characters, 89,292 tokens, 4,893 types, of which 1,485 occur once.

    Raises:
        DataError: the file is missing or another one.
    """
    text = lzma.decompress(registry.carried("words")).decode()
    return _encoded(re.findall(r"\w+|[^\w\s]+", text))


def _encoded(pieces: Sequence[str]) -> Words:
    # ties in the order of their first occurrence
    vocabulary = [piece for piece, _ in Counter(pieces).most_common()]
    index = {piece: rank for rank, piece in enumerate(vocabulary)}
    return Words(torch.tensor([index[piece] for piece in pieces]), vocabulary)


@cache
def wikitext2() -> Text:
    """WikiText-2 (Merity et al., arXiv 1609.07843), tokenised as published, ``<eos>`` at the end of every line.

    2,088,628 tokens to train on, 217,646 for validation, 245,569 for the test, of 33,278 types.

    Raises:
        DataError: a file is missing or another one.
    """
    parts = []
    for name in ("train", "valid", "test"):
        content = registry.read("wikitext2", f"wikitext-2/{name}.txt").decode()
        parts.append(content.replace("\n", " <eos> ").split())
    text = _encoded([word for part in parts for word in part])
    train, validation, test = text.tokens.split([len(part) for part in parts])
    return Text(train, validation, test, text.vocabulary)


@cache
def tinyshakespeare() -> Text:
    """Tiny Shakespeare (Karpathy, char-rnn), by characters: 1,115,394 of 65 types.

    The first nine tenths are to train on, the next twentieth is for validation, the last for the test.

    Raises:
        DataError: the file is missing or another one.
    """
    text = _encoded(registry.read("tinyshakespeare", "tinyshakespeare/input.txt").decode())
    held_out = len(text.tokens) // 20
    train, validation, test = text.tokens.split([len(text.tokens) - 2 * held_out, held_out, held_out])
    return Text(train, validation, test, text.vocabulary)


@cache
def cifar10() -> Labelled:
    """CIFAR-10 (Krizhevsky 2009): images float32, shape (n, 3, 32, 32), 10 classes; 740 MB.

    45,000 training images, the last 5,000 of the published training set for validation, and the 10,000 test images.
    Every channel has mean 0 and standard deviation 1 over the training images.

    Raises:
        DataError: a file is missing or another one.
    """
    names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    images, labels = zip(*(_cifar_batch(f"cifar-10-batches-py/{name}") for name in names), strict=True)
    x, y = torch.cat(images).float(), torch.cat(labels)
    rest = len(x) - len(images[-1])
    sizes = [rest - rest // 10, rest // 10, len(images[-1])]
    training = x[: sizes[0]]
    # in place, or it would take the memory twice
    x -= training.mean((0, 2, 3), keepdim=True)
    x /= training.std((0, 2, 3), keepdim=True)
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return Labelled(*(half for part in parts for half in part))


def _cifar_batch(file: str) -> tuple[Tensor, Tensor]:
    batch = _Arrays(io.BytesIO(registry.read("cifar10", file)), encoding="bytes").load()
    return torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32), torch.tensor(batch[b"labels"])


class _Arrays(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays; a pickle that names anything else could run it, and is refused."""

    ALLOWED = (("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as NumPy 2 calls it
        if (module, name) not in self.ALLOWED:
            raise DataError(f"data set 'cifar10': a file names {module}.{name} (must be an array or a plain value)")
        return super().find_class(module, name)


SETS: dict[str, Callable[[], NamedTuple]] = {
    "mnist1d": mnist1d, "words": words, "cifar10": cifar10, "wikitext2": wikitext2, "tinyshakespeare": tinyshakespeare,
}  # fmt: skip


LOADERS = tuple(f"{__name__}.{name}" for name in SETS)
"""What a run's fingerprint does not follow: for a loader's code stands the checksum of what it loads."""


@cache
def checksum(name: str) -> str:
    """SHA-256 of a named data set: over all that is loaded; of a large one over its files' and its loader's code.

    The files themselves are compared with the registered checksums when they are read.
    """
    if name not in SETS:
        raise ValueError(f"name: {name!r} (must be one of {', '.join(SETS)})")
    total = hashlib.sha256()
    if name in LARGE:
        total.update("".join(registry.entries()[name]["files"].values()).encode())
        total.update(fingerprint.here().of_function(__name__, name).fingerprint.encode())
        return total.hexdigest()
    for part in SETS[name]():
        # float32 rounds away differences of the last float64 bits between machines
        total.update(part.numpy().tobytes() if isinstance(part, Tensor) else json.dumps(part).encode())
    return total.hexdigest()


def _check(name: str, exact: bytes, mean: float) -> None:
    """Compare a generated set with the registry: integers by SHA-256, floats by their mean size."""
    expected = registry.entries()[name]
    found = hashlib.sha256(exact).hexdigest()
    if found != expected["labels_sha256"] or abs(mean - expected["mean_abs"]) > 1e-9:
        raise DataError(
            f"data set {name!r}, from the package {expected['source']}: labels have SHA-256 {found} and signals mean"
            f" size {mean!r}, but data/registry.json says {expected['labels_sha256']} and {expected['mean_abs']!r}"
        )
