"""Runs of ``notebooks/02_stable_region.ipynb``."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from kadam.optimizer import KAdam
from lab import data
from lab.experiments import uses
from lab.models import Transformer
from lab.training import largest_update, single_pass, train


@uses("words")
def transformer_on_words(
    beta: float, gamma: float, seed: int, steps: int, lr: float, eps: float, batch: int = 4, context: int = 32
) -> dict[str, Any]:
    """Adam on a two-layer transformer over one pass through the words.

    Returns ``largest_update``: max |u_n| over all parameters, n = 0 ... steps - 1; ``loss``; ``outcome``; and of the
    coordinate with the largest last update its parameter's name, ``carrier``, and the size of its last gradient.
    """
    text = data.words()
    torch.manual_seed(seed)
    model = Transformer(len(text.vocabulary), context)
    with warnings.catch_warnings():  # half of the points are meant to lie outside the stable region
        warnings.filterwarnings("ignore", message="KAdam: outside the stable region")
        optimizer = KAdam(model.parameters(), lr=lr, betas=(gamma, beta), k=1, eps=eps, weight_decay=0.0)
    history = train(
        model,
        optimizer,
        single_pass(text.tokens, context, batch, steps, seed),
        {"largest_update": lambda: largest_update(model, optimizer)},
    )
    updates = {name: optimizer.last_update(param).abs() for name, param in model.named_parameters()}
    carrier = max(updates, key=lambda name: updates[name].max().item())
    gradient = model.get_parameter(carrier).grad
    assert gradient is not None
    return {
        "largest_update": history.observed["largest_update"],
        "loss": history.loss,
        "outcome": history.outcome,
        "carrier": carrier,
        "carrier_gradient": gradient.flatten()[updates[carrier].argmax()].abs().item(),
    }
