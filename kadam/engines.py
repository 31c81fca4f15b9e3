"""How a step is carried out: three ways to apply the formula of ``kadam.update`` to many tensors in place.

=========  ==========================================================================  =====================
engine     how                                                                         differs from the loop
=========  ==========================================================================  =====================
`loop`     tensor by tensor, by the pure functions of ``kadam.update``                  it is the reference
`foreach`  torch's multi-tensor operations, all tensors in each                         in rounding
`fused`    one pass over the memory: ``kadam.fused`` on a CPU, ``kadam.gpu`` on CUDA    in rounding
=========  ==========================================================================  =====================

At k = 1 each gives the same parameters as ``torch.optim.AdamW``'s implementation of that name, to the last bit. They
agree to rounding only where ``lr`` is a tensor (the loop takes its number), for the fused one at eps = 0, and on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kadam import update
from kadam.update import Moments, Stage


@dataclass
class Work:
    """The tensors of one parameter group that a step changes, and its hyperparameters.

    ``params``, ``grads`` and ``steps`` have one entry a parameter. ``firsts[i]`` and ``seconds[i]`` hold the first and
    second moments of stage i + 1, one entry a parameter. ``tensor_steps`` asks for a step count that stays a tensor,
    so that a graph or autograd can follow it. ``uniform`` says that the tensors agree in device and dtypes.
    """

    params: list[Tensor]
    grads: list[Tensor]
    firsts: list[list[Tensor]]
    seconds: list[list[Tensor]]
    steps: list[Tensor]
    stages: list[Stage]
    lr: float | Tensor
    weight_decay: float | Tensor
    eps: float
    maximize: bool
    tensor_steps: bool = False
    uniform: bool = False

    def columns(self) -> list[list[Tensor]]:
        """params, grads, first and second moments of stage 1, ..., of stage k: one list each."""
        pairs = zip(self.firsts, self.seconds, strict=True)
        return [self.params, self.grads, *(column for pair in pairs for column in pair)]

    def part(self, columns: list[list[Tensor]], steps: list[Tensor]) -> Work:
        """The same step for other tensors, given as ``columns`` gives them."""
        return replace(
            self, params=columns[0], grads=columns[1], firsts=columns[2::2], seconds=columns[3::2], steps=steps
        )

    def pick(self, chosen: list[int]) -> Work:
        """The same step for the parameters of these indices."""
        columns = [[column[i] for i in chosen] for column in self.columns()]
        return self.part(columns, [self.steps[i] for i in chosen])

    def by_kind(self) -> Iterator[Work]:
        """Parts whose tensors agree in device and dtypes."""
        if self.uniform:
            yield self
            return
        kinds: dict[tuple[object, ...], list[int]] = {}
        for i, (param, grad, m) in enumerate(zip(self.params, self.grads, self.firsts[0], strict=True)):
            kinds.setdefault((param.device, param.dtype, grad.dtype, m.dtype), []).append(i)
        for chosen in kinds.values():
            yield self.pick(chosen)


def loop(work: Work) -> None:
    """One step, tensor by tensor. Moments of another dtype than their parameter's are computed in their own."""
    lr, stages = work.lr, work.stages
    if not work.tensor_steps:
        lr = float(lr)
    first = work.firsts[0]
    for i, (param, grad, step) in enumerate(zip(work.params, work.grads, work.steps, strict=True)):
        state = [Moments(ms[i], vs[i]) for ms, vs in zip(work.firsts, work.seconds, strict=True)]
        # autograd keeps what it multiplies, and the next step would write into it
        old = [Moments(m.clone(), v.clone()) for m, v in state] if torch.is_grad_enabled() else state
        n = step + 1 if work.tensor_steps else step.item() + 1
        x = grad.to(first[i].dtype)
        new = update.cascade(-x if work.maximize else x, old, n, stages, work.eps)
        theta = param.to(torch.promote_types(param.dtype, x.dtype), copy=torch.is_grad_enabled())
        value = update.apply(theta, new[-1], n, stages[-1], lr, work.weight_decay, work.eps)
        for before, after in zip(state, new, strict=True):
            before.m.copy_(after.m)
            before.v.copy_(after.v)
        param.copy_(value)
        step += 1


def foreach(work: Work) -> None:
    """One step with torch's multi-tensor operations; needs at most two buffers of the size of the parameters."""
    for part in work.by_kind():
        if any(isinstance(rate, Tensor) for stage in part.stages for rate in stage) or (
            part.params[0].dtype != part.firsts[0][0].dtype or part.params[0].dtype != part.grads[0].dtype
        ):
            loop(part)  # the multi-tensor operations know neither tensors as rates nor mixed dtypes
        else:
            _foreach(part)


def _foreach(work: Work) -> None:
    params, last = work.params, len(work.stages) - 1
    xs = torch._foreach_neg(work.grads) if work.maximize else tuple(work.grads)
    count(work.steps)
    ns: list[Any] = work.steps if work.tensor_steps else [step.item() for step in work.steps]
    stages: list[Any] = work.stages
    for i, (stage, ms, vs) in enumerate(zip(stages, work.firsts, work.seconds, strict=True)):
        torch._foreach_lerp_(ms, xs, 1 - stage.gamma)
        torch._foreach_mul_(vs, stage.beta)
        torch._foreach_addcmul_(vs, xs, xs, 1 - stage.beta)
        del xs  # before the next buffer is made
        roots = torch._foreach_sqrt(vs)
        torch._foreach_div_(roots, _corrections(stage.beta, ns, 0.5))
        torch._foreach_add_(roots, work.eps)
        if vanishes(work.eps, roots[0].dtype):
            for root in roots:
                root.masked_fill_(root == 0, torch.inf)
        corrections = _corrections(stage.gamma, ns)
        if i == last and not work.tensor_steps:
            if work.weight_decay != 0:
                torch._foreach_mul_(params, 1 - work.lr * work.weight_decay)
            torch._foreach_addcdiv_(params, ms, roots, [(work.lr / correction) * -1 for correction in corrections])
            return
        xs = torch._foreach_div(ms, corrections)
        torch._foreach_div_(xs, roots)
        del roots
    # a step count or a learning rate that is a tensor cannot be a factor above
    torch._foreach_mul_(params, 1 - work.lr * work.weight_decay)
    torch._foreach_mul_(xs, work.lr)
    torch._foreach_sub_(params, xs)


def _corrections(rate: float, ns: list[Any], power: float = 1) -> list[Any]:
    """Numbers or tensors, as ``ns`` are; torch's signatures know the two apart."""
    return [update.bias_correction(rate, n) ** power for n in ns]


def count(steps: list[Tensor]) -> None:
    """Add one to every step count."""
    if steps[0].is_cpu and not torch.compiler.is_compiling():
        # a tensor made once, where the number 1 would be wrapped anew for every step count
        torch._foreach_add_(steps, torch.ones((), device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)


def vanishes(eps: float, dtype: torch.dtype) -> bool:
    """Whether eps is zero in ``dtype``, so that a denominator can be zero."""
    return eps < torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def by_layout(work: Work) -> tuple[Work | None, Work | None]:
    """The tensors that lie in memory without gaps and in their parameter's order, and the others."""
    columns = work.columns()
    if all(all(map(Tensor.is_contiguous, column)) for column in columns):
        return work, None
    dense: list[int] = []
    others: list[int] = []
    for i, row in enumerate(zip(*columns, strict=True)):
        same = all(tensor.stride() == row[0].stride() for tensor in row)
        (dense if same and _without_gaps(row[0]) else others).append(i)
    if not dense:
        return None, work
    kept = work.pick(dense)
    flat = [[tensor.as_strided((tensor.numel(),), (1,)) for tensor in column] for column in kept.columns()]
    return work.part(flat, kept.steps), work.pick(others) if others else None


def _without_gaps(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once: then, and only then, a copy keeps the strides."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()
