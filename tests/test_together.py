"""Runs that are trained together, against what is known of them without training."""

import numpy as np
import pytest
import torch
from torch import nn

from lab.data import Labelled
from lab.experiments import hyperparameters, k_adam
from lab.together import trained
from lab.training import accuracy, cross_entropy


def parts():
    generator = torch.Generator().manual_seed(0)
    sizes = (12, 6, 8)
    halves = [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]
    return Labelled(*(half for part in halves for half in part))


def test_without_a_step_all_is_measured_at_the_weights_of_the_seed():
    of, names = parts(), ("validation_loss", "test_loss", "test_accuracy")
    found = trained(lambda: nn.Linear(4, 3), of, [dict(lr=0.0), dict(lr=0.0, seed=6)], 5, 4, 2, 3, {names[2]: accuracy})
    assert list(found) == [*names, "steps", "diverged_at"] and found["steps"].tolist() == [2, 4]
    for i, seed in enumerate((5, 6)):  # a member's own seed goes before the common one
        torch.manual_seed(seed)
        model = nn.Linear(4, 3)
        output = model(of.x_test)
        right = [int(row.argmax()) == label for row, label in zip(output, of.y_test.tolist(), strict=True)]
        losses = cross_entropy(model(of.x_validation), of.y_validation).item(), cross_entropy(output, of.y_test).item()
        for name, value in zip(names, (*losses, sum(right) / 8), strict=True):
            assert found[name][i].tolist() == pytest.approx([value, value], abs=1e-6), name


def test_weight_decay_is_a_members_own_and_observers_are_asked():
    largest = {"largest": lambda member: torch.stack([p.abs().max() for p in member.params.values()]).max()}
    members = [dict(lr=0.1, k=1), dict(lr=0.1, k=1, weight_decay=10.0)]
    found = trained(lambda: nn.Linear(4, 3), parts(), members, 0, 1, 1, 12, observe=largest)
    # the first update is a sign; decay by 1 - 0.1 x 10 leaves it alone
    assert found["largest"][1, 0] == pytest.approx(0.1, rel=1e-3) and found["largest"][0, 0] > 0.15


def test_where_all_diverge_before_the_first_look_all_is_nan():
    found = trained(lambda: nn.Linear(4, 3), parts(), [dict(lr=1e39)] * 2, 0, 4, 4, 3, {"test_accuracy": accuracy})
    assert found["diverged_at"].all()
    for name in ("validation_loss", "test_loss", "test_accuracy"):
        assert found[name].shape == (2, 1) and np.isnan(found[name]).all(), name


def test_a_point_of_page_03_is_a_member_of_page_05():
    points, members = [(0.999, 0.9), (0.95, 0.8)], [dict(lr=1e-2, k=1, betas=b) for b in ((0.9, 0.999), (0.8, 0.95))]
    one = hyperparameters.convnet_on_mnist1d(points, 1e-2, 1, 4, every=2)
    other = k_adam.convnet_on_mnist1d(members, 1, 4, every=2)
    assert set(other) - set(one) == {"test_accuracy", "update_rms"}
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_accuracy_is_the_share_of_largest_logits():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]], dtype=torch.float64)
    found = accuracy(logits, torch.tensor([1, 0, 0, 0]))
    assert found.item() == 0.75 and found.dtype == torch.float64
