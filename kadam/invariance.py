"""Norm and direction of scale-invariant weights under Adam-like optimizers: laws, and a recorder that tests them.

A weight W is scale-invariant if L(a W) = L(W) for every a > 0, as before a normalisation layer. Then its gradient is
orthogonal to it, <W, g> = 0. With learning rate eta, decoupled decay lambda and updates u, steps n = 1, 2, 3, ...::

    W' = (1 - lambda eta) W + eta u
    N' = (1 - lambda eta)^2 N + 2 eta (1 - lambda eta) p + eta^2 |u|^2        N = |W|^2,  p = <W, u>

This is an identity: it holds for any gradients. The laws differ in what they put for p. ``law`` takes a step by any
of them:

========  ==============================================================================================
paper     p = 0 (its Assumption 1)
momentum  eta^2 c |u|^2 in place of the last two terms, c = (1 + gamma) / (1 - gamma) (``momentum_factor``)
gradient  eta^2 |g/(sqrt(v~) + eps)|^2 in place of the last two terms: what Adam without momentum adds
lag       p follows its own recursion (``next_inner``), exact if v is one scalar a weight (Assumption 2)
========  ==============================================================================================

The lag law follows from two facts. A step changes <W, m> to <W', m> = (1 - lambda eta) <W, m> + eta <u, m>. The next
gradient adds nothing to it, since it is orthogonal to W'. Let v be one scalar for the weight, v~ its bias-corrected
value, and r = sqrt(v~) + eps, by which the algorithm divides m (``kadam.update.root``). Then, however the gradients are
correlated::

    p_n = gamma (1 - gamma^(n-1)) / (1 - gamma^n) r_(n-1) / r_n [(1 - lambda eta) p_(n-1) + eta |u_(n-1)|^2]
    p_1 = 0

The eps belongs there. Without it the law is off by about eps / sqrt(v~).

Sources: Gould & Tanaka, arXiv 2411.05746, section 4, for the paper's law; ``notebooks/04_meta_adaptive.ipynb`` derives
the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from kadam import update
from kadam.optimizer import KAdam, moments_in
from kadam.stages import make_stages
from kadam.update import Stage

Array = NDArray[np.float64]
LAWS = ("paper", "momentum", "gradient", "lag")


def momentum_factor(gamma: ArrayLike, decay: ArrayLike = 0.0) -> Array:
    """(1 + gamma') / (1 - gamma') with gamma' = gamma (1 - decay): what momentum multiplies eta^2 |u|^2 with.

    With ``decay`` = lambda eta it is what the lag law comes to where |u|^2 and v are constant; 0 is its limit for a
    decay much slower than the momentum. ``gamma`` and ``decay`` in [0, 1); they broadcast.
    """
    gamma, decay = _within("gamma", gamma), _within("decay", decay)
    kept = gamma * (1 - decay)
    return (1 + kept) / (1 - kept)


def next_squared_norm(n: Any, u_squared: Any, lr: Any, weight_decay: Any, inner: Any = 0.0) -> Any:
    """The identity N' = (1 - lambda eta)^2 N + 2 eta (1 - lambda eta) p + eta^2 |u|^2, with p = ``inner``.

    Numbers, arrays or tensors, which broadcast; one element a scale-invariant unit.
    """
    keep = 1 - lr * weight_decay
    return keep**2 * n + 2 * lr * keep * inner + lr**2 * u_squared


def next_inner(inner: Any, u_squared: Any, lr: Any, weight_decay: Any, carry: Any) -> Any:
    """The lag law's p_n = carry [(1 - lambda eta) p_(n-1) + eta |u_(n-1)|^2].

    ``inner`` and ``u_squared`` are p and |u|^2 of step n-1. ``carry`` (from ``carried``) is the share of that step's
    update which is still in the next one. All are numbers, arrays or tensors, and broadcast; each scale-invariant unit
    has one element.
    """
    return carry * ((1 - lr * weight_decay) * inner + lr * u_squared)


def carried(n: Any, gamma: Any, root_before: Any = 1.0, root: Any = 1.0) -> Any:
    """gamma (1 - gamma^(n-1)) / (1 - gamma^n) root_before / root: how much of step n-1's update is in step n's.

    Adam's update at step n is this times its update at step n-1, plus a part from the new gradient. n >= 1.
    ``root_before`` and ``root`` are the denominators sqrt(v~) + eps of the steps n-1 and n, one scalar for each weight.
    """
    return gamma * update.bias_correction(gamma, n - 1) / update.bias_correction(gamma, n) * (root_before / root)


class Observation(NamedTuple):
    """What ``law`` is told of a step: numbers, arrays or tensors, which broadcast; one element a scale-invariant unit.

    The tuples have one entry a stage; u_i is minus the output of stage i, and the last one is u. As they are by
    default the stage has no momentum, so that p is zero: the paper's law. With |u|^2 replaced this is the momentum law
    and the gradient law.

    Attributes:
        lr, weight_decay: eta and lambda.
        products: <u, u_i>; the last one is |u|^2.
        n: the step, counted from 1; infinite for an optimizer that corrects no bias.
        gammas: decay rates of the first moments.
        roots: sqrt(v~) + eps, with v averaged over the unit; 1 for an optimizer without. As long as it is zero there
            was no gradient, and p is zero.
        inners: the true <W, u_i>, where they are to stand in place of the lag law's: the identity.
    """

    lr: Any
    weight_decay: Any
    products: tuple[Any, ...]
    n: Any = math.inf
    gammas: tuple[Any, ...] = (0.0,)
    roots: tuple[Any, ...] = (1.0,)
    inners: tuple[Any, ...] | None = None


class State(NamedTuple):
    """Where ``law`` stands after a step; ``State(N)`` before the first one, of one stage.

    Attributes:
        squared_norm: N = |W|^2 as predicted.
        inners: p_i = <W, u_i> of the step, W before it, as predicted.
        last: the step's observation.
    """

    squared_norm: Any
    inners: tuple[Any, ...] = (0.0,)
    last: Observation = Observation(0.0, 0.0, (0.0,))


def law(state: State, seen: Observation) -> State:
    """A step of a norm law, whichever ``seen`` makes it: p_n, and with it N'."""
    inners = _lagging(state, seen) if seen.inners is None else seen.inners
    norm = next_squared_norm(state.squared_norm, seen.products[-1], seen.lr, seen.weight_decay, inners[-1])
    return State(norm, inners, seen)


def _lagging(state: State, seen: Observation) -> tuple[Any, ...]:
    """p_i of every stage by the lag law."""
    inners: list[Any] = []
    last = state.last
    for i, (gamma, root) in enumerate(zip(seen.gammas, seen.roots, strict=True)):
        safe = root + (root == 0)
        carry = carried(seen.n, gamma, last.roots[i], safe)
        inner = next_inner(state.inners[i], last.products[i], last.lr, last.weight_decay, carry)
        if i > 0:  # the input of this stage, unlike the gradient, is not orthogonal to W
            inner = inner + (1 - gamma) / update.bias_correction(gamma, seen.n) * inners[-1] / safe
        inners.append((root > 0) * inner)
    return tuple(inners)


def squared_norms(
    start: ArrayLike, u_squared: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike, factor: ArrayLike = 1.0
) -> Array:
    """N_0 ... N_T of N' = (1 - lambda eta)^2 N + factor eta^2 |u|^2, shape (T + 1, ...).

    ``u_squared``, (T, ...), is |u_n|^2 for the paper's law (``factor`` 1) and the momentum law (``momentum_factor``),
    |g_n|^2/v~_n, summed over coordinates, for the gradient law. The other arguments broadcast against (...).
    """
    u_squared, lr, weight_decay = _series(u_squared), np.asarray(lr), np.asarray(weight_decay)
    observations = (Observation(lr, weight_decay, (factor * u,)) for u in u_squared)
    return np.array([state.squared_norm for state in _states(start, u_squared, observations)])


def lag_squared_norms(
    start: ArrayLike, u_squared: ArrayLike, root: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike, gamma: ArrayLike
) -> tuple[Array, Array]:
    """The lag law from step 1: N_0 ... N_T, shape (T + 1, ...), and p_1 ... p_T, (T, ...).

    Args:
        u_squared: |u_n|^2, (T, ...).
        root: sqrt(v~) + eps, with v averaged over the weight's entries, (T, ...). An optimizer without v has 1. Where
            it is 0 there was no gradient yet, and p is 0.
        start, lr, weight_decay, gamma: N_0 and the settings; they broadcast against (...).
    """
    u_squared, lr, weight_decay = _series(u_squared), np.asarray(lr), np.asarray(weight_decay)
    gamma, root = _within("gamma", gamma), np.broadcast_to(np.asarray(root, float), u_squared.shape)
    pairs = enumerate(zip(u_squared, root, strict=True), start=1)
    observations = (Observation(lr, weight_decay, (u,), n, (gamma,), (r,)) for n, (u, r) in pairs)
    states = _states(start, u_squared, observations)
    return np.array([state.squared_norm for state in states]), np.array([state.inners[-1] for state in states[1:]])


def continuous_squared_norms(
    t: ArrayLike, start: float, u_squared: ArrayLike, lr: float, weight_decay: float, factor: float = 1.0
) -> Array:
    """N(t) = N(0) e^(-2 lambda t) + factor eta int_0^t e^(-2 lambda (t-s)) |u(s)|^2 ds at the times ``t``, (times,).

    The times t_n = n eta ascend from 0. ``u_squared`` is one number, or |u|^2 at these times; between them it is taken
    as linear, and integrated exactly. ``factor`` 1 is the paper's law, ``momentum_factor(gamma)`` the momentum law.
    """
    t = np.asarray(t, float)
    if t.ndim != 1 or len(t) == 0 or t[0] != 0 or np.any(np.diff(t) <= 0):
        raise ValueError(f"t: {t!r} (must be times, ascending from 0)")
    u = np.broadcast_to(np.asarray(u_squared, float), t.shape)
    h = np.diff(t)
    z = 2 * weight_decay * h
    safe = np.where(z < 1e-4, 1.0, z)
    whole = np.where(z < 1e-4, 1 - z / 2 + z**2 / 6, -np.expm1(-safe) / safe)
    rising = np.where(z < 1e-4, 1 / 2 - z / 6 + z**2 / 24, (safe + np.expm1(-safe)) / safe**2)
    added = factor * lr * h * (u[:-1] * whole + np.diff(u) * rising)
    found = [float(start)]
    for decay, more in zip(np.exp(-z), added, strict=True):
        found.append(found[-1] * decay + more)
    return np.array(found)


def equilibrium_squared_norm(
    u_squared: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike, gamma: ArrayLike = 0.0, continuous: bool = False
) -> Array:
    """|W|^2 at which growth and decay balance, for constant |u|^2 and v. With ``gamma`` = 0 it is the paper's law.

    The lag law balances at c eta^2 |u|^2 / (1 - (1 - lambda eta)^2), c = ``momentum_factor(gamma, lambda eta)``. With
    ``continuous`` the answer is that of the momentum law in continuous time:
    (1 + gamma)/(1 - gamma) eta |u|^2 / (2 lambda). gamma lies in [0, 1), all others are > 0; they broadcast.
    """
    u_squared, lr, weight_decay = (np.asarray(x, float) for x in (u_squared, lr, weight_decay))
    if not np.all(lr * weight_decay > 0):
        raise ValueError(
            f"lr, weight_decay: {lr!r}, {weight_decay!r} (must be > 0: without decay there is no equilibrium)"
        )
    if continuous:
        limit: Array = momentum_factor(gamma) * lr * u_squared / (2 * weight_decay)
        return limit
    decay = lr * weight_decay
    balance: Array = momentum_factor(gamma, decay) * lr**2 * u_squared / (decay * (2 - decay))
    return balance


def rotation(lr: ArrayLike, weight_decay: ArrayLike, gamma: ArrayLike = 0.0, steps: ArrayLike = 1) -> Array:
    """Angle in radians by which the direction W/|W| turns in ``steps`` steps in equilibrium, root mean square::

        cos(angle) = exp( -lambda eta [ steps - 2 gamma (1 - gamma^steps) / (1 - gamma^2) ] )

    One step: sqrt(2 eta lambda (1 - gamma) / (1 + gamma)), for gradients of any correlation. Many, 1/(1 - gamma) and
    more: sqrt(2 eta lambda steps), where gamma does not enter, since an average only spreads each gradient over later
    steps; this and what lies between for gradients that are uncorrelated. First order in lambda eta.
    """
    gamma = _within("gamma", gamma)
    lost = 2 * gamma * (1 - gamma ** np.asarray(steps)) / (1 - gamma**2)
    turned: Array = np.arccos(np.exp(-np.asarray(lr) * np.asarray(weight_decay) * (steps - lost)))
    return turned


def _within(name: str, rate: ArrayLike) -> Array:
    found = np.asarray(rate, float)
    if not np.all((found >= 0) & (found < 1)):
        raise ValueError(f"{name}: {rate!r} (must lie in [0, 1))")
    return found


def _states(start: ArrayLike, u_squared: Array, observations: Iterable[Observation]) -> list[State]:
    """The states of ``law`` before the first observation and after every one."""
    first = State(np.broadcast_to(np.asarray(start, float), u_squared.shape[1:]))
    return list(accumulate(observations, law, initial=first))


def _series(u_squared: ArrayLike) -> Array:
    found = np.asarray(u_squared, float)
    if found.ndim == 0:
        raise ValueError(f"u_squared: {u_squared!r} (must have the steps as its first dimension)")
    return found


@torch.no_grad()
def scale_invariant_weights(
    module: nn.Module, loss: Callable[[], Tensor], tolerance: float = 3e-3, seed: int = 0
) -> dict[str, int]:
    """The parameters of ``module`` that are scale-invariant, by name, with their number of invariant units.

    The test is the definition. Every parameter is cut along its first dimension into as many equal blocks as leave
    ``loss()`` the same when each block is multiplied by a number of its own, 1/2, 1 or 2: one block is a weight that
    is invariant as a whole, as before LayerNorm; as many as rows, one whose rows are each, as before BatchNorm;
    in between lie the heads before a query-key norm. The test is made at three randomly shifted points, since what
    holds only while biases are zero, as at the start, is not invariance. A parameter without any effect is not called
    invariant.

    Args:
        module: its parameters are changed during the test and put back, bit for bit, as are its buffers.
        loss: gives the loss of the module on one batch, the same at every call; may draw random numbers.
        tolerance: largest change of the loss that counts as none, as a share of the change that a random shift of
            the parameter by its own size makes. What a layer's epsilon breaks is less, as a rule.
        seed: of the random shifts; the generators stay as they are.

    Raises:
        ValueError: the loss is not a finite number.
    """
    params = {name: param for name, param in module.named_parameters() if param.requires_grad and param.numel()}
    kept = {name: param.detach().clone() for name, param in params.items()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    generator = torch.Generator().manual_seed(seed)

    def noise(param: Tensor) -> Tensor:
        drawn = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        return drawn.to(param.device, param.dtype)

    def evaluated() -> float:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            value = float(loss())
        for buffer, before in buffers:
            buffer.copy_(before)
        if not np.isfinite(value):
            raise ValueError(f"loss: {value} (must be finite at the parameters and at multiples of them)")
        return value

    def change(param: Tensor, other: Tensor, base: float) -> float:
        before = param.detach().clone()
        param.copy_(other)
        difference = abs(evaluated() - base)
        param.copy_(before)
        return difference

    moved = dict.fromkeys(params, 0.0)  # summed over the points, since at one of them a change may be small by chance
    changed = {name: dict.fromkeys(_divisors(param), 0.0) for name, param in params.items()}
    least = 0.0
    try:
        for _ in range(3):
            for name, param in params.items():
                size = max(kept[name].norm().item() / param.numel() ** 0.5, (_rows(param) / param.numel()) ** 0.5)
                param.copy_(kept[name] + 0.3 * size * noise(param))
            base = evaluated()
            least += 100 * torch.finfo(torch.float32).eps * abs(base)
            for name, param in params.items():
                size = param.norm() / param.numel() ** 0.5
                moved[name] += max(change(param, param + size * noise(param), base) for _ in range(3))
                for blocks in changed[name]:
                    factors = [2.0 ** torch.randint(-1, 2, (blocks,), generator=generator) for _ in range(2)]
                    factors.append(2.0 ** (-1.0) ** torch.arange(blocks))  # chance may have made all alike
                    factors += [torch.full((blocks,), 2.0), torch.full((blocks,), 0.5)]
                    scaled = (_blocks(param, blocks) * factor.to(param).unsqueeze(1) for factor in factors)
                    changed[name][blocks] += max(change(param, other.reshape(param.shape), base) for other in scaled)
    finally:
        for name, param in params.items():
            param.copy_(kept[name])
        for buffer, before in buffers:
            buffer.copy_(before)
    passed = {
        name: [blocks for blocks, by in changed[name].items() if by <= tolerance * moved[name]]
        for name in params
        if moved[name] > least
    }
    return {name: max(blocks) for name, blocks in passed.items() if blocks}


def _divisors(param: Tensor) -> list[int]:
    """The numbers of equal blocks into which a parameter's rows can be cut; a vector is one block."""
    rows = len(param) if param.ndim > 1 else 1
    return [count for count in range(1, rows + 1) if rows % count == 0]


def _rows(param: Tensor) -> int:
    return param.shape[0] if param.ndim else 1


def _blocks(tensor: Tensor, count: int) -> Tensor:
    return tensor.reshape(count, -1)


class Reading(NamedTuple):
    """What a ``Recorder`` knows of one weight after a step; tensors are float64, (units,).

    Attributes:
        steps: recorded steps.
        squared_norm: |W|^2.
        predicted: the same by each of ``LAWS``, from the norm before the first recorded step and what came after it:
            the updates; for the lag law the second moments as well; for the gradient law gradients and second moments,
            and no updates. The gradient law is there for Adam alone (KAdam's k = 1).
        u_squared: |u|^2 of the last step.
        inner: <W, u> of the last step, W before it.
        inner_lag: the same by the lag law.
        cosine: <W, g> / (|W| |g|) of the last step, zero for a weight that is invariant.
        angle: by how much the direction turned in the last step, in radians.
    """

    steps: int
    squared_norm: Tensor
    predicted: dict[str, Tensor]
    u_squared: Tensor
    inner: Tensor
    inner_lag: Tensor
    cosine: Tensor
    angle: Tensor


class Recorder:
    """Follows weights through training and predicts their norms by every law; does not change the training.

    Attaches to the optimizer's steps and keeps, for each weight, a copy of it and a few numbers a unit. The update u
    is read from the change of the weight, u = (W' - (1 - lambda eta) W) / eta, with the learning rate and decay that
    the weight's group has at the step: below a learning rate of about 1e-5 float32 leaves few digits of it.

    Args:
        module: has the weights.
        optimizer: ``KAdam`` of any k, torch's ``AdamW``, ``Adam`` without weight decay, or ``SGD`` (with weight decay
            only if without momentum). A step that a GradScaler has it skip is not counted.
        weights: names with numbers of units, as ``scale_invariant_weights`` gives them. Any other may be named too.

    Attached after the first step, the lag law starts from the true <W, u> of the first step that it sees. For k > 1
    stages it follows <W, x> through all of them, and the momentum law takes 1 + 2 sum gamma_i / (1 - gamma_i).

    Raises:
        TypeError: the optimizer is none of these, or a weight is complex.
        ValueError: a weight that the module or the optimizer does not have, units that do not divide its rows, or
            a setting for which the laws do not hold: weight decay that goes through the moments, amsgrad, Nesterov.
        RuntimeError: in a step, a weight without a gradient, or a sparse gradient.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, weights: Mapping[str, int]) -> None:
        params = dict(module.named_parameters())
        groups = _groups(optimizer)
        self._tracks: list[_Track] = []
        for name, units in weights.items():
            if name not in params:
                raise ValueError(f"weights: {name!r} (the module has {', '.join(params)})")
            param = params[name]
            if param not in groups:
                raise ValueError(f"weights: {name!r} (is not among the optimizer's parameters)")
            if param.is_complex():
                raise TypeError(f"weights: {name!r} is {param.dtype} (must be real)")
            if isinstance(units, bool) or not isinstance(units, int) or units < 1 or _rows(param) % units:
                raise ValueError(f"weights: {name!r} has {units!r} units (must divide its {_rows(param)} rows)")
            _stages(optimizer, groups[param], name)  # refuses what cannot be followed
            self._tracks.append(_Track(name, param, units))
        self._optimizer = optimizer
        self._handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before()),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]

    def read(self) -> dict[str, Reading]:
        """What is known after the last step, by name. Raises RuntimeError before the first."""
        for track in self._tracks:
            if track.reading is None:
                raise RuntimeError(f"{track.name}: no step has been recorded yet")
        return {track.name: track.reading for track in self._tracks if track.reading is not None}

    def remove(self) -> None:
        """Detach from the optimizer; what was read stays."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self) -> None:
        for track in self._tracks:
            track.before = track.param.detach().clone()
            track.count = _count(self._optimizer, track.param)

    @torch.no_grad()
    def _after(self) -> None:
        for track in self._tracks:
            grad = track.param.grad
            if grad is None:
                raise RuntimeError(
                    f"{track.name}: no gradient at this step (a recorded weight needs one at every step)"
                )
            if grad.layout is not torch.strided:
                raise RuntimeError(f"{track.name}: a sparse gradient (must be dense)")
        groups = _groups(self._optimizer)  # anew, since loading a state replaces them
        for track in self._tracks:
            if not track.skipped(self._optimizer):
                track.follow(self._optimizer, groups[track.param])


@dataclass
class _Track:
    """One weight, its copy before the step, and the states of the laws."""

    name: str
    param: Tensor
    units: int
    before: Tensor | None = None
    count: int | None = None  # the optimizer's steps before this one, where it counts them
    states: dict[str, State] = field(default_factory=dict)  # of each of ``LAWS``; their tensors are (units,)
    reading: Reading | None = None

    def skipped(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the optimizer took no step in its ``step``, as it does where a GradScaler found an overflow."""
        assert self.param.grad is not None
        if self.count is not None:
            return _count(optimizer, self.param) == self.count
        return self.before is None or not bool(self.param.grad.isfinite().all())

    def follow(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
        """Take over one step, after it was taken."""
        assert self.before is not None and self.param.grad is not None
        lr, weight_decay, eps = (float(group.get(name, 0.0)) for name in ("lr", "weight_decay", "eps"))
        state = optimizer.state.get(self.param, {})
        w, new, g = (self._rows(x) for x in (self.before, self.param, self.param.grad))
        n_old, n_new = _dot(w, w), _dot(new, new)
        u = (new - (1 - lr * weight_decay) * w) / lr if lr else torch.zeros_like(w)
        u_squared, inner = _dot(u, u), _dot(w, u)
        stages = _stages(optimizer, group, self.name)
        factor = 1 + sum(float(momentum_factor(float(stage.gamma))) - 1 for stage in stages)
        seen = Observation(lr, weight_decay, (u_squared,))
        observations = {
            "paper": seen,
            "momentum": seen._replace(products=(factor * u_squared,)),
            "lag": self._observe(state, stages, w, u, seen, eps),
        }
        if len(stages) == 1 and "step" in state:
            root = update.denominator(moments_in(state)[0].v, int(state["step"]), stages[0].beta, eps)
            ratio = g / self._rows(root)
            observations["gradient"] = seen._replace(products=(_dot(ratio, ratio),))
        for name, observation in observations.items():
            self.states[name] = law(self.states.get(name, State(n_old)), observation)
        across = lr * (u_squared - inner**2 / n_old).clamp(min=0).sqrt()
        kept = (1 - lr * weight_decay) * n_old.sqrt() + lr * inner / n_old.sqrt()
        self.reading = Reading(
            steps=self.reading.steps + 1 if self.reading else 1, squared_norm=n_new,
            predicted={name: now.squared_norm for name, now in self.states.items()}, u_squared=u_squared, inner=inner,
            inner_lag=self.states["lag"].inners[-1], cosine=_dot(w, g) / (n_old * _dot(g, g)).sqrt(),
            angle=torch.atan2(across, kept),
        )  # fmt: skip

    def _observe(
        self, state: Mapping[str, Any], stages: Sequence[Stage], w: Tensor, u: Tensor, seen: Observation, eps: float
    ) -> Observation:
        """What the lag law is told of this step, through all stages; ``state`` is the optimizer's."""
        n: float = math.inf  # SGD counts no steps, corrects no bias and has no second moment
        outputs, roots = [u], [torch.ones_like(u[:, 0])]
        if "step" in state:
            n, moments = int(state["step"]), moments_in(state, len(stages))
            pairs = list(zip(moments, stages, strict=True))
            outputs = [self._rows(update.direction(own, n, stage, eps)) for own, stage in pairs[:-1]] + [u]
            roots = [update.root(self._rows(own.v).mean(1), n, stage.beta, eps) for own, stage in pairs]
        first = "lag" not in self.states  # then it starts from the truth; p_1 is zero
        return seen._replace(
            n=n, gammas=tuple(stage.gamma for stage in stages), roots=tuple(roots),
            products=tuple(_dot(u, output) for output in outputs),
            inners=tuple(_dot(w, output) * (n > 1) for output in outputs) if first else None,
        )  # fmt: skip

    def _rows(self, tensor: Tensor) -> Tensor:
        return _blocks(tensor.detach(), self.units).double()


def _groups(optimizer: torch.optim.Optimizer) -> dict[Tensor, dict[str, Any]]:
    return {param: group for group in optimizer.param_groups for param in group["params"]}


def _count(optimizer: torch.optim.Optimizer, param: Tensor) -> int | None:
    """The steps of a parameter; None for SGD, which does not count them."""
    if isinstance(optimizer, torch.optim.SGD):
        return None
    return int(optimizer.state.get(param, {}).get("step", 0))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _stages(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], name: str) -> list[Stage]:
    """The decay rates of the optimizer's moving averages for a group; refuses what the laws do not cover."""
    if isinstance(optimizer, KAdam):
        return make_stages(group["betas"], group["k"], group["schedule"])
    if isinstance(optimizer, torch.optim.SGD):
        if group["nesterov"]:
            raise ValueError(f"{name}: nesterov=True (the laws are for plain momentum)")
        if group["momentum"] and group["weight_decay"]:
            raise ValueError(
                f"{name}: weight_decay={group['weight_decay']} goes through the moment in SGD, whose momentum is"
                f" {group['momentum']} (the laws are for decoupled decay: one of the two must be 0)"
            )
        return [Stage(group["momentum"], 0.0)]
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        if group["weight_decay"] and not decoupled:
            raise ValueError(
                f"{name}: weight_decay={group['weight_decay']} goes through the moments in Adam (the laws are for"
                " decoupled decay: take AdamW, or weight_decay=0)"
            )
        if group["amsgrad"]:
            raise ValueError(f"{name}: amsgrad=True (the laws are for Adam's own second moment)")
        return [Stage(*(float(rate) for rate in group["betas"]))]
    raise TypeError(f"optimizer: {type(optimizer).__name__} (must be KAdam, or torch's AdamW, Adam or SGD)")
