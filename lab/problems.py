"""Problems for the continuous-time model: the gradient of a loss over a whole data set, as a function of one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kadam import update
from kadam.flow import Flow, Gradient, gradient_of
from kadam.update import Moments
from lab import data
from lab.models import Transformer
from lab.training import cross_entropy

Batch = tuple[Tensor, Tensor]


class Problem(NamedTuple):
    """``gradient(theta, t)``, and ``theta`` at t = 0, float64, shape (size,); ``names`` of its coordinates' tensors."""

    gradient: Gradient
    theta: Tensor
    names: list[str]


def logistic(seed: int = 0, size: int = 5, points: int = 100, away: float = 0.0) -> Problem:
    """Logistic regression on random points with noisy labels.

    theta(0) is 0, or with ``away`` the minimum plus that in every coordinate, with alternating signs: then no
    coordinate of the gradient changes its sign before a distance of about ``away``.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(points, size, generator=generator, dtype=torch.float64)
    noise = torch.randn(points, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(size, generator=generator, dtype=torch.float64) + noise > 0).double()

    def loss(theta: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(x @ theta, y)

    theta = torch.zeros(size, dtype=torch.float64)
    if away:
        for _ in range(20):  # Newton
            theta -= torch.linalg.solve(torch.func.hessian(loss)(theta), torch.func.grad(loss)(theta))
        theta += away * (-1.0) ** torch.arange(size)
    return Problem(gradient_of(loss), theta, ["weight"] * size)


def perceptron(seed: int = 0, width: int = 32) -> Problem:
    """A smooth three-layer perceptron on the 4,000 training signals of MNIST-1D."""
    torch.manual_seed(seed)
    parts = data.mnist1d()
    model = nn.Sequential(nn.Linear(40, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    return of_model(model, [(parts.x, parts.y)])


def transformer(
    seed: int = 0, width: int = 16, layers: int = 1, vocabulary: int = 64, blocks: int = 32, context: int = 16,
    batches: int = 1, lr: float | None = None,
) -> Problem:  # fmt: skip
    """A causal transformer on the first words of the Python language reference; all rarer words are one.

    ``blocks`` blocks of ``context`` words are a batch; there are ``batches`` of them (see ``of_model``).
    """
    torch.manual_seed(seed)
    tokens = data.words().tokens.clamp(max=vocabulary - 1)
    pieces = tokens[: batches * blocks * (context + 1)].view(batches, blocks, context + 1)
    model = Transformer(vocabulary, context, width, layers)
    return of_model(model, [(piece[:, :-1], piece[:, 1:]) for piece in pieces], lr)


def of_model(model: nn.Module, batches: Sequence[Batch], lr: float | None = None) -> Problem:
    """The cross-entropy of a model as a function of all its parameters, in one float64 vector.

    With one batch the gradient is the same at all times. With several, batch n belongs to the time n ``lr``, as in
    the algorithm, and in between the gradient goes over from one batch to the next linearly in time.
    """
    model = model.double()
    named = {name: param.detach() for name, param in model.named_parameters()}
    names = [name for name, param in named.items() for _ in range(param.numel())]
    theta = torch.cat([param.flatten() for param in named.values()])

    def of_batch(batch: Batch) -> Gradient:
        inputs, targets = (part.double() if part.is_floating_point() else part for part in batch)

        def loss(theta: Tensor) -> Tensor:
            parts = theta.split([param.numel() for param in named.values()])
            views = {name: part.view(param.shape) for (name, param), part in zip(named.items(), parts, strict=True)}
            return cross_entropy(functional_call(model, views, (inputs,)), targets)

        return gradient_of(loss)

    gradients = [of_batch(batch) for batch in batches]
    return Problem(gradients[0] if lr is None else blended(gradients, lr), theta, names)


def blended(gradients: Sequence[Gradient], lr: float) -> Gradient:
    """gradient n at the time n ``lr``, linear in time in between; the last one after the end."""

    def gradient(theta: Tensor, t: float) -> Tensor:
        n = round(t / lr, 6)
        low = min(int(n), len(gradients) - 1)
        share = min(n - low, 1.0)
        if share == 0 or low == len(gradients) - 1:
            return gradients[low](theta, t)
        return torch.lerp(gradients[low](theta, t), gradients[low + 1](theta, t), share)

    return gradient


def walk(flow: Flow, problem: Problem, steps: int) -> Iterator[tuple[Tensor, Sequence[Moments]]]:
    """Parameter and moments of the algorithm that ``flow`` models, after 0, 1, ..., ``steps`` steps."""
    theta = problem.theta
    moments: Sequence[Moments] = [update.zeros(theta)] * len(flow.stages)
    yield theta, moments
    for n in range(1, steps + 1):
        theta, moments = flow.step(theta, moments, problem.gradient(theta, (n - 1) * flow.lr), n)
        yield theta, moments


def algorithm(flow: Flow, problem: Problem, steps: int) -> Tensor:
    """The discrete trajectory that ``flow`` models, shape (steps + 1, size)."""
    return torch.stack([theta for theta, _ in walk(flow, problem, steps)])


def sharpness(problem: Problem, theta: Tensor, scale: Tensor, products: int = 20) -> float:
    """The eigenvalue, largest in modulus, of the Hessian at ``theta`` divided by the diagonal ``scale``.

    By power iteration on the symmetric scale^-1/2 H scale^-1/2; products with H are central differences of the
    gradient at t = 0, two each. Entries of ``scale`` are > 0; an infinite one takes its coordinate out.
    """
    root = scale.sqrt()
    x = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
    value = 0.0
    for _ in range(products):
        x = x / x.norm()
        direction = x / root
        small = 1e-4 / direction.norm()
        ahead, behind = (problem.gradient(theta + way * direction, 0.0) for way in (small, -small))
        product = (ahead - behind) / (2 * small) / root
        value, x = (x @ product).item(), product
    return value


def error_over_distance(path: Tensor, other: Tensor) -> Tensor:
    """|path - other| at every time, over the largest distance of ``other`` from its start; Euclidean; (times,)."""
    return (path - other).norm(dim=1) / (other - other[0]).norm(dim=1).max()
