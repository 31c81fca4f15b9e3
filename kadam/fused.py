"""The step on a CPU in one pass over the memory, without a kernel of our own.

torch's fused AdamW kernel computes theta <- (1 - lr weight_decay) theta - lr x, with x its normalised momentum.
With lr = weight_decay = -1 it leaves x itself in theta, so it serves as one stage: k - 1 such calls that write to a
scratch tensor, each reading what the one before left there, then the call that moves the parameters. The scratch is
one piece of ``PIECE`` elements, which stays in the processor's cache while all stages pass over it; the memory sees
the gradients, moments and parameters once.

The kernel is torch's private ``_fused_adamw_``. It checks neither sizes nor strides, so they are checked here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from kadam import cpu_kernel
from kadam.engines import Work, by_layout, count, loop, vanishes
from kadam.update import Number

# 4 MiB in float32: larger leaves the cache, smaller pays for more calls. The best of 2^16 ... 2^21 where measured
PIECE = 1 << 20


def fused(work: Work, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
    """One step; none at all if ``found_inf`` is not zero. ``grad_scale`` divides the gradients, which stay unchanged.

    Tensors that do not lie in memory as their parameter does take the loop.
    """
    if found_inf is not None and found_inf.item():
        return
    if grad_scale is not None:
        work.grads = list(torch._foreach_div(work.grads, float(grad_scale)))
    for part in work.by_kind():
        dense, rest = by_layout(part)
        if rest:
            loop(rest)
        if dense:
            count(dense.steps)
            _fused(dense)
            # the kernels write behind autograd's back; a graph that holds the old values has to know
            torch.autograd.graph.increment_version(dense.params)


def _fused(work: Work) -> None:
    if cpu_kernel.takes(work):
        cpu_kernel.step(work)
        return
    param, grad, m = work.params[0], work.grads[0], work.firsts[0][0]
    # torch's kernel knows one dtype, computes halves in float32, and gives 0/0 where the second moment and eps are zero
    plain = param.dtype == m.dtype and not vanishes(work.eps, torch.promote_types(m.dtype, torch.float32))
    if plain and grad.dtype == m.dtype and len(work.stages) == 1:
        _call(work, 0, work.params, work.grads, work.lr, work.weight_decay)
        return
    scratch = _scratch(m.dtype)
    for piece in _pieces(work):
        sizes = [param.numel() for param in piece.params]
        flat = scratch[: sum(sizes)].zero_()  # the kernel multiplies what it finds by zero, which leaves a NaN
        xs = list(torch.split(flat, sizes))
        inputs = piece.grads if grad.dtype == m.dtype else [grad.to(m.dtype) for grad in piece.grads]
        last = len(piece.stages) - 1
        for i in range(last + 1):
            if plain and i == last:
                _call(piece, i, piece.params, inputs, piece.lr, piece.weight_decay)
                break
            _call(piece, i, xs, inputs, -1.0, -1.0)
            if not plain:
                for x, v in zip(xs, piece.seconds[i], strict=True):
                    x.masked_fill_(v.view(-1) == 0, 0)
            inputs = xs
        if not plain:
            for param, x in zip(piece.params, xs, strict=True):
                theta = param.to(torch.promote_types(param.dtype, x.dtype))
                decayed = theta * (1 - float(piece.lr) * float(piece.weight_decay))
                param.copy_(decayed.sub_(x.view_as(param), alpha=float(piece.lr)))


def _call(work: Work, stage: int, thetas: list[Tensor], xs: list[Tensor], lr: Number, weight_decay: Number) -> None:
    """Moments of ``stage`` from its inputs ``xs``; thetas <- (1 - lr weight_decay) thetas - lr output."""
    gamma, beta = work.stages[stage]
    torch._fused_adamw_(
        thetas,
        xs,
        work.firsts[stage],
        work.seconds[stage],
        [],
        work.steps,
        lr=float(lr),
        beta1=float(gamma),
        beta2=float(beta),
        weight_decay=float(weight_decay),
        eps=work.eps,
        amsgrad=False,
        maximize=work.maximize and stage == 0,
    )


def _pieces(work: Work) -> Iterator[Work]:
    """Parts of at most ``PIECE`` elements: slices of one large tensor, or several small tensors."""
    columns = work.columns()
    sizes = [param.numel() for param in work.params]
    start = total = 0
    for i, size in enumerate([*sizes, PIECE + 1]):
        if total + size > PIECE and i > start:
            yield work.part([column[start:i] for column in columns], work.steps[start:i])
            start, total = i, 0
        if size > PIECE and i < len(sizes):
            for slices in zip(*(torch.split(column[i].view(-1), PIECE) for column in columns), strict=True):
                yield work.part([[slice] for slice in slices], [work.steps[i]])
            start, total = i + 1, 0
        else:
            total += size


class _Kept(threading.local):
    def __init__(self) -> None:
        self.scratch: dict[torch.dtype, Tensor] = {}


_kept = _Kept()


def _scratch(dtype: torch.dtype) -> Tensor:
    """This thread's scratch; kept, because making it anew for every step costs as much as a stage of a small model."""
    if dtype not in _kept.scratch:
        with torch.inference_mode(False):  # it outlives the context in which it is made
            _kept.scratch[dtype] = torch.empty(PIECE, dtype=dtype, device="cpu")
    return _kept.scratch[dtype]
