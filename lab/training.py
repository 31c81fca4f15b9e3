"""The training loop: it records what a page asks for, and a run that diverges says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kadam.optimizer import KAdam
from lab.data import Labelled

Observer = Callable[[], float]


@dataclass(frozen=True)
class History:
    """What ``train`` saw.

    Attributes:
        outcome: ``"finished"``, or ``"diverged at step n"`` when the loss of step n was not finite; that step
            was not taken.
        loss: training loss before each step, shape (steps taken,).
        observed: one array per observer, over the steps at which it was asked.
        observed_at: these steps, counted from 1 after the update.
    """

    outcome: str
    loss: NDArray[np.float64]
    observed: dict[str, NDArray[np.float64]]
    observed_at: NDArray[np.int64]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    observers: Mapping[str, Observer] | None = None,
    every: int = 1,
) -> History:
    """Minimise the cross-entropy over ``batches``, one step per batch; ask the observers after every ``every`` steps.

    The model's output has its classes in the last dimension; targets have the other dimensions.
    """
    observers = observers or {}
    losses: list[float] = []
    seen: dict[str, list[float]] = {name: [] for name in observers}
    at: list[int] = []
    outcome = "finished"
    for step, (inputs, targets) in enumerate(batches, start=1):
        loss = cross_entropy(model(inputs), targets)
        value = loss.item()
        if not np.isfinite(value):
            outcome = f"diverged at step {step}"
            break
        losses.append(value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            at.append(step)
            for name, observe in observers.items():
                seen[name].append(observe())
    return History(
        outcome, np.array(losses), {name: np.array(values) for name, values in seen.items()}, np.array(at, dtype=int)
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of ``targets`` that the largest logit names, (), in the dtype of ``logits``."""
    return (logits.argmax(-1) == targets).to(logits.dtype).mean()


def kadam_anywhere(params: Iterable[Tensor], **arguments: Any) -> KAdam:
    """``KAdam(params, **arguments)`` without its warning, for experiments that mean to leave the stable region."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="KAdam: outside the stable region")
        return KAdam(params, **arguments)


def largest_update(model: nn.Module, optimizer: KAdam) -> float:
    """max |u| over all coordinates of all parameters, for the optimizer's last step."""
    # not Python's max, which loses a NaN
    return torch.stack([optimizer.last_update(param).abs().max() for param in model.parameters()]).max().item()


def shuffled_batches(x: Tensor, y: Tensor, size: int, steps: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    """``steps`` batches of ``size`` examples; every epoch in a new order, its incomplete last batch left out."""
    if not 1 <= size <= len(x):
        raise ValueError(f"size: {size} (must lie between 1 and the number of examples, {len(x)})")
    generator = torch.Generator().manual_seed(seed)
    order: Tensor = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[:size], order[size:]
        yield x[chosen], y[chosen]


def text_blocks(tokens: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The text cut into blocks of ``context`` + 1 tokens: inputs and next tokens, each of shape (blocks, context)."""
    blocks = len(tokens) // (context + 1)
    pieces = tokens[: blocks * (context + 1)].view(blocks, context + 1)
    return pieces[:, :-1], pieces[:, 1:]


def text_parts(tokens: Tensor, context: int) -> Labelled:
    """The text in blocks, inputs and next tokens (blocks, context): four fifths to train on, the last fifth held out.

    Of the held-out blocks every sixteenth is for validation, and every sixteenth, halfway between those, for the test.
    """
    x, y = text_blocks(tokens, context)
    start = len(x) - len(x) // 5  # of what is held out
    parts = (slice(start), slice(start, None, 16), slice(start + 8, None, 16))
    return Labelled(*(half[part] for part in parts for half in (x, y)))


def single_pass(tokens: Tensor, context: int, size: int, steps: int, seed: int) -> Iterable[tuple[Tensor, Tensor]]:
    """``steps`` batches of ``size`` blocks of text, each block used once: inputs and next tokens, (size, context).

    Raises:
        ValueError: the text is too short for that many blocks.
    """
    x, y = text_blocks(tokens, context)
    if size * steps > len(x):
        raise ValueError(f"steps: {steps} (one pass over the text has {len(x) // size} batches of this size)")
    return shuffled_batches(x, y, size, steps, seed)
