"""The step on a CUDA device in one pass over the memory: a Triton kernel, all tensors of a group in one launch.

A block of threads takes ``BLOCK`` elements of one tensor through all k stages in registers: gradient, moments and
parameter are read once, moments and parameter written once, (3 + 4k) words an element. The kernel finds its tensors
through a table of addresses, which stays on the device until an address changes. Half-precision tensors are computed
in float32, as torch's fused AdamW does.

The arithmetic is that of ``kadam.update``; ``tests/test_gpu.py`` compares the two.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from kadam.engines import Work, by_layout, count, loop

BLOCK = 1024
"""Elements a program; a power of two."""


@triton.jit
def _power(rate, n):
    """rate^n in float64, also for rate = 0."""
    return tl.exp(n * tl.log(rate))


@triton.jit
def _divide(a, b):
    """a / b, rounded to nearest: what `/` gives in float64 alone."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _root(a):
    """The square root, rounded to nearest."""
    return tl.sqrt(a) if a.dtype == tl.float64 else tl.sqrt_rn(a)


@triton.jit
def _kernel(
    addresses, sizes, owners, starts, numbers, lr_at, scale_at, found_inf_at,
    K: tl.constexpr, PARAM: tl.constexpr, GRAD: tl.constexpr, STATE: tl.constexpr, COMPUTE: tl.constexpr,
    MAXIMIZE: tl.constexpr, SCALED: tl.constexpr, CHECKED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if CHECKED:  # noqa: SIM102 (one is known when the kernel is compiled)
        if tl.load(found_inf_at) != 0:
            return
    owner = tl.load(owners + tl.program_id(0))
    at = tl.multiple_of(tl.load(starts + tl.program_id(0)), BLOCK) + tl.arange(0, BLOCK)
    size = tl.load(sizes + owner)
    if ALIGNED:  # lets a thread load and store 16 bytes at once
        size = tl.multiple_of(size, 16)
    inside = at < size
    row = addresses + owner * (3 + 2 * K)
    n = tl.load(tl.load(row).to(tl.pointer_type(tl.float32))).to(tl.float64)
    param_at = tl.load(row + 1).to(tl.pointer_type(PARAM))
    grad_at = tl.load(row + 2).to(tl.pointer_type(GRAD))
    if ALIGNED:
        param_at = tl.multiple_of(param_at, 16)
        grad_at = tl.multiple_of(grad_at, 16)
    x = tl.load(grad_at + at, mask=inside, other=0).to(COMPUTE)
    if MAXIMIZE:
        x = -x
    if SCALED:
        x = _divide(x, tl.load(scale_at).to(COMPUTE) + tl.zeros_like(x))
    eps = tl.load(numbers).to(COMPUTE)
    for i in tl.static_range(K):
        m_at = tl.load(row + 3 + 2 * i).to(tl.pointer_type(STATE))
        v_at = tl.load(row + 4 + 2 * i).to(tl.pointer_type(STATE))
        if ALIGNED:
            m_at = tl.multiple_of(m_at, 16)
            v_at = tl.multiple_of(v_at, 16)
        gamma = tl.load(numbers + 2 + 2 * i)
        beta = tl.load(numbers + 3 + 2 * i)
        m = tl.load(m_at + at, mask=inside, other=0).to(COMPUTE)
        v = tl.load(v_at + at, mask=inside, other=0).to(COMPUTE)
        # from the nearer end, as torch.lerp: exact at gamma = 0
        near = m + (1 - gamma).to(COMPUTE) * (x - m)
        m = tl.where(gamma > 0.5, near, x - gamma.to(COMPUTE) * (x - m))
        v = beta.to(COMPUTE) * v + (1 - beta).to(COMPUTE) * x * x
        tl.store(m_at + at, m.to(STATE), mask=inside)
        tl.store(v_at + at, v.to(STATE), mask=inside)
        correction = (1 - _power(gamma, n)).to(COMPUTE)
        correction_of_root = tl.sqrt(1 - _power(beta, n)).to(COMPUTE)
        root = _divide(_root(v), correction_of_root + tl.zeros_like(v)) + eps
        # a second moment of zero has update zero
        x = tl.where(root == 0, 0.0, _divide(_divide(m, correction + tl.zeros_like(m)), tl.where(root == 0, 1.0, root)))
    lr = tl.load(lr_at).to(tl.float64)
    decay = (1 - lr * tl.load(numbers + 1)).to(COMPUTE)
    param = tl.load(param_at + at, mask=inside, other=0).to(COMPUTE)
    tl.store(param_at + at, (param * decay - lr.to(COMPUTE) * x).to(PARAM), mask=inside)


_TYPES = {
    torch.float64: tl.float64, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}  # fmt: skip


def fused(work: Work, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
    """One step; none at all if ``found_inf`` is not zero. ``grad_scale`` divides the gradients, which stay unchanged.

    Step counts, ``found_inf`` and a learning rate that is a tensor stay on the device. A new number as learning rate,
    and new addresses, as of gradients made anew, are copied there. Tensors that do not lie in memory as their
    parameter does take the loop.
    """
    for part in work.by_kind():
        dense, rest = by_layout(part)
        if rest and (found_inf is None or not found_inf.item()):
            if grad_scale is not None:
                rest.grads = [grad / grad_scale.to(grad.device) for grad in rest.grads]
            loop(rest)
        if dense:
            count(dense.steps)
            for half in _by_alignment(dense):
                _launch(*half, grad_scale, found_inf)
            if found_inf is not None:
                torch._foreach_sub_(dense.steps, [found_inf.to(dense.steps[0])] * len(dense.steps))
            torch.autograd.graph.increment_version(dense.params)


def _by_alignment(work: Work) -> list[tuple[Work, bool]]:
    """The tensors that lend themselves to accesses of 16 bytes, and the others."""
    rows = zip(*work.columns(), strict=True)
    even = [all(x.data_ptr() % 16 == 0 for x in row) and row[0].numel() % 16 == 0 for row in rows]
    parts = []
    for wanted in (True, False):
        chosen = [i for i, found in enumerate(even) if found is wanted and work.params[i].numel() > 0]
        if chosen:
            parts.append((work.pick(chosen), wanted))
    return parts


def _launch(work: Work, aligned: bool, grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
    params, device = work.params, work.params[0].device
    dtypes = params[0].dtype, work.grads[0].dtype, work.firsts[0][0].dtype
    rows = zip(work.steps, *work.columns(), strict=True)
    addresses = _addresses(tuple(tensor.data_ptr() for row in rows for tensor in row), device)
    owners, starts, sizes = _blocks(tuple(param.numel() for param in params), device)
    k = len(work.stages)
    numbers = (work.eps, float(work.weight_decay), *(float(rate) for stage in work.stages for rate in stage))
    lr = work.lr.to(device) if isinstance(work.lr, Tensor) else _on_device((float(work.lr),), device)
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    with torch.cuda.device_of(params[0]):  # the launch goes to the current device
        _kernel[(len(owners),)](
            addresses, sizes, owners, starts, _on_device(numbers, device), lr,
            lr if grad_scale is None else grad_scale.to(device), lr if found_inf is None else found_inf.to(device),
            K=k, PARAM=_TYPES[dtypes[0]], GRAD=_TYPES[dtypes[1]], STATE=_TYPES[dtypes[2]], COMPUTE=_TYPES[compute],
            MAXIMIZE=work.maximize, SCALED=grad_scale is not None, CHECKED=found_inf is not None, ALIGNED=aligned,
            BLOCK=BLOCK,
        )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


@functools.lru_cache(maxsize=16)
def _addresses(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """A row for each tensor: step, param, grad, m_1, v_1, ..."""
    # an address of the upper half would not fit a signed integer
    signed = [address - (1 << 64) if address >= 1 << 63 else address for address in addresses]
    return torch.tensor(signed, dtype=torch.int64, device=device)


@functools.lru_cache(maxsize=16)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every program its tensor and its first element there; and the tensors' sizes."""
    owners = [i for i, size in enumerate(sizes) for _ in range(0, size, BLOCK)]
    starts = [start for size in sizes for start in range(0, size, BLOCK)]
    as_integers = functools.partial(torch.tensor, dtype=torch.int64, device=device)
    return as_integers(owners), as_integers(starts), as_integers(sizes)
