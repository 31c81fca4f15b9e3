"""Runs of ``notebooks/01_continuous_time.ipynb``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kadam.flow import Flow
from kadam.integrate import integrate
from kadam.stages import make_stages
from kadam.update import Stage, denominator
from lab.experiments import run
from lab.problems import Problem, algorithm, error_over_distance, sharpness, transformer, walk


@run("continuous_time.tracking", data="words", short={"steps": 8})
def tracking(
    seed: int, steps: int, lr: float, weight_decay: float = 0.0, k: int = 1, memory: str = "matched",
    form: str = "second", swapped: bool = False, batches: bool = False, width: int = 16, layers: int = 1,
    eps: float = 1e-8, tolerance: float = 1e-3, effort: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """k-Adam with (gamma, beta) = (0.9, 0.999) on a transformer, and its flow, over all parameters in float64.

    With ``batches`` the algorithm sees another batch at every step and the flow goes over from one to the next
    (``lab.problems.blended``); otherwise one batch is all the data. ``swapped`` gives the flow beta for gamma. The
    flow may take ``effort`` gradients for each of the algorithm's.

    Returns ``error`` over the distance travelled, at every step that the flow reached; ``spread``, the median, the
    90 and the 99 % quantile and the largest error of a coordinate at the end, over the root mean square distance; of
    16 random coordinates that moved ``discrete`` and ``continuous``, shape (steps + 1, 16), and the ``names`` of their
    tensors; ``evaluations`` and ``outcome``.
    """
    count = steps + 1 if batches else 1
    problem = transformer(seed, width, layers, blocks=8 if batches else 32, batches=count, lr=lr if batches else None)
    stages = make_stages((0.9, 0.999), k)
    path = algorithm(Flow(stages, lr, weight_decay, eps), problem, steps)
    modelled = [Stage(beta, gamma) for gamma, beta in stages] if swapped else stages
    flow = Flow(modelled, lr, weight_decay, eps, memory, form)
    fixed: dict[str, Any] = dict(step=lr, order=2) if batches else dict(tolerance=tolerance)
    times = np.arange(steps + 1) * lr
    solution = integrate(flow, problem.gradient, problem.theta, times, max_evaluations=effort * steps, **fixed)
    path, reached = path[: len(solution.theta)], solution.theta
    off = (reached[-1] - path[-1]).abs() / (path[-1] - path[0]).square().mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    moved = (path[-1] != path[0]).nonzero().flatten()
    chosen = moved[torch.randperm(len(moved), generator=generator)[:16]]
    return {
        "error": error_over_distance(reached, path).numpy(),
        "spread": torch.quantile(off, torch.tensor([0.5, 0.9, 0.99, 1.0], dtype=off.dtype)).numpy(),
        "discrete": path[:, chosen].numpy(),
        "continuous": reached[:, chosen].numpy(),
        "names": [problem.names[i] for i in chosen.tolist()],
        "evaluations": solution.statistics.evaluations,
        "outcome": solution.outcome,
    }


@run("continuous_time.edge", data="words", short={"steps": 6, "points": 2})
def edge(seed: int, steps: int, lr: float, points: int = 5, width: int = 16, layers: int = 1,
         eps: float = 1e-8) -> dict[str, Any]:  # fmt: skip
    """Sharpness along the full-batch Adam run of ``tracking``: lr times the largest eigenvalue of Hessian over sqrt(v).

    Returns ``sharpness`` after the steps ``at``, ``points`` of them evenly spaced, the last is ``steps``.
    """
    problem, stage = transformer(seed, width, layers, blocks=32), Stage(0.9, 0.999)
    at = np.linspace(0, steps, points + 1).round().astype(int)[1:]
    found = [
        lr * sharpness(problem, theta, denominator(moments[0].v, n, stage.beta, eps))
        for n, (theta, moments) in enumerate(walk(Flow([stage], lr, eps=eps), problem, steps))
        if n in at
    ]
    return {"at": at, "sharpness": np.array(found)}


def distance_to_flow(problem: Problem, flow: Flow, steps: int, tolerance: float = 1e-7) -> float:
    """Largest difference of any coordinate between algorithm and flow, over all steps."""
    times = np.arange(steps + 1) * flow.lr
    solution = integrate(flow, problem.gradient, problem.theta, times, tolerance=tolerance)
    if not solution.ok:
        raise RuntimeError(f"flow: {solution}")
    return (solution.theta - algorithm(flow, problem, steps)).abs().max().item()
