"""The hyperparameters of a parameter group: their defaults, what is refused, and what is warned of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kadam import stability
from kadam.stages import make_stages

DEFAULTS: Mapping[str, Any] = dict(
    lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, k=2, schedule="inverse_exp", maximize=False, foreach=None,
    capturable=False, differentiable=False, fused=None, state_dtype=None,
)  # fmt: skip
"""What ``kadam.KAdam`` takes for an argument that is not given; its signature says the same."""


def check(group: dict[str, Any]) -> None:
    """Check the hyperparameters of a group; the first words are those of torch's own messages."""
    if group["foreach"]:
        refuse_tensors_in_foreach(group)
    for name in ("lr", "weight_decay"):
        if isinstance(group[name], Tensor) and group[name].numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(group[name].shape)}")
    for name, words in (("lr", "learning rate"), ("eps", "epsilon value"), ("weight_decay", "weight_decay value")):
        value = group[name]
        if isinstance(value, bool) or not isinstance(value, float | int if name == "eps" else float | int | Tensor):
            raise TypeError(f"Invalid {words}: {value!r} ({name} must be a number >= 0)")
        if not value >= 0:
            raise ValueError(f"Invalid {words}: {value} ({name} must be >= 0)")
    make_stages(group["betas"], group["k"], group["schedule"])
    if group["fused"] and group["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if group["fused"] and group["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    dtype = group["state_dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"Invalid state_dtype: {dtype!r} (must be None or a floating-point torch.dtype)")


def refuse_tensors_in_foreach(group: dict[str, Any]) -> None:
    """As torch's Adam does: a step of several tensors at once takes these numbers from the host."""
    if group["capturable"]:
        return
    if isinstance(group["lr"], Tensor):
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if isinstance(make_stages(group["betas"], group["k"], group["schedule"])[0].gamma, Tensor):
        raise ValueError("betas[0] as a Tensor is not supported for capturable=False and foreach=True")


def warn_if_unstable(groups: list[dict[str, Any]]) -> None:
    """Warn of last stages, which alone bound the update, with C < 0: one warning for all groups."""
    stages = [make_stages(group["betas"], group["k"], group["schedule"])[-1] for group in groups]
    pairs = {tuple(float(torch.as_tensor(rate).detach()) for rate in stage) for stage in stages}
    found = []
    for gamma, beta in sorted(pairs):
        c = float(stability.coefficient(beta, gamma))
        if c < 0:
            digits = stability.digits_of_exact_bound(beta, gamma)
            found.append(
                f"(gamma, beta) = ({gamma:.6g}, {beta:.6g}) with C = {c:.4g} < 0, where nothing keeps an update below "
                f"the bound {digits}"
            )
    if found:
        warnings.warn(f"KAdam: outside the stable region of the last stage: {'; '.join(found)}", stacklevel=3)
