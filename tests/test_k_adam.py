"""What page 05 runs and computes, against cases known beforehand."""

import numpy as np
import pytest
import torch

from kadam import SCHEDULES, KAdam, make_stages
from lab import data
from lab.experiments import k_adam
from lab.experiments.k_adam import (
    BASELINES,
    collected,
    gain,
    groups,
    in_noise,
    largest_stable_step,
    noise_sizes,
    state_bytes,
)
from lab.files import ROOT
from lab.measures import judged
from lab.models import ConvNet, ImageConvNet, Perceptron
from lab.training import cross_entropy, shuffled_batches, train

ARMS = {"Adam": dict(k=1), "twice": dict(k=2, schedule="exp"), "one lag": dict(k=2, betas=[(0.9, 0.999), (0.0, 0.999)])}
LRS, SEEDS = [1e-3, 1e-2], [3, 5]


def alone(arm, lr, seed, steps, model):
    """Test loss after the last step of a run through ``KAdam``."""
    parts = data.mnist1d()
    optimizer = KAdam(model.parameters(), lr=lr, weight_decay=0.0, **arm)
    train(model, optimizer, shuffled_batches(parts.x, parts.y, 50, steps, seed))
    with torch.no_grad():
        return cross_entropy(model(parts.x_test), parts.y_test).item()


def test_groups_of_runs_are_put_back_in_order_and_are_those_made_alone():
    results = [k_adam.convnet_on_mnist1d(**call) for call in groups(ARMS, LRS, SEEDS, steps=4, every=2)]
    assert len(results) == 4  # two k, two seeds
    found = collected(results, ARMS, LRS, SEEDS, "test_loss")
    assert found.shape == (3, 2, 2, 2)
    for place in ((0, 1, 0), (1, 0, 1), (2, 1, 1)):
        arm, lr, seed = list(ARMS.values())[place[0]], LRS[place[1]], SEEDS[place[2]]
        torch.manual_seed(seed)
        assert found[place][-1] == pytest.approx(alone(arm, lr, seed, 4, ConvNet(16)), abs=1e-4)
    assert np.ptp(found[..., -1].ravel()) > 1e-2  # so that a mix-up would show
    assert 0 < collected(results, ARMS, LRS, SEEDS, "update_rms").min() < 1.2


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_the_perceptron_trained_together_is_the_one_trained_alone(norm):
    found = k_adam.perceptron_on_mnist1d([dict(k=2, lr=1e-2)], 3, 4, 4, norm=norm)
    torch.manual_seed(3)
    assert found["test_loss"][0, -1] == pytest.approx(alone(dict(k=2), 1e-2, 3, 4, Perceptron(norm=norm)), abs=1e-4)


def test_layer_norm_makes_the_weights_before_it_scale_invariant():
    x = torch.randn(7, 40)
    for norm, invariant in (("layer", True), ("none", False)):
        model = Perceptron(norm=norm)
        before = model(x)
        with torch.no_grad():
            for param in model.first.parameters():
                param *= 3
        assert torch.allclose(model(x), before, atol=1e-3) == invariant
    with pytest.raises(ValueError, match="norm: 'batch'"):
        Perceptron(norm="batch")


def test_the_transformer_of_the_sweep():
    found = k_adam.transformer_on_words([dict(k=2, lr=1e-2)], 0, 2, 1, context=8, vocabulary=20)
    assert found["test_loss"].shape == (1, 2) and np.isfinite(found["test_loss"]).all()


def test_cifar10_by_the_same_path_with_random_images(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def images(count):
        x = torch.randn(count, 3, 32, 32, generator=generator)
        return x, torch.randint(10, (count,), generator=generator)

    parts = data.Labelled(*images(64), *images(20), *images(20))
    monkeypatch.setattr(data, "cifar10", lambda: parts)
    assert k_adam.convnet_on_cifar10.declared.data == "cifar10"
    members = [dict(k=2, lr=lr) for lr in (0.0, 3e-3)]
    found = k_adam.convnet_on_cifar10(members, 1, 4, 2, batch=32, channels=4)
    assert found["test_accuracy"].shape == (2, 2)
    torch.manual_seed(1)
    with torch.no_grad():
        untrained = cross_entropy(ImageConvNet(4)(parts.x_test), parts.y_test).item()
    assert found["test_loss"][0, -1] == pytest.approx(untrained, abs=1e-4)
    assert abs(found["test_loss"][1, -1] - untrained) > 1e-4


def test_a_run_that_diverged_is_judged_worst():
    found = k_adam.convnet_on_mnist1d([dict(k=1, lr=1e30), dict(k=1, lr=1e-3)], 0, 4, 1)
    values = judged(found, found["steps"], target=9.0, chance=np.log(10))
    assert found["diverged_at"][0] > 0 and values["loss"][0] == np.log(10) and values["accuracy"][0] == 0
    assert np.isinf(values["steps"][0]) and values["steps"][1] == 1


def test_noise_sizes_are_the_textbook_variances():
    gamma = 0.9
    first = (1 - gamma) / (1 + gamma)
    second = (1 - gamma) * (1 + gamma**2) / (1 + gamma) ** 3
    np.testing.assert_allclose(noise_sizes([gamma, gamma]), [first**0.5, (second / first) ** 0.5])
    np.testing.assert_allclose(noise_sizes([gamma, 0.0]), [first**0.5, 1])
    assert gain([gamma, gamma]) == pytest.approx(first**-0.5) and gain([gamma]) == 1


def test_noise_in_the_update_itself_has_these_sizes_and_gain():
    stages = make_stages((0.9, 0.999), 2, "exp")
    gammas = [stage.gamma for stage in stages]
    found = in_noise(stages, steps=1200, coordinates=1000)
    np.testing.assert_allclose(found["size"][-1], noise_sizes(gammas), rtol=0.1)
    assert found["response"][-1] == pytest.approx(gain(gammas), rel=0.15)
    assert found["size"][0] == pytest.approx([1, 1])  # a sign


def test_the_largest_stable_step_is_where_a_quadratic_turns_unstable():
    assert largest_stable_step([0.9]) == pytest.approx(38) and largest_stable_step([0.0]) == pytest.approx(2)
    for gammas in ([0.9, 0.9], [0.68, 0.68, 0.68], [0.9, 0.0]):
        limit = largest_stable_step(gammas)
        for factor, stable in ((0.97, True), (1.03, False)):
            theta, moments = 1.0, np.zeros(len(gammas))
            for _ in range(8000):
                x = theta
                for i, gamma in enumerate(gammas):
                    x = moments[i] = gamma * moments[i] + (1 - gamma) * x
                theta -= factor * limit * x
                if not abs(theta) < 1e6:
                    break
            assert (abs(theta) < 1e-3) == stable, (gammas, factor)
    naive = [largest_stable_step([stage.gamma for stage in make_stages((0.9, 0.999), k, "naive")]) for k in (1, 2, 3)]
    assert naive[0] > 100 * naive[1] > 200 * naive[2]


def test_state_is_eight_bytes_a_stage():
    for k in (1, 2, 5):
        assert state_bytes(lambda params, lr, k=k: KAdam(params, lr=lr, k=k)) == 8 * k
    assert [state_bytes(make) for make in BASELINES.values()] == [8, 4, 8]


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_learn_and_are_seen_as_the_arms_are(name):
    lr = 0.1 if name.startswith("SGD") else 1e-2
    found = k_adam.baseline_on_mnist1d(name, lr, 0, 40, 20)
    assert found["test_loss"].shape == (2,) and found["test_loss"][-1] < np.log(10) - 0.01
    assert found["steps"].tolist() == [20, 40] and found["outcome"] == "finished"


def test_a_baseline_that_diverges_is_padded_and_an_unknown_one_named():
    found = k_adam.baseline_on_mnist1d("SGD, momentum", 1e30, 0, 4, 1)
    assert found["outcome"].startswith("diverged") and np.isnan(found["test_loss"][-1])
    with pytest.raises(ValueError, match="optimizer: 'Adam' .must be one of NAdam"):
        k_adam.baseline_on_mnist1d("Adam", 1e-3, 0, 1, 1)


def test_stages_in_training_are_those_of_the_optimizer():
    found = k_adam.stages_in_training(k=2, lr=1e-3, seed=0, steps=3, every=1)
    assert found["size"].shape == (3, 2) and found["size"][0] == pytest.approx([1, 1], abs=0.1)
    assert found["agreement"][0] == pytest.approx([1, 1], abs=0.1)  # the first step is a sign; later ones are not
    assert (found["agreement"][-1] < 0.95).all() and found["size"][-1, -1] < 1


def test_the_edge_is_measured_with_all_denominators():
    found = k_adam.edge_of_stability(k=2, seed=0, steps=4, every=2)
    assert found["step"].shape == (2,) and (found["step"] > 0).all() and found["steps"].tolist() == [2, 4]
    other = k_adam.edge_of_stability(k=2, seed=0, steps=4, every=2, lr=2e-3)
    assert other["step"][0] == pytest.approx(2 * found["step"][0], rel=0.5)  # eta times nearly the same curvature


def test_all_schedules_have_k1_as_adam():
    assert {largest_stable_step([make_stages((0.9, 0.999), 1, name)[0].gamma]) for name in SCHEDULES} == {
        largest_stable_step([0.9])
    }


def test_step_costs_are_ratios_to_fused_adamw():
    found = k_adam.step_costs(1, (2,))
    costs = dict(zip(found["names"], found["costs"], strict=True))
    assert costs["AdamW, fused"] == 1 and set(costs) == {"AdamW, fused", "k = 2", *BASELINES}


def test_the_guide_to_k_has_the_numbers_of_the_theory():
    rows = (ROOT / "docs" / "choosing_k.md").read_text().split("\n")
    gammas = {f"`{name}`": [stage.gamma for stage in make_stages((0.9, 0.999), 2, name)] for name in SCHEDULES}
    for name, rates in {"Adam": [0.9], "one lag": [0.9, 0.0], **gammas}.items():
        (row,) = [row for row in rows if row.startswith(f"| {name}") and row.count("|") == 5]
        _, _, shown_gain, limit, *_ = row.split("|")
        assert float(shown_gain) == pytest.approx(gain(rates), rel=0.03)
        assert float(limit) == pytest.approx(largest_stable_step(rates), rel=0.04)
