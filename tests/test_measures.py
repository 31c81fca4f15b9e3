"""What curves are compared by, against cases known beforehand."""

import numpy as np
import pytest

from lab.measures import best_lr, judged, lr_of_size, steps_to


def test_steps_to_a_target():
    at = np.array([10, 20, 30])
    losses = np.array([
        [3.0, 2.0, 1.0],  # reaches 1.5 halfway between the last two
        [1.0, 2.0, 1.0],  # at the first look
        [3.0, 2.0, 1.6],  # never
        [3.0, np.nan, np.nan],  # diverged
        [3.0, 1.5, 9.0],  # exactly, and loses it again
    ])  # fmt: skip
    np.testing.assert_allclose(steps_to(1.5, losses, at), [25, 10, np.inf, np.inf, 20])
    np.testing.assert_allclose(steps_to(1.5, losses.reshape(5, 1, 3), at)[:, 0], steps_to(1.5, losses, at))


def test_judged_by_hand():
    observed = {
        "validation_loss": np.array([[3.0, 1.0, 2.0]]), "test_loss": np.array([[3.0, 2.0, 1.5]]),
        "test_accuracy": np.array([[0.2, 0.6, 0.5]]),
    }  # fmt: skip
    values = judged(observed, np.array([10, 20, 30]), target=2.5, chance=9.0)
    expected = {"loss": 1.5, "stopped": 2.0, "validation": 1.0, "accuracy": 0.6, "steps": 15.0}
    assert {name: value.item() for name, value in values.items()} == pytest.approx(expected)


def test_no_run_is_judged_worse_than_one_that_diverged():
    bad, diverged = [7.0, 6.0], [7.0, np.nan]
    observed = dict.fromkeys(("validation_loss", "test_loss", "test_accuracy"), np.array([bad, diverged]))
    values = judged(observed, np.array([10, 20]), target=2.5, chance=2.0)
    assert [values[name].tolist() for name in ("loss", "stopped", "validation")] == [[2.0, 2.0]] * 3


def test_best_lr_is_the_vertex_and_at_an_edge_the_edge():
    lrs = np.array([1e-4, 1e-3, 1e-2, 1e-1])
    parabola = np.exp((np.log(lrs) - np.log(2e-3)) ** 2)
    losses = np.stack([parabola, lrs, 1 / lrs], axis=1)
    np.testing.assert_allclose(best_lr(lrs, losses), [2e-3, 1e-4, 1e-1])
    np.testing.assert_allclose(best_lr([1e-3, 1e-2], np.array([2.0, 1.0])), 1e-2)


def test_lr_of_size_solves_lr_times_rms():
    lrs, rms = [1e-4, 1e-3, 1e-2], np.array([0.2, 0.4, 0.8])
    lr = lr_of_size(2e-3, lrs, rms)
    assert lr * np.interp(np.log(lr), np.log(lrs), rms) == pytest.approx(2e-3)
    assert lr_of_size(1e-1, lrs, rms) == pytest.approx(1e-1 / 0.8)  # beyond the grid: the last rms
