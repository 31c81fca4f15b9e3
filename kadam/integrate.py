"""The integrator of ``kadam.flow``: the averages exactly, the gradient by a polynomial, one gradient a step.

Every average in the model, the parameter included, is linear in its input. Its rate may be as slow as weight decay's or
as fast as 2/lr. On each step the gradient is replaced by a polynomial in time. Then everything else follows, without
another gradient and without stiffness: the input of every average is taken at the step's Chebyshev points, and the
average is the exact integral of the polynomial through them (``exponential_weights``). So the length of a step depends
on how fast the gradient varies, not on how long the averages remember.

The polynomial is that of an exponential Adams method, with steps and order chosen as the run goes:

1. predict: through the last order - 1 gradients, and follow it to the end of the step;
2. evaluate: the gradient there, the step's only one;
3. correct: through that one as well, and follow again.

With a fixed step h the error is O(h^order); ``tests/test_integrate.py`` measures it. The slow form is an exception
(``kadam.flow``). There theta takes up a part of the gradient at once, but the gradient is not evaluated again at the
corrected point. So the prediction's error stays, and high orders gain little.

Sources: exponential Adams methods are reviewed in Hochbruck & Ostermann, "Exponential integrators", Acta Numerica 2010;
choosing the order by comparing neighbours goes back to Gear, and to Shampine & Gordon, 1975.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kadam.flow import Flow, Gradient

Array = NDArray[np.float64]

OUTCOMES = {
    "reached end": "",
    "diverged": "theta or its gradient is no longer finite, however small the step: is (beta, gamma) outside the stable"
    " region (kadam.stability), the learning rate too large, or the loss undefined there?",
    "step size underflow": "no step is short enough for this tolerance: does the gradient jump, or is its rounding"
    " error not small beside sqrt(v) (set eps > 0, use float64, or raise the tolerance)?",
    "evaluation limit": "raise max_evaluations, or the tolerance; near the edge of stability, or where the update"
    " is made of rounding noise or a coordinate starts at its own minimum (set eps > 0), the model needs more"
    " gradients than the algorithm itself",
}
"""The named outcomes, each with advice."""

ORDERS = range(2, 9)
NODES: Array = 0.5 - np.cos(np.pi * np.arange(9) / 8) / 2  # Chebyshev points of the unit step, both ends among them
_PLACES, _WEIGHTS = (np.asarray(part, dtype=float) for part in np.polynomial.legendre.leggauss(32))
_HORIZON = 40.0  # exp(-40) is below the rounding error
# values at the nodes -> Chebyshev coefficients
_TO_CHEBYSHEV: Array = np.asarray(np.linalg.inv(np.polynomial.chebyshev.chebvander(2 * NODES - 1, 8)), dtype=float)


@dataclass(frozen=True)
class Statistics:
    """What a run took: gradient evaluations, accepted and rejected steps, shortest and longest accepted step (time)."""

    evaluations: int = 0
    accepted: int = 0
    rejected: int = 0
    shortest: float = math.inf
    longest: float = 0.0


@dataclass(frozen=True)
class Solution:
    """The result of ``integrate``.

    Attributes:
        times: the asked times that were reached, shape (reached,).
        theta: the parameter at these times, shape (reached, \\*theta.shape); no rows if ``on_output`` took them.
        outcome: a name from ``OUTCOMES``.
        t: the time that was reached.
        statistics: what it took.
    """

    times: Array
    theta: Tensor
    outcome: str
    t: float
    statistics: Statistics

    @property
    def ok(self) -> bool:
        """Whether the end was reached."""
        return self.outcome == "reached end"

    def __str__(self) -> str:
        advice = OUTCOMES[self.outcome]
        return f"{self.outcome} at t = {self.t:.6g}" + (f": {advice}" if advice else "")


def integrate(
    flow: Flow,
    gradient: Gradient,
    theta: Tensor,
    times: ArrayLike,
    *,
    tolerance: float = 1e-3,
    order: int = 7,
    step: float | None = None,
    max_evaluations: int | None = None,
    on_output: Callable[[float, Tensor], None] | None = None,
    progress: Callable[[float, Statistics], None] | None = None,
) -> Solution:
    """Follow ``flow`` from ``theta`` at t = 0 to the last of ``times``.

    Args:
        flow: the model.
        gradient: gradient(theta, t) of the loss, of theta's shape; see ``kadam.flow.gradient_of``. Called with
            autograd enabled, at points that the trajectory only comes near.
        theta: the start, float32 or float64, any shape and device.
        times: where the parameter is wanted, increasing, >= 0; step n of the algorithm is at n lr.

    Other arguments, which you should not need:
        tolerance: the error allowed in a step, as a share of the way that theta, or u alone, makes in it (root mean
            squares over all coordinates). Steps shorter than lr count as lr. At the end the error, as a share of the
            length of the path, is below the tolerance, with two exceptions. Where steps stay shorter than lr, more
            errors add up. And the trajectory itself may enlarge small differences without bound: near the edge of
            stability, or where a coordinate rests at a minimum while v fades. In both cases ``Statistics`` shows steps
            of about lr or less.
        order: the highest order, 2 ... 8; lower ones are used where they allow longer steps.
        step: if given, steps of this length and of this order, without error control; the first few have lower
            orders. Where the gradient has kinks at the times n lr: step = lr, order = 2.
        max_evaluations: of the gradient; by default 1000 and ten per step of the algorithm.
        on_output: called with each of ``times`` and theta there, which are then not kept: memory does not grow.
        progress: told t and the statistics after every step.

    Memory: the last ``order`` gradients, the state (``flow.rows`` tensors), about 20 times theta per memory of the
    model within a step, and the outputs. It does not depend on the number of steps.

    Raises:
        ValueError, TypeError: an argument out of range, named with its value; a gradient that at theta(0) is not
            finite, or not of theta's shape and dtype. What goes wrong later is a named outcome.
    """
    wanted = _checked(theta, times, tolerance, order, step, max_evaluations)
    end = float(wanted[-1])
    limit = 1000 + 10 * math.ceil(end / flow.lr) if max_evaluations is None else max_evaluations
    kept: list[Tensor] = []
    reached = 0

    def give(due: Array, theta_at: Callable[[Sequence[float]], Tensor]) -> None:
        nonlocal reached
        for chunk in np.array_split(due, math.ceil(len(due) / 8) or 1):  # a step holds any number of them
            for t, value in zip(chunk.tolist(), theta_at(chunk.tolist()) if len(chunk) else (), strict=True):
                if on_output is None:
                    kept.append(value.view(theta.shape).clone())
                else:
                    on_output(t, value.view(theta.shape))
        reached += len(due)

    outcome = "reached end"
    with torch.no_grad():
        run = _Run(flow, gradient, theta)
        give(wanted[wanted == 0], lambda _: run.theta[None])
        count = 1
        h = flow.lr / 16 if step is None else step
        finite = True
        while end - run.t > 1e-12 * end:
            left = end - run.t
            if left < 2 * h:  # no tiny last step
                h = left / math.ceil(left / h - 1e-9)
            if h < 1e-12 * flow.lr or run.t + h == run.t:  # steps of about tolerance lr get over a jump of u
                outcome = "step size underflow" if finite else "diverged"
                break
            if run.statistics.evaluations >= limit:
                outcome = "evaluation limit"
                break
            attempt = run.attempt(h, count)
            finite = attempt is not None
            error = attempt.error(attempt.known, attempt.gradients) if attempt is not None and step is None else 0.0
            if attempt is None or not error <= attempt.allowed(tolerance):
                if step is not None:
                    outcome = "diverged"
                    break
                run.reject()
                h *= 0.2 if attempt is None else _factor(error, attempt.allowed(tolerance), count)
                continue
            until = run.t + h
            give(wanted[reached : int(np.searchsorted(wanted, until * (1 + 1e-12), "right"))], attempt.theta_at)
            run.accept(attempt, keep=order)
            if progress is not None:
                progress(until, run.statistics)
            if step is None:
                h, count = _next(run, attempt, tolerance, order)
            else:
                h, count = step, min(count + 1, order - 1)
    values = torch.stack(kept) if kept else theta.new_empty((0, *theta.shape))
    return Solution(wanted[:reached], values, outcome, run.t, run.statistics)


def exponential_weights(z: float, points: Array) -> Array:
    """W[i, j] = integral over s from 0 to points[i] of exp(-z (points[i] - s)) l_j(s), shape (points, nodes).

    l_j is the Lagrange polynomial of ``NODES[j]``; z >= 0; points in [0, 1]. Accurate to rounding for any z:
    Gauss-Legendre over the part of the interval in which the exponential is not negligible.
    """
    width = np.minimum(points, _HORIZON / z if z > 0 else math.inf)[:, None]
    back = width * (1 + _PLACES) / 2
    basis = np.polynomial.chebyshev.chebvander(2 * (points[:, None] - back) - 1, len(NODES) - 1)
    result: Array = np.einsum("pq,pqk->pk", width / 2 * _WEIGHTS * np.exp(-z * back), basis) @ _TO_CHEBYSHEV
    return result


def interpolation(nodes: Array, points: Array) -> Array:
    """L[i, j] = l_j(points[i]), the Lagrange polynomials of ``nodes``, shape (points, nodes)."""
    same = np.eye(len(nodes), dtype=bool)
    above = points[:, None, None] - nodes
    below = nodes[:, None] - nodes + same
    result: Array = np.where(same, 1.0, above / below).prod(axis=2)
    return result


class _Followed(NamedTuple):
    """theta and u at the points of a step, shape (points, size); state and sensitivity at its end."""

    theta: Tensor
    u: Tensor
    state: Tensor
    sensitivity: Tensor


class _Step:
    """A step of length h from a state: all that follows from the gradient in it, at ``points`` (nodes first)."""

    def __init__(self, flow: Flow, t: float, h: float, state: Tensor, points: Array = NODES) -> None:
        self.flow, self.t, self.h, self.state, self.points = flow, t, h, state, points
        self.times = torch.tensor(t + h * points, device=state.device)[:, None]  # float64 for any state
        self.weights: dict[float, tuple[Tensor, Tensor]] = {}  # by rate: equal ones share them

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, dtype=self.state.dtype, device=self.state.device)

    def _exact(self, rate: float) -> tuple[Tensor, Tensor]:
        if rate not in self.weights:
            z = rate * self.h
            weights = self._tensor(self.h * exponential_weights(z, self.points))
            self.weights[rate] = self._tensor(np.exp(-z * self.points))[:, None], weights
        return self.weights[rate]

    def follow(self, known: Array, gradients: Tensor) -> _Followed:
        """From the ``gradients``, shape (count, size), at the times ``known``, in units of h from the step's start."""
        flow, nodes = self.flow, len(NODES)
        ends: list[Tensor] = []

        def remember(row: int, x: Tensor) -> Tensor:
            fading, weights = self._exact(flow.memories[row].rate)
            m = fading * self.state[row] + flow.memories[row].gain * (weights @ x[:nodes])
            ends.append(m[nodes - 1])
            return m

        along = self._tensor(interpolation(known, self.points)) @ gradients
        u, sensitivity = flow.respond(self.times, along, remember)
        theta = flow.position([remember(row, u) for row in flow.position_rows], u)
        return _Followed(theta, u, torch.stack(ends), sensitivity[nodes - 1])


class _Run:
    """Where a run is: the time, the flow's state, and the last gradients with their times."""

    def __init__(self, flow: Flow, gradient: Gradient, theta: Tensor) -> None:
        self.flow, self.gradient, self.shape = flow, gradient, theta.shape
        self.statistics = Statistics()
        self.t, self.theta = 0.0, theta.detach().clone().flatten()  # the caller's may change
        first = self.evaluate(self.theta, 0.0)
        if not first.isfinite().all():
            raise ValueError("gradient: not finite at theta(0) (the loss must be differentiable there)")
        self.known, self.gradients = [0.0], [first]
        self.state = flow.start(self.theta, first, self.evaluate)

    def evaluate(self, flat: Tensor, t: float) -> Tensor:
        self.statistics = replace(self.statistics, evaluations=self.statistics.evaluations + 1)
        theta = flat.view(self.shape)
        with torch.enable_grad():
            found = self.gradient(theta, t)
        if _kind(found) != _kind(theta):
            raise TypeError(f"gradient: returned {_kind(found)} (must be like theta: {_kind(theta)})")
        return found.detach().clone().flatten()  # the caller may use its buffer again

    def attempt(self, h: float, count: int) -> _Attempt | None:
        """A step of length h from the last ``count`` gradients; None if something in it is not finite."""
        step = _Step(self.flow, self.t, h, self.state)
        known, gradients = (np.array(self.known[-count:]) - self.t) / h, torch.stack(self.gradients[-count:])
        ahead = step.follow(known, gradients).theta[-1]
        if not ahead.isfinite().all():
            return None
        new = self.evaluate(ahead, self.t + h)
        if not new.isfinite().all():
            return None
        known, gradients = np.append(known, 1.0), torch.cat([gradients, new[None]])
        followed = step.follow(known, gradients)
        if not followed.state.isfinite().all() or not followed.theta.isfinite().all():
            return None
        return _Attempt(step, known, gradients, followed)

    def accept(self, attempt: _Attempt, keep: int) -> None:
        self.t += attempt.step.h
        self.theta, self.state = attempt.followed.theta[-1], attempt.followed.state
        self.known = [*self.known, self.t][-keep:]
        self.gradients = [*self.gradients, attempt.gradients[-1]][-keep:]
        was, h = self.statistics, attempt.step.h
        self.statistics = replace(
            was, accepted=was.accepted + 1, shortest=min(was.shortest, h), longest=max(was.longest, h)
        )

    def reject(self) -> None:
        self.statistics = replace(self.statistics, rejected=self.statistics.rejected + 1)


@dataclass(frozen=True)
class _Attempt:
    """A step that was tried: what is known in it (times in units of h from its start), and what follows."""

    step: _Step
    known: Array
    gradients: Tensor
    followed: _Followed

    def allowed(self, tolerance: float) -> float:
        """The error of theta that the step may make, root mean square."""
        theta, h = self.followed.theta, self.step.h
        way = max(_rms(theta[-1] - theta[0]), h * _rms(self.followed.u[-1]))  # theta may be at rest
        rounding = 10 * torch.finfo(theta.dtype).eps * _rms(theta[-1])  # is not to be resolved
        return tolerance * way * max(1.0, self.step.flow.lr / h) + rounding

    def error(self, known: Array, gradients: Tensor) -> float:
        """The error of theta, root mean square, if the step used all these gradients but the oldest.

        It is the change of the gradient's integral over the step, in units of theta: the averages pass on in the end
        whatever integral they are given. With it, what the nodes may miss of the integral of u: its last two
        Chebyshev coefficients.
        """
        places, weights = (1 + _PLACES) / 2, _WEIGHTS / 2
        change = weights @ interpolation(known, places)
        change[1:] -= weights @ interpolation(known[1:], places)
        integral = self._tensor(change) @ gradients
        missed = (self._tensor(_TO_CHEBYSHEV[-2:]) @ self.followed.u).abs().sum(dim=0)
        return self.step.h * (_rms(integral * self.followed.sensitivity) + _rms(missed))

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, dtype=self.gradients.dtype, device=self.gradients.device)

    def theta_at(self, t: Sequence[float]) -> Tensor:
        """theta at times within the step, shape (len(t), size); no gradient is evaluated."""
        place = np.clip((np.asarray(t) - self.step.t) / self.step.h, 0.0, 1.0)
        step = _Step(self.step.flow, self.step.t, self.step.h, self.step.state, np.append(NODES, place))
        return step.follow(self.known, self.gradients).theta[len(NODES) :]


def _factor(error: float, allowed: float, count: int) -> float:
    """By what the step should be multiplied, when ``count`` past gradients make this error; at most 2."""
    if error <= 1e-9 * allowed:
        return 2.0
    return min(2.0, max(0.2, 0.8 * (allowed / error) ** (1 / (count + 1)))) if error < math.inf else 0.2


def _next(run: _Run, attempt: _Attempt, tolerance: float, order: int) -> tuple[float, int]:
    """Length and number of past gradients of the next step: the neighbouring order that allows the longest."""
    used, allowed = len(attempt.known) - 1, attempt.allowed(tolerance)
    known = (np.array(run.known) - attempt.step.t) / attempt.step.h
    factors = {
        count: _factor(attempt.error(known[-count - 1 :], torch.stack(run.gradients[-count - 1 :])), allowed, count)
        for count in (used, used - 1, used + 1)
        if 1 <= count < min(order, len(known))
    }
    count = max(factors, key=lambda count: factors[count])
    return attempt.step.h * factors[count], count


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def _kind(x: object) -> str:
    """What must agree between theta and its gradient, in words."""
    return f"{x.dtype}, {tuple(x.shape)}, {x.device}" if isinstance(x, Tensor) else repr(x)


def _checked(
    theta: Tensor, times: ArrayLike, tolerance: float, order: int, step: float | None, max_evaluations: int | None
) -> Array:
    """``times`` as an array; raises for arguments out of range."""
    if not isinstance(theta, Tensor) or theta.dtype not in (torch.float32, torch.float64) or theta.numel() == 0:
        raise TypeError(f"theta: {_kind(theta)} (must be a tensor of float32 or float64, not empty)")
    if not theta.isfinite().all():
        raise ValueError("theta: not finite")
    try:
        wanted = np.array(times, dtype=float)
    except (TypeError, ValueError):
        wanted = np.array(math.nan)
    if wanted.ndim != 1 or len(wanted) == 0 or not np.isfinite(wanted).all():
        raise ValueError(f"times: {times!r} (must be a sequence of finite numbers)")
    if wanted[0] < 0 or np.any(np.diff(wanted) <= 0):
        raise ValueError(f"times: {times!r} (must increase and be >= 0)")
    if not isinstance(order, int) or order not in ORDERS:
        raise ValueError(f"order: {order!r} (must be one of {', '.join(map(str, ORDERS))})")
    for name, value in (("tolerance", tolerance), ("step", step), ("max_evaluations", max_evaluations)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: {value!r} (must be > 0 and finite)")
    return wanted
