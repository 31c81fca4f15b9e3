"""Gradient sequences that try to break the bound on the update."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from kadam import stability, update
from kadam.update import Stage

Array = NDArray[np.float64]
Rates = tuple[Array, Array]  # (beta, gamma), each of shape (sequences,)


def ratio_to_bound(gradients: Array, *rates: Rates) -> Array:
    """max |u_n| / B_n over all sequences, for every n, in float64 at eps = 0. At n = 0 it is 1 for any gradient.

    ``gradients`` has shape (sequences, steps), the result has shape (steps,). One pair of ``rates`` is Adam; k pairs
    are k-Adam, first stage first, and B_n is the exact bound of the last.
    """
    stages = [Stage(torch.tensor(gamma), torch.tensor(beta)) for beta, gamma in rates]
    columns = torch.tensor(gradients).T
    moments = [update.zeros(columns[0])] * len(stages)
    largest = []
    for n, gradient in enumerate(columns):
        moments = update.cascade(gradient, moments, n + 1, stages, 0.0)
        size = update.output(moments[-1], n + 1, stages[-1], 0.0).abs().numpy()
        largest.append((size / stability.exact_bound(n, *rates[-1])).max())
    return np.array(largest)


def random_rates(count: int, generator: np.random.Generator) -> Rates:
    """(beta, gamma) with memory lengths 1/(1 - rate) log-uniform between 1.5 and 10,000 steps."""
    beta, gamma = 1 - np.exp(-generator.uniform(np.log(1.5), np.log(1e4), (2, count)))
    return beta, gamma


def hostile_sequences(count: int, steps: int, generator: np.random.Generator) -> tuple[Array, Rates]:
    """Gradients of shape (count, steps) and the ``random_rates`` they are meant for.

    In equal parts: normal, Cauchy (heavy tails), one
    in twenty not zero, growing and falling geometrically, and the extremal sequence of the pair, disturbed by 10 %.

    Raises:
        ValueError: more than 300 steps; the squares of the extremal sequence would leave the normal range of float64.
    """
    if not 1 <= steps <= 300:
        raise ValueError(f"steps: {steps} (must lie between 1 and 300)")
    beta, gamma = random_rates(count, generator)
    shape = (count, steps)
    normal = generator.standard_normal(shape)
    n = np.arange(steps)
    exponent = (np.log(beta) - np.log(gamma))[:, None] * n  # of the extremal sequence
    kinds = (
        normal,
        generator.standard_cauchy(shape),
        normal * (generator.random(shape) < 0.05),
        np.exp(generator.uniform(-0.1, 0.1, (count, 1)) * n) * np.sign(normal),
        np.exp(exponent - exponent.max(axis=1, keepdims=True)) * (1 + 0.1 * normal),
    )
    kind = np.arange(count) % len(kinds)
    return np.choose(kind[:, None], kinds), (beta, gamma)
