"""From one pair of decay rates to the k pairs of k-Adam (Gould & Tanaka, arXiv 2411.05746, section 5).

Each schedule maps a decay rate alpha (gamma or beta) to one rate for all stages:

=============  ========================
name           rate of every stage
=============  ========================
inverse_exp    1 - (1 - alpha)^(1/k)
exp            alpha^k
scaled         alpha / k
naive          alpha
=============  ========================

All four give alpha itself at k = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from kadam.update import Number, Stage

SCHEDULES: dict[str, Callable[[Any, int], Any]] = {
    # 1 - (1 - alpha) would change the last bits of alpha
    "inverse_exp": lambda alpha, k: alpha if k == 1 else 1 - (1 - alpha) ** (1 / k),
    "exp": lambda alpha, k: alpha**k,
    "scaled": lambda alpha, k: alpha / k,
    "naive": lambda alpha, k: alpha,
}

Betas = Sequence[Number] | Sequence[Sequence[Number]]


def make_stages(betas: Betas, k: int, schedule: str = "inverse_exp") -> list[Stage]:
    """The k stages of k-Adam.

    Args:
        betas: in torch's order, first moment before second: one pair ``(gamma, beta)``, which ``schedule``
            turns into k equal pairs, or k explicit pairs, which are taken as they are. A rate is a float or a
            one-element tensor.
        k: number of stages, an integer >= 1.
        schedule: a name from ``SCHEDULES``; not used with explicit pairs.

    Raises:
        TypeError: ``betas`` is neither a pair of numbers nor a sequence of such pairs.
        ValueError: ``k``, ``schedule`` or a rate is out of range, or there are explicit pairs but not k.
    """
    plain = type(betas) is tuple and {*map(type, betas)} == {float} and (type(k), type(schedule)) == (int, str)
    if plain and not is_compiling():  # the compiler traces past a cache, and warns
        return list(_stages_of_floats(betas, k, schedule))
    return _stages(betas, k, schedule)


def _stages(betas: Any, k: int, schedule: str) -> list[Stage]:
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise ValueError(f"Invalid k: {k!r} (the number of stages must be an integer >= 1)")
    if not isinstance(schedule, str) or schedule not in SCHEDULES:
        raise ValueError(f"Invalid schedule: {schedule!r} (must be one of {', '.join(SCHEDULES)})")
    if _is_pair_list(betas):
        pairs = [_checked_pair(pair) for pair in betas]
        if len(pairs) != k:
            raise ValueError(f"Invalid betas: {len(pairs)} explicit pairs for k = {k} (give k pairs, or set k)")
        return [Stage(gamma, beta) for gamma, beta in pairs]
    k, rate = int(k), SCHEDULES[schedule]
    gamma, beta = _checked_pair(betas)
    return [Stage(rate(gamma, k), rate(beta, k))] * k


# every step asks for them, and checking takes as long as stepping a small tensor
_stages_of_floats = lru_cache(_stages)


def _is_pair_list(betas: Any) -> bool:
    return isinstance(betas, Sequence) and len(betas) > 0 and all(isinstance(entry, Sequence) for entry in betas)


def _checked_pair(pair: Any) -> tuple[Number, Number]:
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(rate, Real | Tensor) for rate in pair)):
        raise TypeError(
            f"Invalid betas: {pair!r} (must be (gamma, beta), two numbers in [0, 1), or k such pairs; "
            "a scheduler that cycles the momentum writes one pair: give it cycle_momentum=False, or one pair here)"
        )
    if isinstance(pair[0], Tensor) != isinstance(pair[1], Tensor):
        raise ValueError(f"Invalid betas: {pair!r} (betas must be either both floats or both Tensors)")
    for index, (rate, moment) in enumerate(zip(pair, ("first", "second"), strict=True)):
        if isinstance(rate, Tensor) and rate.numel() != 1:
            raise ValueError(f"Tensor betas[{index}] must be 1-element, got shape {tuple(rate.shape)}")
        if not 0 <= rate < 1:
            raise ValueError(
                f"Invalid beta parameter at index {index}: {rate} (the decay of the {moment} moment must lie in [0, 1))"
            )
    gamma, beta = (rate.reshape(()) if isinstance(rate, Tensor) else float(rate) for rate in pair)
    return gamma, beta
