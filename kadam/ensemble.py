"""Many k-Adam runs at once: one model, and for each member of the ensemble its own hyperparameters and seed.

A member is a row. Its parameters lie in one row of a matrix, its moments in the rows of others; its hyperparameters
stand in columns beside them. ``torch.func.vmap`` evaluates the losses of all rows. The functions of ``kadam.update``
move all rows at once, since their hyperparameters broadcast. So all members share the cost of Python and of torch's
dispatch::

    members = [dict(lr=lr, betas=(0.9, beta), k=1, seed=seed) for lr in lrs for beta in betas for seed in range(3)]
    loss, init = ensemble.from_module(make_model, torch.nn.functional.cross_entropy)
    runs = ensemble.train(loss, init, members, batches, steps=1000, observe={"loss": lambda member: member.loss})
    runs.observed["loss"]  # (members, steps)
    runs.outcome[0]  # "finished", or "diverged at step 17"

Results are those of single runs of ``kadam.KAdam`` but for rounding. Sums run in another order. Rates are rounded to
the parameters' dtype: in float32, beta to 3e-8, which is much where 1 - beta is small. Unlike KAdam, an ensemble gives
no warning of rates outside the stable region, since a map of it has many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from kadam import hyperparameters, update
from kadam.stages import make_stages
from kadam.update import Moments, Stage

Params = dict[str, Tensor]
Loss = Callable[[Params, Any], Tensor]
Initialiser = Callable[[int], Params]
Batches = Callable[[int, Tensor], Any]

CACHE, CUDA_MEMORY = 2**22, 2**30
"""Bytes that the state of a chunk of members takes by default: on a CPU, and on other devices. Small chunks may take up
to four times as many, so that up to 256 members go together."""


class Member(NamedTuple):
    """What an observer sees of one member after a step; no tensor has the dimension of the members.

    Attributes:
        loss: the loss whose gradient the step took, (), at the parameters before it.
        params: the parameters after it.
        grads: the gradients of ``loss``.
        updates: u = -output of the last stage; beside weight decay the step was lr u.
        moments: (m, v) of every stage after the step.
    """

    loss: Tensor
    params: Params
    grads: Params
    updates: Params
    moments: list[tuple[Params, Params]]

    def largest_update(self) -> Tensor:
        """max |u| over all coordinates of all parameters."""
        return torch.stack([u.abs().amax() for u in self.updates.values()]).amax()


Observer = Callable[[Member], Tensor]


@dataclass(frozen=True)
class Runs:
    """What ``train`` returns; the members come first everywhere, in the order in which they were given.

    Attributes:
        diverged_at: (E,), the step that was not taken because the loss or what it would have led to was not finite;
            0 for members that finished.
        observed: one array per observer, (E, observations, ...), of a floating dtype, float32 at least: whole numbers
            and booleans come as such. Of a member that diverged, the entries from that step on are NaN: nothing was
            there to be observed (``diverged_at`` tells this from a NaN that the observer gave).
        observed_at: the steps of the observations, counted from 1 after the update.
        params: the parameters after the last step taken, always finite, on the device of the runs; None unless
            asked for.
    """

    diverged_at: NDArray[np.int64]
    observed: dict[str, NDArray[Any]]
    observed_at: NDArray[np.int64]
    params: Params | None

    @property
    def outcome(self) -> list[str]:
        """``"finished"`` or ``"diverged at step n"`` for every member."""
        return [f"diverged at step {n}" if n else "finished" for n in self.diverged_at]


def from_module(
    make: Callable[[], nn.Module], criterion: Callable[[Any, Any], Tensor], device: torch.device | str = "cpu"
) -> tuple[Loss, Initialiser]:
    """The loss and the initialiser that ``train`` needs, for a module and batches (inputs, targets).

    Args:
        make: makes the module; ``init(seed)`` calls it after ``torch.manual_seed(seed)`` and leaves the generators
            as they were. Buffers, and parameters that need no gradient, are those of seed 0 for all members; a
            module must not change its buffers (BatchNorm in training does).
        criterion: the loss, a scalar, from the module's output and the targets.
        device: where the members are to live.

    Returns:
        ``loss(params, batch)`` and ``init(seed)``; parameters are dicts of tensors by name.
    """

    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make().to(device)

    def init(seed: int) -> Params:
        return {name: param.detach() for name, param in made(seed).named_parameters() if param.requires_grad}

    module = made(0)

    def loss(params: Params, batch: Any) -> Tensor:
        inputs, targets = batch
        return criterion(functional_call(module, params, inputs), targets)

    return loss, init


def indexed(order: Tensor, *data: Tensor) -> Batches:
    """Batches for ``train``: the examples of every tensor in ``data`` that ``order``, int64, names for a step.

    ``order`` is (steps, batch), the same for all members, or (steps, E, batch), which needs ``in_dims=0``.
    """

    def batches(step: int, who: Tensor) -> tuple[Tensor, ...]:
        chosen = order[step - 1] if order.ndim == 2 else order[step - 1, who.to(order.device)]
        return tuple(examples[chosen] for examples in data)

    return batches


@torch.no_grad()
def train(
    loss: Loss,
    init: Initialiser,
    members: Sequence[Mapping[str, Any]],
    batches: Batches | None,
    steps: int,
    observe: Mapping[str, Observer] | None = None,
    every: int = 1,
    *,
    in_dims: Any = None,
    keep_params: bool = False,
    chunk: int | None = None,
    progress: Callable[[float], None] | None = None,
    randomness: str = "error",
) -> Runs:
    """Take ``steps`` steps of k-Adam with every one of the E ``members``.

    Args:
        loss: differentiable function of one member's parameters, tensors by name, and a batch; gives a scalar.
        init: a member's first parameters from its seed; all of one floating dtype, on the device that is to be used.
        members: for each a dict of ``KAdam``'s arguments ``lr``, ``betas``, ``eps``, ``weight_decay``, ``k`` and
            ``schedule``, and of ``seed``. What is missing is KAdam's default; the seed's is 0.
        batches: ``batches(step, who)`` gives the batch of step 1, 2, ...: tensors in any nesting that ``vmap`` knows.
            ``who``, int64, are the positions in ``members`` of those that are being trained now. None for a loss
            that needs no batch.
        steps: number of steps.
        observe: functions of a ``Member``, by name, evaluated after every ``every`` steps under ``vmap``.
        every: steps from one observation to the next.

    Other arguments, which you should not need:
        in_dims: which dimension of each tensor of a batch counts ``who``, as in ``vmap``; None: shared by all.
        keep_params: return the parameters, a copy for every member.
        chunk: number of members that are trained together, all steps through, before the next ones. Bounds the
            memory; by default what keeps the state in a CPU's cache, or within a gigabyte on other devices.
        progress: called now and then with the share of the work that is done, at last with 1.0.
        randomness: for a loss that draws random numbers, ``"same"`` or ``"different"`` for the members, as in ``vmap``.

    A member whose loss is not finite, or whose parameters or moments would not be after the step, has diverged: it
    stays as it was before that step, is so labelled in the result, and is computed no further.

    Raises:
        ValueError, TypeError: an argument out of range, named with its value and the member's position.
    """
    for name, value in {"steps": steps, "every": every, "chunk": 1 if chunk is None else chunk}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: {value!r} (must be an integer >= 1)")
    if not members:
        raise ValueError("members: none (must be at least one)")
    seeds = [member.get("seed", 0) for member in members]
    layout = _Layout(init(seeds[0]))
    gradient = vmap(
        grad_and_value(lambda theta, batch: loss(layout.named(theta), batch)), (0, in_dims), randomness=randomness
    )
    look = vmap(lambda member: {name: function(member) for name, function in (observe or {}).items()})
    at = np.arange(every, steps + 1, every)
    diverged_at = np.zeros(len(members), np.int64)
    observed: dict[str, NDArray[Any]] = {}
    last = torch.empty(len(members) if keep_params else 0, layout.size, dtype=layout.dtype, device=layout.device)
    done = 0

    def leave(who: Tensor, theta: Tensor, step: int) -> None:
        diverged_at[who.cpu().numpy()] = step
        if keep_params:
            last[who] = theta

    for who, hyper in _chunks(_hyperparameters(members), layout, chunk):
        count, chosen = len(who), [seeds[i] for i in who.tolist()]
        rows = {seed: layout.row(init(seed)) for seed in set(chosen)}
        theta = torch.stack([rows[seed] for seed in chosen])
        moments = [update.zeros(theta) for _ in _named(hyper)[0]]
        for step in range(1, steps + 1):
            grads, losses = gradient(theta, None if batches is None else batches(step, who))
            stages, lr, weight_decay, eps = _named(hyper)
            new = update.cascade(grads, moments, step, stages, eps)
            moved = update.apply(theta, new[-1], step, stages[-1], lr, weight_decay, eps)
            fine = _finite(losses, moved, new)
            if not fine.all():
                leave(who[~fine], theta[~fine], step)
                who, losses, grads, moved = (x[fine] for x in (who, losses, grads, moved))
                hyper, new = hyper[:, fine], [Moments(m[fine], v[fine]) for m, v in new]
            if len(who) == 0:
                break
            theta, moments = moved, new
            if observe and step % every == 0:
                stages, _, _, eps = _named(hyper)
                u = update.direction(moments[-1], step, stages[-1], eps)
                of_stages = [(layout.named(m), layout.named(v)) for m, v in moments]
                all_of_them = Member(losses, layout.named(theta), layout.named(grads), layout.named(u), of_stages)
                for name, tensor in look(all_of_them).items():
                    array = tensor.to("cpu", torch.promote_types(tensor.dtype, torch.float32)).numpy()
                    if name not in observed:
                        observed[name] = np.full((len(members), len(at), *array.shape[1:]), np.nan, array.dtype)
                    observed[name][who.cpu().numpy(), step // every - 1] = array
            if progress is not None and step % max(1, steps // 100) == 0:
                progress((done + count * step / steps) / len(members))
        leave(who, theta, 0)
        done += count
        if progress is not None:
            progress(done / len(members))
    for name in observe or {}:
        observed.setdefault(name, np.full((len(members), len(at)), np.nan))  # nobody got as far
    return Runs(diverged_at, observed, at, layout.named(last) if keep_params else None)


class _Layout:
    """Where the parameters, of given names and shapes, lie in a member's row."""

    def __init__(self, params: Params) -> None:
        self.shapes = {name: param.shape for name, param in params.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        kinds = {(param.dtype, param.device) for param in params.values()}
        if len(kinds) != 1 or not next(iter(kinds))[0].is_floating_point:
            raise TypeError(f"init: parameters of {kinds or 'no kind'} (must be of one floating dtype, on one device)")
        ((self.dtype, self.device),) = kinds
        self.size = sum(self.sizes)

    def row(self, params: Params) -> Tensor:
        """The row of one member's parameters, (P,)."""
        shapes = {name: param.shape for name, param in params.items()}
        if shapes != self.shapes:
            raise ValueError(f"init: parameters {shapes} for one seed and {self.shapes} for another (must be the same)")
        return torch.cat([param.detach().reshape(-1) for param in params.values()])

    def named(self, rows: Tensor) -> Params:
        """The parameters of one row, (P,), or of many, (E, P), by name, as views where that is possible."""
        parts = rows.split_with_sizes(self.sizes, dim=-1)
        return {
            name: part.reshape(*rows.shape[:-1], *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }


def _hyperparameters(members: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Of every member lr, weight_decay, eps, and (gamma, beta) of each stage, checked as ``KAdam`` checks them."""
    known = ("lr", "betas", "eps", "weight_decay", "k", "schedule", "seed")
    found = []
    for i, member in enumerate(members):
        group = {**hyperparameters.DEFAULTS, **member}
        try:
            if unknown := sorted(member.keys() - set(known)):
                raise TypeError(f"unknown {', '.join(unknown)} (a member has {', '.join(known)})")
            hyperparameters.check(group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"members[{i}]: {error}") from None
        stages = make_stages(group["betas"], group["k"], group["schedule"])
        numbers = [group["lr"], group["weight_decay"], group["eps"], *(rate for stage in stages for rate in stage)]
        found.append([float(number) for number in numbers])
    return found


def _chunks(rows: list[list[float]], layout: _Layout, chunk: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Members with equally many stages, some at a time: their positions, (E,), and their numbers, (3 + 2k, E, 1)."""
    groups = []
    for length in sorted({len(row) for row in rows}):
        who = [i for i, row in enumerate(rows) if len(row) == length]
        hyper = torch.tensor([rows[i] for i in who], dtype=torch.float64).to(layout.device, layout.dtype)
        if len(lost := (hyper[:, 3:] >= 1).any(1).nonzero()):
            i = who[int(lost[0])]
            raise ValueError(f"members[{i}]: decay rates {rows[i][3:]} (one of them is 1 in {layout.dtype})")
        groups.append((torch.tensor(who, device=layout.device), hyper.T.contiguous().unsqueeze(-1)))
    for positions, numbers in groups:
        state = layout.size * layout.dtype.itemsize * (len(numbers) - 1)  # parameters, gradient, moments
        budget = CACHE if layout.device.type == "cpu" else CUDA_MEMORY
        # calling torch takes about a millisecond a step, however many members share it
        most = chunk or max(1, budget // state, min(256, 4 * budget // state))
        size = math.ceil(len(positions) / math.ceil(len(positions) / most))  # chunks of nearly equal size
        yield from zip(torch.split(positions, size), torch.split(numbers, size, dim=1), strict=True)


def _named(hyper: Tensor) -> tuple[list[Stage], Tensor, Tensor, Tensor]:
    """The stages, lr, weight_decay and eps of the members, tensors (E, 1)."""
    lr, weight_decay, eps, *rates = hyper.unbind()
    return [Stage(*pair) for pair in zip(rates[::2], rates[1::2], strict=True)], lr, weight_decay, eps


def _finite(losses: Tensor, theta: Tensor, moments: list[Moments]) -> Tensor:
    """Which members have a finite loss, parameters and moments; (E,), bool."""
    # v is infinite wherever m is; a sum is cheap, and finite only if every term is: where it is not, look closer
    states = [theta, *(v for _, v in moments)]
    fine = sum((state.sum(1) for state in states), losses).isfinite()
    return fine if fine.all() else losses.isfinite() & torch.stack([s.isfinite().all(1) for s in states]).all(0)
