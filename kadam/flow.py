"""Adam, AdamW and k-Adam in continuous time, beside the discrete step that they model.

Step n of the algorithm is the time t = n lr. The algorithm is a chain of exponential averages with a division in
between; so is the model, and every average in it, the parameter included, is one ``Memory``::

    m' = gain x - rate m,    m(0) = start x(0),    value(t) = m(t) + present x(t)

of its input x, the gradient or what a stage makes of it. Two choices make a model. ``memory`` says how the average
of decay alpha over steps becomes one over time (``memory_of``):

=========  ========================  ==================  =============  =======================================
name       rate lr                   weight of present   initial mass   agrees with the discrete average in
=========  ========================  ==================  =============  =======================================
matched    -ln alpha                 1 - phi             1 - alpha      mass and mean lag, exactly at every n
rates      (1 - alpha) / alpha       0                   1 - alpha      mean lag, once the start is forgotten
paper      (1 - alpha) / alpha       0                   0              mean lag, once the start is forgotten
=========  ========================  ==================  =============  =======================================

with phi = -alpha ln(alpha) / (1 - alpha). From the zero mass of ``paper`` a cascade of three stages and more starts too
singularly for ``kadam.integrate``, which then says "step size underflow".

``form`` says how the parameter theta follows the update u (``position_of``), with f = u - weight_decay theta:

=========  ==================================  ===============================================================
name       equation                            what it is
=========  ==================================  ===============================================================
first      theta' = f                          the crude limit
second     (lr/2) theta'' + theta' = f         the paper's equation; stiff: a fast mode decays as exp(-2t/lr)
slow       theta' = f - (lr/2) f'              the same to second order in lr, without the fast mode
=========  ==================================  ===============================================================

The slow form is (theta + (lr/2) f)' = f, so it needs no derivative of the gradient. But theta then depends on the
gradient at theta itself: an algebraic equation. With matched memory it has a solution only where
lr curvature / sqrt(v) < 2 / present, which is 39 at gamma = 0.9 (the algorithm itself oscillates from 38 on). Towards
that limit ``kadam.integrate`` takes ever shorter steps, and its error stays at about 1e-5 of the way whatever the
tolerance. The second form has no such limit.

Sources: Gould & Tanaka, arXiv 2411.05746, section 2, for the kernels of ``paper`` and the form ``second``; the rest is
derived in ``notebooks/01_continuous_time.ipynb``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from kadam import update
from kadam.update import Moments, Number, Stage

MEMORIES = ("matched", "rates", "paper")
FORMS = ("second", "slow", "first")

Gradient = Callable[[Tensor, float], Tensor]  # (theta, t) -> gradient, of theta's shape
Remember = Callable[[int, Tensor], Tensor]  # (which memory, its input) -> m, where the input is known


class Memory(NamedTuple):
    """One linear memory of an input x: m' = gain x - rate m, m(0) = start x(0), value = m + present x.

    ``rate`` and ``gain`` are per unit of time; ``present`` and ``start`` have no unit (but see ``position_of``).
    """

    rate: float
    gain: float
    present: float
    start: float


class Response(NamedTuple):
    """The update ``u`` and its ``sensitivity``: by how much u falls per unit of M, the average gradient."""

    u: Tensor
    sensitivity: Tensor


def memory_of(alpha: float, lr: float, memory: str = "matched") -> Memory:
    """The continuous-time counterpart of the average x_n -> alpha m + (1 - alpha) x_n from m = 0, one step per ``lr``.

    Its value, like the discrete m_n, still lacks the bias correction (``mass_of``).

    Raises:
        ValueError: ``alpha`` not in [0, 1), or a ``memory`` that is not in ``MEMORIES``.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha: {alpha!r} (a decay rate must lie in [0, 1))")
    if memory not in MEMORIES:
        raise ValueError(f"memory: {memory!r} (must be one of {', '.join(MEMORIES)})")
    if alpha == 0:  # the limit of all three: the input itself
        return Memory(rate=0.0, gain=0.0, present=1.0, start=0.0)
    if memory == "matched":
        decay = -math.log(alpha)
        phi = alpha * decay / (1 - alpha)
        return Memory(rate=decay / lr, gain=phi * decay / lr, present=1 - phi, start=phi - alpha)
    rate = (1 - alpha) / alpha / lr
    return Memory(rate=rate, gain=rate, present=0.0, start=1 - alpha if memory == "rates" else 0.0)


def mass_of(t: float | Tensor, alpha: float, lr: float, memory: str = "matched") -> float | Tensor:
    """The bias correction at time ``t``: what ``memory_of`` makes of the input 1; the paper's is the discrete one.

    1 - alpha exp(-rate t), where exp(-rate t) is alpha^n for ``matched``; for ``paper`` 1 - alpha^(n+1).
    """
    base = math.exp((alpha - 1) / alpha) if memory == "rates" and alpha > 0 else alpha
    return 1 - alpha * base ** (t / lr)


def position_of(lr: float, weight_decay: float, form: str = "second") -> tuple[Memory, ...]:
    """The parameter as a memory of the update: theta is the sum of the values of these memories of u.

    ``gain`` has no unit here, and ``present`` is a time. ``start`` is not used: initial values come from
    theta(0) (``Flow.start``).

    Raises:
        ValueError: an unknown ``form``, or a ``weight_decay`` so large that its equation has no decaying real solution.
    """
    if form not in FORMS:
        raise ValueError(f"form: {form!r} (must be one of {', '.join(FORMS)})")
    if form == "first":
        return (Memory(weight_decay, 1.0, 0.0, 0.0),)
    if not 2 * lr * weight_decay < 1:
        raise ValueError(
            f"weight_decay: {weight_decay!r} (the form {form!r} needs 2 lr weight_decay < 1, at lr = {lr!r})"
        )
    if form == "slow":  # solve y = theta + (lr/2) (u - weight_decay theta) for theta, and y' = u - weight_decay theta
        share = 1 / (1 - lr * weight_decay / 2)
        return (Memory(weight_decay * share, share**2, -share * lr / 2, 0.0),)
    root = math.sqrt(1 - 2 * lr * weight_decay)
    return (Memory(2 * weight_decay / (1 + root), 1 / root, 0.0, 0.0), Memory((1 + root) / lr, -1 / root, 0.0, 0.0))


def gradient_of(loss: Callable[[Tensor], Tensor]) -> Gradient:
    """The gradient of a loss by autograd, as ``kadam.integrate`` wants it: gradient(theta, t), the same at all t.

    ``loss`` maps theta, of any shape, to a scalar.
    """

    def gradient(theta: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            at = theta.detach().requires_grad_()
            (result,) = torch.autograd.grad(loss(at), at)
        return result

    return gradient


@dataclass(frozen=True)
class Flow:
    """A continuous-time model of k-Adam with one pair of rates per stage; one stage is AdamW, or Adam.

    Args:
        stages: the rates (gamma, beta) of every stage, floats; ``kadam.make_stages`` makes them from a schedule.
        lr: learning rate, > 0; one step of the algorithm takes the time lr.
        weight_decay: decoupled weight decay, >= 0.
        eps: offset of every stage's denominator, >= 0; the theory has 0.
        memory, form: the model, see the module.

    A state is one tensor of shape (``rows``, \\*theta.shape): the memories m of first and second moment of every
    stage, then those of the position. All operations are elementwise, on any device, in float32 or float64.

    Raises:
        ValueError: an argument out of range, named with its value.
    """

    stages: Sequence[Stage]
    lr: float
    weight_decay: float = 0.0
    eps: float = 0.0
    memory: str = "matched"
    form: str = "second"

    def __post_init__(self) -> None:
        if len(self.stages) == 0:
            raise ValueError("stages: an empty sequence (must hold at least one pair (gamma, beta))")
        try:
            stages = tuple(Stage(float(gamma), float(beta)) for gamma, beta in self.stages)
        except (TypeError, ValueError):
            raise ValueError(f"stages: {self.stages!r} (must be pairs (gamma, beta) of floats)") from None
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: {self.lr!r} (must be > 0 and finite)")
        for name in ("weight_decay", "eps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)!r} (must be >= 0 and finite)")
        object.__setattr__(self, "stages", stages)
        _ = self.memories  # checks the rest

    @cached_property
    def memories(self) -> tuple[Memory, ...]:
        """All memories, in the order of a state's rows."""
        rates = [float(alpha) for stage in self.stages for alpha in stage]
        return (
            *(memory_of(alpha, self.lr, self.memory) for alpha in rates),
            *position_of(self.lr, self.weight_decay, self.form),
        )

    @property
    def rows(self) -> int:
        """Number of rows of a state."""
        return len(self.memories)

    def step(self, theta: Tensor, moments: Sequence[Moments], grad: Tensor, n: int) -> tuple[Tensor, list[Moments]]:
        """Step n = 1, 2, ... of the algorithm, from ``theta`` with the gradient ``grad`` there."""
        new = update.cascade(grad, moments, n, self.stages, self.eps)
        return update.apply(theta, new[-1], n, self.stages[-1], self.lr, self.weight_decay, self.eps), new

    def respond(self, t: float | Tensor, grad: Tensor, remember: Remember) -> Response:
        """The update of the model at time ``t``, from the gradient there and the memories.

        Args:
            t: time, a float, or a tensor that broadcasts against ``grad`` (best in float64, whatever the gradient's).
            grad: the gradient at ``t``; any shape that ``remember`` knows.
            remember: gives m at ``t`` of the memory with a row number, from the memory's input at ``t``. Rows 2i and
                2i + 1 are the first and the second moment of stage i.
        """
        x, sensitivity = grad, torch.ones_like(grad)
        for i, stage in enumerate(self.stages):
            m, v = (
                (remember(row, z) + self.memories[row].present * z) / self._mass(t, alpha, x)
                for row, z, alpha in ((2 * i, x, stage.gamma), (2 * i + 1, x * x, stage.beta))
            )
            # m and v are corrected already; after infinitely many steps nothing is left to correct
            x = update.output(Moments(m, v), math.inf, stage, self.eps)
            sensitivity = update.output(Moments(sensitivity, v), math.inf, stage, self.eps)
        return Response(-x, sensitivity)

    def _mass(self, t: float | Tensor, alpha: Number, x: Tensor) -> Number:
        mass = mass_of(t, float(alpha), self.lr, self.memory)
        return mass.to(x.dtype) if isinstance(mass, Tensor) else mass

    @property
    def position_rows(self) -> range:
        """The rows of a state that hold the position's memories."""
        return range(2 * len(self.stages), self.rows)

    def position(self, memories: Sequence[Tensor], u: Tensor) -> Tensor:
        """theta, from the m of the position's memories and the update there (which only the slow form needs)."""
        values = [m + self.memories[row].present * u for row, m in zip(self.position_rows, memories, strict=True)]
        return torch.stack(values).sum(dim=0)

    def start(self, theta: Tensor, grad: Tensor, gradient: Gradient | None = None) -> Tensor:
        """The state at t = 0.

        Args:
            theta, grad: the parameter and its gradient.
            gradient: the function. Only the second form asks it, once, at the time lr. It is to start without the
                fast mode, at theta' = f - (lr/2) f'. Without it theta' is off by O(lr).
        """
        rows = [torch.zeros_like(theta)] * self.rows

        def first(row: int, x: Tensor) -> Tensor:
            rows[row] = self.memories[row].start * x
            return rows[row]

        u = self.respond(0.0, grad, first).u
        slow, *fast = (self.memories[row] for row in self.position_rows)
        if not fast:
            return torch.stack([*rows[:-1], theta - slow.present * u])

        f = u - self.weight_decay * theta
        ahead = grad if gradient is None else gradient(theta + self.lr * f, self.lr)

        def moving(s: Tensor) -> Tensor:
            """u at a small time s."""

            def near(row: int, x: Tensor) -> Tensor:
                memory = self.memories[row]
                return rows[row] + s * (memory.gain * x - memory.rate * rows[row])

            return self.respond(s, torch.lerp(grad, ahead, s / self.lr), near).u

        zero = torch.zeros((), dtype=theta.dtype, device=theta.device)
        change = torch.func.jvp(moving, (zero,), (torch.ones_like(zero),))[1]
        # where u turns within a step, from a gradient that is nearly zero, there is no slow manifold; 0/0 is NaN here
        change = torch.where(self.lr * change.abs() < 0.5, change, 0.0)
        velocity = f - self.lr / 2 * (change - self.weight_decay * f)
        # theta = a + b and theta' = -rate_a a - rate_b b: the gains cancel
        b = -(velocity + slow.rate * theta) / (fast[0].rate - slow.rate)
        return torch.stack([*rows[:-2], theta - b, b])

    def derivative(self, t: float, state: Tensor, grad: Tensor) -> Tensor:
        """d(state)/dt from the gradient at ``position(state)``, for solvers of ordinary differential equations.

        Raises:
            ValueError: the slow form, whose position depends on the gradient there; ``kadam.integrate`` solves it.
        """
        if self.form == "slow":
            raise ValueError("form: 'slow' (has no explicit derivative; use 'second' or 'first', or kadam.integrate)")
        inputs: list[Tensor] = []

        def held(row: int, x: Tensor) -> Tensor:
            inputs.append(x)
            return state[row]

        u = self.respond(t, grad, held).u
        inputs += [u] * (self.rows - len(inputs))
        return torch.stack(
            [memory.gain * x - memory.rate * m for memory, x, m in zip(self.memories, inputs, state, strict=True)]
        )
