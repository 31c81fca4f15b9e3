"""A small smooth problem, and Adam on it, for the tests of flow and integrate."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from kadam.flow import Flow, gradient_of
from kadam.update import Moments


def logistic(dtype=torch.float64, far=False):
    """Five-dimensional logistic regression on 100 points: gradient(theta, t) and theta(0).

    With ``far``, theta(0) is so far from the minimum that in T = 1 no coordinate of the gradient changes its sign.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(100, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(5, generator=generator, dtype=torch.float64) + noise > 0).double()

    def loss(theta):
        return F.binary_cross_entropy_with_logits(x.to(theta) @ theta, y.to(theta))

    theta = torch.zeros(5, dtype=torch.float64)
    if far:
        for _ in range(10):  # Newton
            theta -= torch.linalg.solve(torch.func.hessian(loss)(theta), torch.func.grad(loss)(theta))
        theta += torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    return gradient_of(loss), theta.to(dtype)


def adam(flow: Flow, gradient, theta, steps):
    """The discrete trajectory, shape (steps + 1, *theta.shape)."""
    moments = [Moments(torch.zeros_like(theta), torch.zeros_like(theta))] * len(flow.stages)
    path = [theta]
    for n in range(1, steps + 1):
        theta, moments = flow.step(theta, moments, gradient(theta, (n - 1) * flow.lr), n)
        path.append(theta)
    return torch.stack(path)


def distance(path, other):
    """Largest difference of any coordinate at any time."""
    return (path - other).abs().max().item()
