"""Runs of k-Adam that are trained together: one network and the same batches, hyperparameters of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from kadam import ensemble
from kadam.ensemble import Initialiser, Loss, Member, Observer, Runs
from lab.data import Labelled
from lab.training import cross_entropy, shuffled_batches

Members = Sequence[Mapping[str, Any]]
Measure = Callable[[Tensor, Tensor], Tensor]


def trained(
    make: Callable[[], nn.Module], parts: Labelled, members: Members, seed: int, steps: int, every: int, batch: int,
    on_test: Mapping[str, Measure] | None = None, observe: Mapping[str, Observer] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """k-Adam for all ``members``, dicts of ``KAdam``'s arguments, without weight decay unless they have it.

    All start from the weights of ``seed`` and see the same batches. ``on_test`` are scalar functions of output and
    targets, by name, taken from the pass over the test part that gives its loss.

    Returns ``validation_loss`` and ``test_loss``, (members, evaluations), NaN from where a run diverged, and as such
    what ``on_test`` and ``observe`` name; the ``steps`` of the evaluations; ``diverged_at``, (members,).
    """
    loss, init = ensemble.from_module(make, cross_entropy)
    model, measures = make(), {"test_loss": cross_entropy, **(on_test or {})}

    def test(member: Member) -> Tensor:
        """All measures of one pass, (measures,)."""
        output = functional_call(model, member.params, (parts.x_test,))
        return torch.stack([measure(output, parts.y_test) for measure in measures.values()])

    observers: dict[str, Observer] = {
        "validation_loss": lambda member: loss(member.params, (parts.x_validation, parts.y_validation)),
        "test": test,
        **(observe or {}),
    }
    complete = [{"weight_decay": 0.0, "seed": seed, **member} for member in members]
    found = runs(loss, init, parts, complete, seed, steps, every, batch, observers)
    tested = found.observed.pop("test")
    if tested.ndim == 2:  # nobody got as far as the first look
        tested = np.full((*tested.shape, len(measures)), np.nan)
    by_name = {name: tested[..., i] for i, name in enumerate(measures)}
    return {**found.observed, **by_name, "steps": found.observed_at, "diverged_at": found.diverged_at}


def runs(
    loss: Loss, init: Initialiser, parts: Labelled, members: Members, seed: int, steps: int, every: int, batch: int,
    observe: Mapping[str, Observer],
) -> Runs:  # fmt: skip
    """``ensemble.train`` on the training part, in batches of ``batch`` examples shuffled by ``seed``."""
    batches = list(shuffled_batches(parts.x, parts.y, batch, steps, seed))
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused kernel takes the members one by one
        return ensemble.train(loss, init, members, lambda step, _: batches[step - 1], steps, observe, every)
