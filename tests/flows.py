"""The small smooth problem of the tests of flow and integrate, and Adam on it, without what they do not need."""

from kadam.flow import Flow
from lab import problems


def logistic(far=False):
    """Five-dimensional logistic regression: gradient(theta, t) and theta(0), which is 0.

    With ``far``, theta(0) is so far from the minimum that in T = 1 no coordinate of the gradient changes its sign.
    """
    return problems.logistic(away=2.0 if far else 0.0)[:2]


def adam(flow: Flow, gradient, theta, steps):
    """The discrete trajectory, shape (steps + 1, *theta.shape)."""
    return problems.algorithm(flow, problems.Problem(gradient, theta, []), steps)


def distance(path, other):
    """Largest difference of any coordinate at any time."""
    return (path - other).abs().max().item()
