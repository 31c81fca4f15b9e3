"""The map of runs on a quadratic, against single runs and against trends that are known."""

import numpy as np
import pytest
import torch

from kadam import KAdam
from lab.experiments import quadratic


def test_the_hessian_has_the_spectrum_it_claims():
    matrix = quadratic.hessian(100.0, 10, seed=3)
    torch.testing.assert_close(matrix, matrix.T)
    expected = torch.logspace(-2, 0, 10, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(matrix), expected)
    assert matrix[0, 1].abs() > 1e-3  # and is not diagonal
    assert not torch.equal(matrix, quadratic.hessian(100.0, 10, seed=4))


@pytest.mark.filterwarnings("ignore:KAdam. outside the stable region")
def test_the_map_is_that_of_single_runs():
    betas, gammas, lrs = [0.5, 0.99], [0.3, 0.9, 0.97], [1e-3, 0.3]
    found = quadratic.quadratic_map(betas, gammas, lrs, condition=10.0, steps=60, window=20, dimension=4, seed=1)
    matrix = quadratic.hessian(10.0, 4, seed=1)
    start = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert found["initial_loss"] == pytest.approx(float(start @ matrix @ start) / 2)
    for i, lr in enumerate(lrs):
        for j, beta in enumerate(betas):
            for m, gamma in enumerate(gammas):
                theta = torch.nn.Parameter(start.clone())
                optimizer = KAdam([theta], lr=lr, betas=(gamma, beta), weight_decay=0.0, k=1)
                u = []
                for _ in range(60):
                    theta.grad = matrix @ theta.detach()
                    optimizer.step()
                    u.append(optimizer.last_update(theta).abs().max().item())
                final = float(theta.detach() @ matrix @ theta.detach()) / 2
                assert found["final_loss"][i, j, m] == pytest.approx(final, rel=1e-6)
                assert found["largest_update"][i, j, m] == pytest.approx(max(u), rel=1e-6)
                assert found["largest_last"][i, j, m] == pytest.approx(max(u[-20:]), rel=1e-6)
                slope = np.polyfit(np.arange(20), np.log(u[-20:]), 1)[0]
                assert found["slope"][i, j, m] == pytest.approx(slope, abs=1e-6)
                assert found["loss_diverges"][i, j, m] == (final > found["initial_loss"])
                assert found["update_grows"][i, j, m] == (slope * 20 >= np.log(2))
    assert not found["diverged_at"].any()


def test_the_trend_is_taken_over_the_last_steps_that_were_taken():
    n = np.arange(50)
    grows, shrinks = np.exp(0.03 * n), np.exp(-0.5 * n)
    grows[:20] = 77.0
    stopped = np.where(n < 30, np.exp(0.2 * n), np.nan)  # diverged at step 31
    early = np.where(n < 4, np.exp(-0.1 * n), np.nan)
    zero = np.zeros(50)
    found = quadratic._judged(np.stack([grows, shrinks, stopped, early, zero]), np.array([0, 0, 31, 5, 0]), 10)
    np.testing.assert_allclose(found["slope"], [0.03, -0.5, 0.2, -0.1, np.nan], atol=1e-12)
    np.testing.assert_allclose(found["largest_update"], [77.0, 1.0, np.exp(0.2 * 29), 1.0, 0.0])
    np.testing.assert_allclose(found["largest_last"], [np.exp(1.47), np.exp(-20), np.exp(5.8), 1.0, 0.0])


def test_an_impossible_window_is_named():
    with pytest.raises(ValueError, match="window: 1 "):
        quadratic.quadratic_map([0.9], [0.9], [1e-3], 10.0, steps=10, window=1)
