"""The runs of page 04 against the library's own optimizer and recorder."""

import numpy as np
import pytest
import torch

from kadam import KAdam
from kadam.invariance import LAWS, Recorder
from lab import data
from lab.experiments import meta_adaptive
from lab.models import ConvNet, Perceptron
from lab.training import cross_entropy, shuffled_batches, train

ADAM = (0.9, 0.999)


@pytest.mark.parametrize("rule, betas", [("adam", 1), ("coordinate", 2)])
def test_the_rules_that_k_adam_has_are_k_adam(rule, betas):
    lrs, weight_decay, seed, steps = [1e-3, 1e-2], 0.3, 3, 6
    parts = data.mnist1d()
    found = meta_adaptive.second_normalisation(ConvNet, parts, rule, lrs, weight_decay, seed, steps, 3, batch=20)
    assert found["steps"].tolist() == [3, 6]
    for i, lr in enumerate(lrs):
        torch.manual_seed(seed)
        model = ConvNet()
        pairs = [ADAM, (0.0, float(np.exp(-2 * weight_decay * lr)))][:betas]
        optimizer = KAdam(model.parameters(), lr=lr, betas=pairs, k=betas, weight_decay=weight_decay)
        train(model, optimizer, shuffled_batches(parts.x, parts.y, 20, steps, seed))
        with torch.no_grad():
            alone = cross_entropy(model(parts.x_test), parts.y_test).item()
        assert found["test_loss"][i, -1] == pytest.approx(alone, abs=2e-4)


def test_the_rules_that_it_has_not():
    make, parts, lr, decay = Perceptron, data.mnist1d(), 1e-2, 0.3

    def run(rule, steps):
        return meta_adaptive.second_normalisation(make, parts, rule, [lr], decay, 0, steps, 1, batch=20)

    # after one step all second normalisations divide 1 by 1 or 0 by 0
    first = {rule: run(rule, 1)["test_loss"].item() for rule in ("adam", "coordinate", "scalar", "sized")}
    assert first["adam"] == pytest.approx(first["coordinate"], abs=1e-4)
    # a whole update of rms one, and for the sized one that of the coordinatewise, at the first step
    assert run("scalar", 1)["rms"] == pytest.approx(1, abs=1e-3)
    assert run("sized", 1)["rms"] == pytest.approx(run("coordinate", 1)["rms"], rel=1e-6)
    assert np.ptp([run(rule, 4)["test_loss"][0, -1] for rule in ("adam", "coordinate", "scalar", "sized")]) > 1e-3
    with pytest.raises(ValueError, match="rule: 'thrice'"):
        run("thrice", 1)


def test_norms_of_runs_together_are_those_that_a_recorder_sees():
    settings, gammas, seed, steps = [(3e-3, 0.0), (1e-2, 1.0)], [0.0, 0.95], 2, 8
    found = meta_adaptive.norms_of_perceptron(settings, gammas, seed, steps, times=4, width=8)
    names = found["names"].tolist()
    parts = data.mnist1d()
    for i, (lr, weight_decay) in enumerate(settings):
        for j, gamma in enumerate(gammas):
            torch.manual_seed(seed)
            model = Perceptron(8)
            optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, betas=(gamma, 0.999))
            with Recorder(model, optimizer, dict.fromkeys(names, 1)) as recorder:
                train(model, optimizer, shuffled_batches(parts.x, parts.y, 100, steps, seed))
            for k, name in enumerate(names):
                reading = recorder.read()[name]
                at_the_end = {law: found[law][i, j, -1, k] for law in LAWS}
                expected = {law: value.item() for law, value in reading.predicted.items()}
                assert at_the_end == pytest.approx(expected, rel=1e-4)
                assert found["squared_norm"][i, j, -1, k] == pytest.approx(reading.squared_norm.item(), rel=1e-5)
    assert found["at"].tolist() == [0, 2, 4, 6, 8]


def test_on_the_sphere_the_identity_gives_the_real_directions():
    found = meta_adaptive.sphere(["identity", "paper", "nudged"], 1e-2, 0.3, 0.9, seed=1, steps=20, width=8)
    apart, travelled = found["apart"][:, -1], found["travelled"][-1]
    assert apart[0].max() < 1e-8 < 1e-3 < apart[1].min() and travelled.min() > 0.1
    assert found["apart"][2, 0].min() > 5e-4
    np.testing.assert_allclose(found["length"][0], found["real_length"], rtol=1e-6)
    assert (found["real_length"][-1] >= travelled).all()


def test_in_equilibrium_lag_zero_is_orthogonal():
    found = meta_adaptive.equilibrium(
        [0.0, 0.9], 1e-2, 0.3, 2.0, 0, steps=20, window=10, spans=[1, 5], lags=[0, 5], width=8
    )
    assert np.abs(found["lagged"][:, 0]).max() < 1e-2 < found["lagged"][:, 1].min()
    assert found["path"].shape == (2, 20)
    assert found["turned"].shape == (2, 2) and (found["turned"][:, 0] < found["turned"][:, 1]).all()
