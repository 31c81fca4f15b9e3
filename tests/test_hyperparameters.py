"""The points at which page 03 runs, and what it measures there, against cases known beforehand."""

import numpy as np
import pytest
import torch

from kadam import KAdam, stability
from lab import data
from lab.experiments import hyperparameters
from lab.experiments.hyperparameters import distances, level_points, transformer_on_words
from lab.models import Transformer
from lab.training import cross_entropy, shuffled_batches, text_parts, train


def test_level_points_lie_on_the_level_curve_at_equal_distances():
    beta, gamma = level_points(0.1, 0.999, 0.106, 6)
    np.testing.assert_allclose(stability.coefficient(beta, gamma), 0.1, atol=1e-9)
    assert beta[0] == pytest.approx(0.999) and np.all(np.diff(beta) < 0)
    # the chords are a little shorter than the arcs
    np.testing.assert_allclose(np.diff(distances(beta, gamma)), 0.106 / 5, rtol=1e-3)


def test_a_level_curve_that_is_elsewhere_or_too_short_is_named():
    with pytest.raises(ValueError, match="beta: 0.999 .the level curve C = -0.5"):
        level_points(-0.5, 0.999, 0.1, 3)
    with pytest.raises(ValueError, match="length: 2.0 .the level curve C = 0.1 from beta = 0.999 has 1.41"):
        level_points(0.1, 0.999, 2.0, 3)


def test_distances_add_up():
    np.testing.assert_allclose(distances(np.array([0.0, 3.0, 3.0]), np.array([0.0, 4.0, 5.0])), [0, 5, 6])


def test_the_network_trained_together_is_the_one_trained_alone():
    points = [(0.999, 0.9), (0.95, 0.9), (0.96, 0.995)]
    assert hyperparameters.difference_to_single_runs(points, lr=1e-2, steps=5, seed=3) < 1e-4
    different = hyperparameters.convnet_on_mnist1d(points, 1e-2, 3, 5, every=5)["validation_loss"]
    assert np.ptp(different) > 1e-3  # so that a mix-up of the points would show


def test_the_transformer_trained_together_is_the_one_trained_alone():
    points, seed, steps = [(0.999, 0.9), (0.9, 0.5)], 2, 4
    found = transformer_on_words(points, 1e-2, seed, steps, every=2, context=8, vocabulary=20)
    parts = text_parts(data.words().tokens.clamp(max=19), 8)
    assert found["steps"].tolist() == [2, 4] and not found["diverged_at"].any()
    for i, (beta, gamma) in enumerate(points):
        torch.manual_seed(seed)
        model = Transformer(20, 8)
        optimizer = KAdam(model.parameters(), lr=1e-2, betas=(gamma, beta), k=1, weight_decay=0.0)
        train(model, optimizer, shuffled_batches(parts.x, parts.y, 4, steps, seed))
        with torch.no_grad():
            alone = cross_entropy(model(parts.x_test), parts.y_test).item()
        assert found["test_loss"][i, -1] == pytest.approx(alone, abs=1e-4)
    assert abs(np.diff(found["test_loss"][:, -1]).item()) > 1e-3


def test_a_run_that_diverges_is_labelled():
    found = hyperparameters.convnet_on_mnist1d([(0.999, 0.9)], 1e30, 0, 4, every=1)
    assert found["diverged_at"].item() > 0 and np.isnan(found["test_loss"][0, -1])
