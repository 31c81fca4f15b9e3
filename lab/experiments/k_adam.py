"""Runs of ``notebooks/05_k_adam.ipynb``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kadam.optimizer import KAdam
from lab import data
from lab.experiments import uses
from lab.models import ConvNet
from lab.training import accuracy, cross_entropy, shuffled_batches, train


@uses("mnist1d")
def convnet_on_mnist1d(
    k: int, schedule: str, lr: float, seed: int, steps: int, batch: int = 100, weight_decay: float = 0.0,
    norm: str = "none", every: int = 50,
) -> dict[str, Any]:  # fmt: skip
    """k-Adam with (gamma, beta) = (0.9, 0.999) on a convolutional network over MNIST-1D.

    Returns ``validation_loss``, ``test_loss`` and ``test_accuracy`` after every ``every`` steps, those ``steps``, the
    training ``loss`` and the ``outcome``.
    """
    parts = data.mnist1d()
    torch.manual_seed(seed)
    model = ConvNet(norm=norm)
    optimizer = KAdam(model.parameters(), lr=lr, k=k, schedule=schedule, weight_decay=weight_decay)

    def evaluate(measure: Callable[..., Any], x: torch.Tensor, y: torch.Tensor) -> Callable[[], float]:
        def observe() -> float:
            with torch.no_grad():
                return float(measure(model(x), y))

        return observe

    history = train(
        model,
        optimizer,
        shuffled_batches(parts.x, parts.y, batch, steps, seed),
        {
            "validation_loss": evaluate(cross_entropy, parts.x_validation, parts.y_validation),
            "test_loss": evaluate(cross_entropy, parts.x_test, parts.y_test),
            "test_accuracy": evaluate(accuracy, parts.x_test, parts.y_test),
        },
        every,
    )
    return {**history.observed, "steps": history.observed_at, "loss": history.loss, "outcome": history.outcome}


def distance_to_adamw(steps: int, lr: float, weight_decay: float) -> float:
    """max |difference| of any parameter after ``steps`` steps of KAdam with k = 1 and of AdamW.

    Each of the three implementations, loop, foreach and fused, against AdamW's of the same name; the largest of all.
    """
    parts = data.mnist1d()

    def trained(make: Callable[..., torch.optim.Optimizer], **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        model = ConvNet()
        optimizer = make(model.parameters(), lr=lr, weight_decay=weight_decay, **arguments)
        train(model, optimizer, shuffled_batches(parts.x, parts.y, 100, steps, 0))
        return model

    differences = []
    for engine in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        ours, theirs = trained(KAdam, k=1, **engine), trained(torch.optim.AdamW, **engine)
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        differences += [(p - q).abs().max() for p, q in pairs]
    return torch.stack(differences).max().item()
