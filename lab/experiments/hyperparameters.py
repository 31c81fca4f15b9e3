"""Runs of ``notebooks/03_hyperparameters.ipynb``, and the points (beta, gamma) at which they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kadam import stability
from lab import data
from lab.experiments import run
from lab.models import ConvNet, Transformer
from lab.together import trained
from lab.training import cross_entropy, kadam_anywhere, shuffled_batches, text_parts, train

Array = NDArray[np.float64]
Points = Sequence[Sequence[float]]


@run("hyperparameters.convnet", data="mnist1d", short={"steps": 10, "every": 5}, corners=[{"lr": 1e30}])
def convnet_on_mnist1d(
    points: Points, lr: float, seed: int, steps: int, every: int = 25, batch: int = 50, channels: int = 16
) -> dict[str, Any]:
    """Adam without weight decay at all ``points`` (beta, gamma) together, on a convolutional network over MNIST-1D.

    All points start from the same weights and see the same batches. Returns ``validation_loss`` and ``test_loss``,
    (points, evaluations), NaN from where a run diverged; the ``steps`` of the evaluations; ``diverged_at``, (points,).
    """
    return trained(lambda: ConvNet(channels), data.mnist1d(), _members(points, lr), seed, steps, every, batch)


@run("hyperparameters.transformer", data="words", short={"steps": 4, "every": 2}, corners=[{"lr": 1e30}])
def transformer_on_words(
    points: Points, lr: float, seed: int, steps: int, every: int = 25, batch: int = 4, context: int = 32,
    vocabulary: int = 500,
) -> dict[str, Any]:  # fmt: skip
    """The same for a two-layer transformer on the words, of which all but the ``vocabulary`` - 1 most frequent are one.

    The parts are those of ``text_parts``.
    """
    parts = text_parts(data.words().tokens.clamp(max=vocabulary - 1), context)
    return trained(lambda: Transformer(vocabulary, context), parts, _members(points, lr), seed, steps, every, batch)


def _members(points: Points, lr: float) -> list[dict[str, Any]]:
    """A member of ``trained`` for every point: Adam at its (beta, gamma)."""
    return [dict(lr=lr, betas=(gamma, beta), k=1) for beta, gamma in points]


def difference_to_single_runs(points: Points, lr: float, steps: int, seed: int = 0) -> float:
    """max |difference| of a validation loss after any step: the network's runs together, and alone by ``KAdam``."""
    together = convnet_on_mnist1d(points, lr, seed, steps, every=1)["validation_loss"]
    parts = data.mnist1d()
    alone = []
    for beta, gamma in points:
        torch.manual_seed(seed)
        model = ConvNet(channels=16)
        optimizer = kadam_anywhere(model.parameters(), lr=lr, betas=(gamma, beta), k=1, weight_decay=0.0)

        def validation_loss(model: nn.Module = model) -> float:
            with torch.no_grad():
                return cross_entropy(model(parts.x_validation), parts.y_validation).item()

        batches = shuffled_batches(parts.x, parts.y, 50, steps, seed)
        alone.append(train(model, optimizer, batches, {"loss": validation_loss}).observed["loss"])
    return float(np.abs(together - np.array(alone)).max())


def level_points(c: float, beta: float, length: float, count: int) -> tuple[Array, Array]:
    """``count`` points (beta, gamma) of the level curve C = ``c``, from ``beta`` downwards at equal distances.

    The distances are Euclidean in the plane (beta, gamma) and add up to ``length``.

    Raises:
        ValueError: the curve does not pass ``beta`` within the unit square, or ends before that length.
    """
    start = 2 / (1 / beta + 1 + c)  # C(beta, start) = c
    if not 0 < start < 1:
        raise ValueError(f"beta: {beta!r} (the level curve C = {c!r} does not pass it for gamma in (0, 1))")
    gammas = start * np.linspace(1, 0, 10_000, endpoint=False)
    betas = stability.level_curve(gammas, c)
    walked = distances(betas, gammas)
    if not walked[-1] >= length:
        raise ValueError(f"length: {length!r} (the level curve C = {c!r} from beta = {beta!r} has {walked[-1]:.3g})")
    gamma = np.interp(np.linspace(0, length, count), walked, gammas)
    return stability.level_curve(gamma, c), gamma


def distances(beta: Array, gamma: Array) -> Array:
    """Length of the polygon through the points, up to each of them."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(beta), np.diff(gamma)))])
