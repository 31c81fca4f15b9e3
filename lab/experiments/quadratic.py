"""Adam on a convex quadratic at thousands of (beta, gamma, lr) at once: where does the update grow, where the loss?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kadam import ensemble
from lab.experiments import run

DOUBLING = math.log(2)
"""An update *grows* if the trend of ln max |u| over the last window is to double it at least."""


def hessian(condition: float, dimension: int, seed: int) -> Tensor:
    """Symmetric, eigenvalues 1 ... 1/condition at equal ratios, eigenvectors drawn uniformly; float64."""
    generator = torch.Generator().manual_seed(seed)
    basis, triangle = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
    basis = basis * triangle.diagonal().sign()
    return (basis * torch.logspace(0, -math.log10(condition), dimension, dtype=torch.float64)) @ basis.T


@run(
    "stable_region.quadratic",
    short={"steps": 40, "window": 10, "betas": lambda rates: rates[:4], "gammas": lambda rates: rates[-4:]},
)
def quadratic_map(
    betas: Sequence[float], gammas: Sequence[float], lrs: Sequence[float], condition: float, steps: int = 1000,
    window: int = 200, eps: float = 1e-8, dimension: int = 10, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Adam (no weight decay, float64) on f = theta' H theta / 2, for all of lrs x betas x gammas.

    H is ``hessian(condition, dimension, seed)``, the start is drawn from a normal distribution with ``seed``; both are
    the same for all runs. There are no gradient noise and no vanished gradients but by convergence.

    Returns, each of shape (lrs, betas, gammas):
        ``diverged_at``: 0, or the step at which something was not finite.
        ``largest_update``: max |u_n| over the run; ``largest_last`` over its last ``window`` steps.
        ``slope``: of the least-squares line through ln max |u_n| over these last steps, per step.
        ``update_grows``: that trend is to double it, or more, over a ``window``.
        ``final_loss``: after the last step, infinite for a run that diverged.
        ``loss_diverges``: it is above ``initial_loss``, a number.
    A run that diverged is judged by the last ``window`` steps that it took. The trend alone is no sign of instability:
    updates that had all but vanished also grow when a run begins to oscillate; ``largest_last`` tells the two apart.
    """
    if not 2 <= window <= steps:
        raise ValueError(f"window: {window} (must lie between 2 and the number of steps, {steps})")
    matrix = hessian(condition, dimension, seed)
    start = torch.randn(dimension, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)

    def loss(params: dict[str, Tensor], batch: None) -> Tensor:
        return params["theta"] @ (matrix @ params["theta"]) / 2

    maps = []
    for lr in lrs:  # one at a time, for the memory that the updates of all steps take
        members = [
            dict(lr=lr, betas=(gamma, beta), eps=eps, weight_decay=0.0, k=1) for beta in betas for gamma in gammas
        ]
        runs = ensemble.train(
            loss, lambda _: {"theta": start}, members, None, steps, {"u": ensemble.Member.largest_update},
            keep_params=True,
        )  # fmt: skip
        assert runs.params is not None
        theta = runs.params["theta"]
        final = ((theta @ matrix) * theta).sum(1).numpy() / 2
        maps.append({"diverged_at": runs.diverged_at, **_judged(runs.observed["u"], runs.diverged_at, window),
                     "final_loss": np.where(runs.diverged_at > 0, np.inf, final)})  # fmt: skip
    shape = (len(lrs), len(betas), len(gammas))
    result: dict[str, Any] = {name: np.stack([part[name] for part in maps]).reshape(shape) for name in maps[0]}
    initial = loss({"theta": start}, None).item()
    return {
        **result,
        "initial_loss": initial,
        "loss_diverges": result["final_loss"] > initial,
    }


def _judged(u: NDArray[np.float64], diverged_at: NDArray[np.int64], window: int) -> dict[str, NDArray[Any]]:
    """The largest update, that of the last window and the trend there, from max |u_n|, (runs, steps)."""
    taken = np.where(diverged_at > 0, diverged_at - 1, u.shape[1])
    columns = taken[:, None] - window + np.arange(window)
    inside = columns >= 0
    last = np.where(inside, np.take_along_axis(u, np.maximum(columns, 0), axis=1), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(last > 0, np.log(last), np.nan)
        x = np.where(np.isnan(y), np.nan, np.arange(window))
        count = (~np.isnan(y)).sum(1)
        x_mean, y_mean = np.nansum(x, 1) / count, np.nansum(y, 1) / count
        dx = x - x_mean[:, None]
        slope = np.nansum(dx * (y - y_mean[:, None]), 1) / np.nansum(dx**2, 1)
    return {
        "largest_update": np.fmax.reduce(u, axis=1),
        "largest_last": np.fmax.reduce(last, axis=1),
        "slope": slope,
        "update_grows": slope * window >= DOUBLING,
    }
