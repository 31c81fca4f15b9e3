"""The formula apart from the library, on purpose: k-Adam for one coordinate, in plain Python."""

from __future__ import annotations

import math


def k_adam(theta, gradients, pairs, lr, weight_decay, eps):
    """The parameter after every step. ``pairs`` are (gamma, beta), one a stage."""
    moments = [[0.0, 0.0] for _ in pairs]
    path = []
    for n, gradient in enumerate(gradients, start=1):
        x = gradient
        for (gamma, beta), moment in zip(pairs, moments, strict=True):
            moment[0] = gamma * moment[0] + (1 - gamma) * x
            moment[1] = beta * moment[1] + (1 - beta) * x * x
            first = moment[0] / (1 - gamma**n)
            second = moment[1] / (1 - beta**n)
            x = first / (math.sqrt(second) + eps) if math.sqrt(second) + eps > 0 else 0.0
        theta = (1 - lr * weight_decay) * theta - lr * x
        path.append(theta)
    return path
