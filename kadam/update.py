"""The k-Adam update, as pure functions on tensors: what every other way to take a step is compared with.

One stage turns an input x into a normalised output, keeping a first moment m and a second moment v
(n = 1, 2, 3, ... counts steps; m and v start at zero; all operations are elementwise)::

    m <- gamma m + (1 - gamma) x                  v <- beta v + (1 - beta) x^2
    output = ( m / (1 - gamma^n) ) / ( sqrt( v / (1 - beta^n) ) + eps )

k-Adam feeds the gradient through k such stages and moves the parameter by the last output::

    theta <- (1 - lr weight_decay) theta - lr output_k

k = 1 is Adam (weight_decay = 0) and AdamW. The update of the theory pages is u = -output_k, and their
step index is n - 1. Source: Gould & Tanaka, arXiv 2411.05746, sections 2 and 5; Adam: Kingma & Ba 2015;
decoupled weight decay: Loshchilov & Hutter 2019.

Nothing here changes its arguments, so the functions work under ``torch.func.vmap`` and autograd.
``gamma``, ``beta``, ``eps``, ``lr`` and ``weight_decay`` may be floats or tensors that broadcast
against the moments. The order of operations is that of ``torch.optim.AdamW``'s single-tensor path, so
with float hyperparameters k = 1 gives AdamW's parameters to the last bit.

``kadam.ensemble``, ``kadam.flow`` and the optimizer's loop call these functions. Its fast engines cannot, since they
work in place, on many tensors or in another language, and spell the formula again::

    kadam/engines.py     foreach   torch's operations on lists of tensors     test_optimizer.py: test_engines_agree
    kadam/fused.py       fused     torch's AdamW kernel, one stage a call     test_optimizer.py: test_engines_agree
    kadam/gpu.py         fused     a kernel in Triton                         test_gpu.py: test_is_the_reference
    kadam/cpu_kernel.cpp           a kernel in C++, for those who build it    test_cpu_kernel.py, with kadam/fused.py

The tests at the right compare each with the loop, the last one with the engine that it replaces; ``test_update.py``
and ``test_optimizer.py`` compare these functions and the default engine with ``tests/reference.py``, which has the
formula in plain Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Number = float | Tensor


class Stage(NamedTuple):
    """Decay rates of one stage, each in [0, 1): ``gamma`` of the first moment, ``beta`` of the second."""

    gamma: Number
    beta: Number


class Moments(NamedTuple):
    """First moment ``m`` and second moment ``v`` of one stage, both of the parameter's shape."""

    m: Tensor
    v: Tensor


def zeros(like: Tensor) -> Moments:
    """The moments of a stage before its first step: zeros, of the shape, dtype and device of ``like``."""
    return Moments(torch.zeros_like(like), torch.zeros_like(like))


def average(old: Tensor, new: Tensor, alpha: Number) -> Tensor:
    """A moving average's step, alpha old + (1 - alpha) new, from the nearer end: at alpha = 0 it is ``new`` itself."""
    return torch.lerp(old, new, 1 - alpha)


def advance(x: Tensor, moments: Moments, stage: Stage) -> Moments:
    """The stage's moments after input ``x``: m <- gamma m + (1-gamma) x, v <- beta v + (1-beta) x^2."""
    gamma, beta = stage
    m = average(moments.m, x, gamma)
    if isinstance(beta, Tensor):  # addcmul takes no tensor as its factor
        v = average(moments.v, x * x, beta)
    else:
        v = (moments.v * beta).addcmul(x, x, value=1 - beta)
    return Moments(m, v)


def bias_correction(alpha: Number, n: Number) -> Number:
    """1 - alpha^n: the total weight that a moving average of decay ``alpha`` has given after ``n`` steps."""
    return 1 - alpha**n


def root(v: Tensor, n: Number, beta: Number, eps: Number) -> Tensor:
    """sqrt(v / (1 - beta^n)) + eps, of a second moment after step ``n`` (n >= 1)."""
    return v.sqrt() / bias_correction(beta, n) ** 0.5 + eps


def denominator(v: Tensor, n: Number, beta: Number, eps: Number) -> Tensor:
    """``root`` with infinity in place of zero.

    The infinity gives a coordinate whose second moment is zero the update zero instead of 0/0: at eps = 0, and
    where eps is lost in the dtype (1e-8 is zero in float16). Elsewhere this is AdamW's denominator.
    """
    found = root(v, n, beta, eps)
    return found.masked_fill(found == 0, torch.inf)


def output(moments: Moments, n: Number, stage: Stage, eps: Number) -> Tensor:
    """The stage's output, computed from its moments after step ``n`` (n >= 1)."""
    return moments.m / bias_correction(stage.gamma, n) / denominator(moments.v, n, stage.beta, eps)


def direction(last: Moments, n: Number, stage: Stage, eps: Number) -> Tensor:
    """The theory's update u = -output, with ``last`` the last stage's moments after step ``n``.

    The parameter moves by lr u beside the weight decay.
    """
    return -output(last, n, stage, eps)


def cascade(grad: Tensor, moments: Sequence[Moments], n: Number, stages: Sequence[Stage], eps: Number) -> list[Moments]:
    """Feed ``grad`` through all stages and return their moments after step ``n`` (n >= 1).

    The output of the last stage is ``output(result[-1], n, stages[-1], eps)``.
    """
    x = grad
    new: list[Moments] = []
    for i, (old, stage) in enumerate(zip(moments, stages, strict=True)):
        if i > 0:
            x = output(new[-1], n, stages[i - 1], eps)
        new.append(advance(x, old, stage))
    return new


def apply(
    param: Tensor, last: Moments, n: Number, stage: Stage, lr: Number, weight_decay: Number, eps: Number
) -> Tensor:
    """theta <- (1 - lr weight_decay) theta - lr output, with ``last`` the last stage's moments after step ``n``."""
    scale = denominator(last.v, n, stage.beta, eps)
    size = lr / bias_correction(stage.gamma, n)
    decayed = param * (1 - lr * weight_decay)
    if isinstance(size, Tensor):  # addcdiv takes no tensor as its factor
        return decayed.addcdiv(-size * last.m, scale)
    return decayed.addcdiv(last.m, scale, value=-size)
