"""The norm laws against runs in which they are exact, and the recorder against runs without it."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from kadam import KAdam, invariance
from kadam.invariance import Observation, Recorder, State, scale_invariant_weights

double = {"dtype": torch.float64}


def scalar_adam(gamma, lr, weight_decay, steps, beta=0.99, correlated=0.0, eps=0.1, seed=0):
    """Adam with one second moment for the whole weight, on gradients that are made orthogonal to it.

    Gives N_0 ... N_T, |u_n|^2, r_n = sqrt(v~_n) + eps, <W_n, u_n>, |g_n / r_n|^2.
    """
    generator = np.random.default_rng(seed)
    w, m, v, drift = generator.normal(size=30), np.zeros(30), 0.0, generator.normal(size=30)
    norms, series = [w @ w], []
    for n in range(1, steps + 1):
        g = (correlated * drift + generator.normal(size=30)) * (1 + 0.5 * math.sin(n / 7))
        g = (g - (g @ w) / (w @ w) * w) / np.linalg.norm(w)
        m, v = gamma * m + (1 - gamma) * g, beta * v + (1 - beta) * (g @ g) / 30
        root = (v / (1 - beta**n)) ** 0.5 + eps
        u = -m / (1 - gamma**n) / root
        series.append((u @ u, root, w @ u, (g @ g) / root**2))
        w = (1 - lr * weight_decay) * w + lr * u
        norms.append(w @ w)
    return np.array(norms), *np.array(series).T


@pytest.mark.parametrize("correlated", [0.0, 3.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_the_lag_law_is_exact_for_one_second_moment_a_weight(gamma, correlated):
    lr, weight_decay = 0.02, 0.5
    norms, u_squared, root, inner, _ = scalar_adam(gamma, lr, weight_decay, 400, correlated=correlated)
    predicted, inners = invariance.lag_squared_norms(norms[0], u_squared, root, lr, weight_decay, gamma)
    np.testing.assert_allclose(predicted, norms, rtol=1e-11)
    np.testing.assert_allclose(inners, inner, atol=1e-11 * u_squared.max())
    without_eps, _ = invariance.lag_squared_norms(norms[0], u_squared, root - 0.1, lr, weight_decay, gamma)
    assert (abs(without_eps / norms - 1).max() < 1e-11) == (gamma == 0)
    paper = invariance.squared_norms(norms[0], u_squared, lr, weight_decay)
    assert (abs(paper[-1] / norms[-1] - 1) < 1e-11) == (gamma == 0)


def test_the_gradient_law_is_exact_without_momentum_and_the_identity_always():
    norms, u_squared, _, inner, g_squared = scalar_adam(0.0, 0.01, 0.3, 50)
    np.testing.assert_allclose(invariance.squared_norms(norms[0], g_squared, 0.01, 0.3), norms, rtol=1e-12)
    norms, u_squared, _, inner, _ = scalar_adam(0.95, 0.01, 0.3, 50)
    step = invariance.next_squared_norm(norms[:-1], u_squared, 0.01, 0.3, inner)
    np.testing.assert_allclose(step, norms[1:], rtol=1e-12)


@pytest.mark.parametrize("of", [float, np.asarray, torch.tensor])
def test_a_step_of_the_law_by_hand(of):
    first = Observation(of(0.5), of(1.0), (of(2.0),), 1, (of(0.5),), (of(1.0),))
    state = invariance.law(State(of(8.0)), first)  # keeps a half of W: 8/4 + 0 + 2/4
    assert (float(state.squared_norm), float(state.inners[0])) == (2.5, 0.0)
    # carries 1/2 (1 - 1/2) / (1 - 1/4) 1/2 = 1/6 of 1/2 0 + 1/2 2; then 2.5/16 + 2 1/4 1/6 + 3
    state = invariance.law(state, Observation(of(1.0), of(0.75), (of(3.0),), 2, (of(0.5),), (of(2.0),)))
    assert float(state.inners[0]) == pytest.approx(1 / 6)
    assert float(state.squared_norm) == pytest.approx(2.5 / 16 + 1 / 12 + 3)
    # a second stage without momentum passes on what it is given: p_2 = p_1 / r_2
    both = Observation(of(0.5), of(0.0), (of(1.0), of(4.0)), math.inf, (of(0.5), of(0.0)), (of(1.0), of(2.0)))
    state = invariance.law(State(of(1.0), (of(1.0), of(7.0)), both), both)  # p_1 = 1/2 (1 + 1/2 1)
    assert [float(inner) for inner in state.inners] == pytest.approx([0.75, 0.375])
    assert float(state.squared_norm) == pytest.approx(1 + 0.375 + 1)
    # and what it is told it takes: the identity
    state = invariance.law(state, first._replace(inners=(of(3.0),)))
    assert float(state.squared_norm) == pytest.approx(2.375 / 4 + 1.5 + 0.5)


def test_the_law_of_arrays_is_that_of_tensors_and_of_its_steps():
    norms, *series = (np.stack([x, x], axis=-1) for x in scalar_adam(0.9, 0.02, 0.5, 20))
    u_squared, root, *_ = series
    states = [State(torch.from_numpy(norms[0]))]
    for n, (u, r) in enumerate(zip(torch.from_numpy(u_squared), torch.from_numpy(root), strict=True), start=1):
        states.append(invariance.law(states[-1], Observation(0.02, 0.5, (u,), n, (0.9,), (r,))))
    found = torch.stack([state.squared_norm for state in states]).numpy()
    predicted, _ = invariance.lag_squared_norms(norms[0], u_squared, root, 0.02, 0.5, 0.9)
    np.testing.assert_allclose(found, predicted, rtol=1e-14)
    np.testing.assert_allclose(found, norms, rtol=1e-12)


def test_the_factor_is_what_the_lag_law_comes_to():
    lr, weight_decay, gamma = 0.01, 2.0, 0.9
    _, inner = invariance.lag_squared_norms(5.0, np.full(500, 3.0), 1.0, lr, weight_decay, gamma)
    factor = invariance.momentum_factor(gamma, lr * weight_decay)
    assert factor == pytest.approx(1 + 2 * (1 - lr * weight_decay) * inner[-1] / (lr * 3.0))
    assert invariance.momentum_factor(0.9) == pytest.approx(19) and invariance.momentum_factor(0.0) == 1
    norms, _ = invariance.lag_squared_norms(5.0, np.full(3000, 3.0), 1.0, lr, weight_decay, gamma)
    assert norms[-1] == pytest.approx(invariance.equilibrium_squared_norm(3.0, lr, weight_decay, gamma))


def test_the_continuous_laws_are_the_limit_of_the_discrete_ones():
    t = np.linspace(0, 2, 2001)
    found = invariance.continuous_squared_norms(t, 4.0, 3.0, 1e-3, 0.7, factor=19)
    exact = 4 * np.exp(-1.4 * t) + 19e-3 * 3 * (1 - np.exp(-1.4 * t)) / 1.4
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    np.testing.assert_allclose(invariance.squared_norms(4.0, np.full(2000, 3.0), 1e-3, 0.7, 19), found, rtol=2e-3)
    # |u|^2 = s, which is linear: int_0^t e^(-2 lambda (t-s)) s ds, from two times and without decay
    a = 1.4
    rising = invariance.continuous_squared_norms([0.0, 2.0], 0.0, [0.0, 2.0], 1.0, a / 2)
    assert rising[-1] == pytest.approx(2 / a - (1 - math.exp(-2 * a)) / a**2)
    assert invariance.continuous_squared_norms([0.0, 2.0], 1.0, [0.0, 2.0], 1.0, 0.0)[-1] == pytest.approx(3.0)
    limit = invariance.equilibrium_squared_norm(3.0, 1e-3, 0.7, 0.9, continuous=True)
    assert limit == pytest.approx(invariance.equilibrium_squared_norm(3.0, 1e-3, 0.7, 0.9), rel=0.01)


def test_the_rotation_of_uncorrelated_gradients():
    lr, weight_decay, gamma, size = 0.02, 0.1, 0.8, 4000
    generator = np.random.default_rng(1)
    w, m, path = generator.normal(size=size), np.zeros(size), []
    w *= np.sqrt(
        invariance.equilibrium_squared_norm(size * (1 - gamma) / (1 + gamma), lr, weight_decay, gamma) / (w @ w)
    )
    for _ in range(400):
        g = generator.normal(size=size)
        m = gamma * m + (1 - gamma) * (g - (g @ w) / (w @ w) * w)
        w = (1 - lr * weight_decay) * w - lr * m
        path.append(w / np.linalg.norm(w))
    late = np.array(path[100:])
    for steps in (1, 5, 100):
        turned = np.arccos((late[:-steps] * late[steps:]).sum(1))
        assert np.sqrt(np.mean(turned**2)) == pytest.approx(
            invariance.rotation(lr, weight_decay, gamma, steps), rel=0.05
        )
    assert invariance.rotation(1e-3, 0.1, 0.9) == pytest.approx(math.sqrt(2e-4 / 19), rel=1e-3)
    assert invariance.rotation(1e-3, 0.1, 0.9, 1000) == pytest.approx(math.acos(math.exp(-0.1)), rel=0.01)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="gamma: 1.0"):
        invariance.momentum_factor(1.0)
    with pytest.raises(ValueError, match="without decay there is no equilibrium"):
        invariance.equilibrium_squared_norm(1.0, 1e-3, 0.0)
    with pytest.raises(ValueError, match="ascending from 0"):
        invariance.continuous_squared_norms([0.0, 0.0], 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="u_squared: 1.0"):
        invariance.squared_norms(1.0, 1.0, 1e-3, 0.1)


class Everything(nn.Module):
    """Behind a norm, or not: the names of the weights say which."""

    def __init__(self):
        super().__init__()
        self.conv_batch, self.batch = nn.Conv1d(1, 6, 3, bias=False), nn.BatchNorm1d(6)
        self.conv_group, self.group = nn.Conv1d(6, 8, 3, bias=False), nn.GroupNorm(2, 8)
        self.plain = nn.Linear(8 * 6, 12, bias=False)
        self.linear_layer, self.layer = nn.Linear(12, 8, bias=False), nn.LayerNorm(8)
        self.biased, self.behind_biased = nn.Linear(8, 8), nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.linear_rms, self.rms = nn.Linear(8, 8, bias=False), nn.RMSNorm(8)
        self.dead = nn.Parameter(torch.zeros(3))
        self.readout = nn.Linear(8, 4)

    def forward(self, x):
        x = self.batch(self.conv_batch(x.unsqueeze(1))).tanh()
        x = self.group(self.conv_group(x)).tanh().flatten(1)
        x = self.layer(self.linear_layer(self.plain(x).tanh())).tanh()
        x = self.behind_biased(self.biased(x)).tanh()
        heads = x.unflatten(0, (-1, 5))
        query, key = (
            nn.functional.normalize(layer(heads).unflatten(-1, (2, 4)), dim=-1).transpose(1, 2)
            for layer in (self.query, self.key)
        )
        value = self.value(heads).unflatten(-1, (2, 4)).transpose(1, 2)
        x = nn.functional.scaled_dot_product_attention(query, key, value, scale=4.0).transpose(1, 2).reshape(-1, 8)
        return self.readout(self.rms(self.linear_rms(x)) + 0 * self.dead.sum())


def everything(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = Everything().to(dtype)
    x, y = torch.randn(50, 10, dtype=dtype), torch.randint(4, (50,))
    return model, lambda: nn.functional.cross_entropy(model(x), y)


INVARIANT = {"conv_batch.weight": 6, "conv_group.weight": 2, "linear_layer.weight": 1, "query.weight": 2,
             "key.weight": 2, "value.weight": 1, "linear_rms.weight": 1}  # fmt: skip


def test_it_finds_what_is_invariant_and_nothing_else():
    model, loss = everything()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert scale_invariant_weights(model, loss) == INVARIANT
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(param.grad is None for param in model.parameters())


def test_a_loss_that_is_not_finite_is_named_and_nothing_stays_changed():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="loss: nan"):
        scale_invariant_weights(model, lambda: model.weight.sum() * math.nan)
    assert torch.equal(before, model.weight)


OPTIMIZERS = [
    lambda p: KAdam(p, lr=1e-2, k=1, weight_decay=0.1),
    lambda p: KAdam(p, lr=1e-2, k=2),
    lambda p: KAdam(p, lr=1e-2, k=3, betas=[(0.9, 0.99), (0.0, 0.999), (0.5, 0.9)]),
    lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=1e-2),
    lambda p: torch.optim.SGD(p, lr=1e-1, momentum=0.9),
    lambda p: torch.optim.SGD(p, lr=1e-1, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_recorded_run_is_bit_identical_to_one_without(make):
    def trained(record):
        model, loss = everything()
        optimizer = make(model.parameters())
        recorder = Recorder(model, optimizer, INVARIANT) if record else None
        for _ in range(5):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        return model.state_dict(), recorder

    (plain, _), (recorded, recorder) = trained(False), trained(True)
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    for name, reading in recorder.read().items():
        assert reading.steps == 5 and reading.squared_norm.shape == (INVARIANT[name],)
        assert torch.allclose(reading.squared_norm.sum(), recorded[name].double().norm() ** 2)


class Sphere(nn.Module):
    """A loss of the direction of a vector alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 20, **double))

    def forward(self, target):
        direction = self.weight / self.weight.norm()
        return (direction * target).sum() + (direction**2 * target.abs()).sum()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_recorders_lag_law_is_exact_for_sgd(momentum):
    torch.manual_seed(0)
    model = Sphere()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum, dampening=momentum)
    recorder = Recorder(model, optimizer, {"weight": 1})
    for _ in range(200):
        optimizer.zero_grad()
        model(torch.randn(1, 20, **double) + 1).backward()
        optimizer.step()
    reading = recorder.read()["weight"]
    assert torch.allclose(reading.predicted["lag"], reading.squared_norm, rtol=1e-9)
    assert torch.allclose(reading.inner_lag, reading.inner, rtol=1e-6, atol=1e-12)
    assert abs(reading.cosine).item() < 1e-12
    assert torch.allclose(reading.predicted["paper"], reading.squared_norm, rtol=1e-3) == (momentum == 0)


@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize(
    "betas", [[(0.9, 0.999)], [(0.9, 0.999), (0.0, 0.99)], [(0.5, 0.99), (0.8, 0.999), (0.9, 0.9)]]
)
def test_the_recorders_lag_law_is_exact_for_k_adam_with_one_second_moment_a_weight(betas, eps):
    torch.manual_seed(0)
    model = Sphere()
    small = 1e-7  # gradients this small leave second moments at the 1 that they are given: one scalar a weight
    optimizer = KAdam(model.parameters(), lr=0.02 / small, betas=betas, k=len(betas), eps=eps, weight_decay=small)
    optimizer.zero_grad()
    model(torch.randn(1, 20, **double)).mul(small).backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    state["step"].fill_(1e6)
    for name, moment in state.items():
        if name.startswith("exp_avg_sq"):
            moment.fill_(1.0)
        elif name.startswith("exp_avg"):
            moment.zero_()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 20, **double))
    recorder = Recorder(model, optimizer, {"weight": 1})
    for _ in range(100):
        optimizer.zero_grad()
        model(torch.randn(1, 20, **double) + 1).mul(small).backward()
        for name, moment in state.items():
            if name.startswith("exp_avg_sq"):
                moment.fill_(1.0)
        optimizer.step()
    reading = recorder.read()["weight"]
    assert torch.allclose(reading.predicted["lag"], reading.squared_norm, rtol=1e-8)
    assert torch.allclose(reading.inner_lag, reading.inner, rtol=1e-5)
    assert not torch.allclose(reading.predicted["paper"], reading.squared_norm, rtol=1e-2)


def test_in_a_network_the_lag_law_is_near_and_the_papers_is_not():
    model, loss = everything()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    with Recorder(model, optimizer, {**INVARIANT, "readout.weight": 1}) as recorder:
        for _ in range(80):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    readings = recorder.read()
    optimizer.step()
    assert readings["readout.weight"].steps == recorder.read()["readout.weight"].steps  # it is detached

    def error(name, law):
        reading = readings[name]
        return (reading.predicted[law] / reading.squared_norm - 1).abs().max().item()

    # what is left is the start, where v is not yet nearly one scalar
    lag, paper = (sum(error(name, law) for name in INVARIANT) for law in ("lag", "paper"))
    assert lag < 0.5 * paper
    assert error("readout.weight", "lag") > 3 * error("linear_layer.weight", "lag")
    assert readings["linear_layer.weight"].cosine.abs() < 1e-4 < readings["readout.weight"].cosine.abs()


def test_the_recorder_reads_a_changing_learning_rate():
    model, loss = everything(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    recorder = Recorder(model, optimizer, {"linear_layer.weight": 1})
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        before, lr = model.linear_layer.weight.detach().flatten().clone(), optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        after, reading = model.linear_layer.weight.detach().flatten(), recorder.read()["linear_layer.weight"]
        exact = invariance.next_squared_norm(before @ before, reading.u_squared, lr, 0.1, reading.inner)
        assert torch.allclose(exact, after @ after, rtol=1e-12)
        turned = torch.acos(before @ after / before.norm() / after.norm())
        assert torch.allclose(reading.angle, turned, rtol=1e-5)


def test_what_cannot_be_recorded_is_refused():
    model, loss = everything()
    params = list(model.parameters())

    def refused(error, match, optimizer, weights=INVARIANT):
        with pytest.raises(error, match=match):
            Recorder(model, optimizer, weights)
        assert not optimizer._optimizer_step_pre_hooks

    refused(TypeError, "optimizer: Adagrad", torch.optim.Adagrad(params))
    refused(ValueError, "weight_decay=0.1 goes through the moments in Adam", torch.optim.Adam(params, weight_decay=0.1))
    refused(ValueError, "amsgrad", torch.optim.AdamW(params, amsgrad=True))
    refused(ValueError, "one of the two must be 0", torch.optim.SGD(params, momentum=0.9, weight_decay=0.1))
    refused(ValueError, "nesterov", torch.optim.SGD(params, momentum=0.9, nesterov=True))
    refused(ValueError, "'nothing' .the module has", KAdam(params), {"nothing": 1})
    refused(ValueError, "not among the optimizer's parameters", KAdam(params[:1]), {"readout.weight": 1})
    refused(ValueError, "has 3 units .must divide its 8 rows", KAdam(params), {"query.weight": 3})
    recorder = Recorder(model, optimizer := KAdam(params), {"query.weight": 2})
    with pytest.raises(RuntimeError, match="no step has been recorded"):
        recorder.read()
    loss().backward()
    model.query.weight.grad = None
    with pytest.raises(RuntimeError, match="query.weight: no gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=1.0, fused=True),
        lambda params: KAdam(params, lr=1e-2, weight_decay=1.0, k=2, fused=True),
        lambda params: torch.optim.SGD(params, lr=1e-2, fused=True),
    ],
)
def test_steps_that_a_grad_scaler_skips_are_not_counted(make):
    def read(skipped):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 1))
        optimizer, scaler = make(model.parameters()), torch.amp.GradScaler("cpu", init_scale=1.0)
        recorder = Recorder(model, optimizer, {"0.weight": 1})
        generator = torch.Generator().manual_seed(1)
        for n in range(12):
            if n in skipped:
                optimizer.zero_grad()
                scaler.scale(model(torch.randn(4, 8)).sum() * math.inf).backward()
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
            model(torch.randn(4, 8, generator=generator)).square().mean().backward()
            optimizer.step()
        return recorder.read()["0.weight"]

    with_skips, without = read({0, 1, 7}), read(set())
    assert with_skips.steps == without.steps == 12
    for law, norm in without.predicted.items():
        assert torch.equal(with_skips.predicted[law], norm) and norm.isfinite().all()


def test_a_loaded_state_brings_its_settings():
    model, loss = everything()
    optimizer = KAdam(model.parameters(), lr=1e-3, k=1)
    recorder = Recorder(model, optimizer, {"linear_layer.weight": 1})
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = 1e-2
    optimizer.load_state_dict(state)
    loss().backward()
    optimizer.step()
    found = recorder.read()["linear_layer.weight"].u_squared
    expected = optimizer.last_update(model.linear_layer.weight).double().square().sum()
    assert torch.allclose(found, expected, rtol=1e-3)


def test_all_weights_are_checked_before_any_is_recorded():
    model, loss = everything()
    optimizer = KAdam(model.parameters())
    recorder = Recorder(model, optimizer, {"linear_layer.weight": 1, "query.weight": 2})
    loss().backward()
    optimizer.step()
    model.query.weight.grad = None
    with pytest.raises(RuntimeError, match="query.weight: no gradient"):
        optimizer.step()
    assert {reading.steps for reading in recorder.read().values()} == {1}


def test_numbers_and_empty_parameters_are_no_obstacle():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4))
    model.temperature, model.nothing = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.empty(0, 3))
    x = torch.randn(5, 3)

    def loss():
        return (model(x) * model.temperature).sin().sum() + model.nothing.sum()

    assert scale_invariant_weights(model, loss) == {"0.weight": 1}
    optimizer = KAdam([p for p in model.parameters() if p.numel()])
    recorder = Recorder(model, optimizer, {"temperature": 1})
    loss().backward()
    optimizer.step()
    assert recorder.read()["temperature"].squared_norm.item() == pytest.approx(model.temperature.item() ** 2)


def test_the_lag_law_waits_for_the_first_gradient():
    norms, inners = invariance.lag_squared_norms(1.0, [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.6], 0.1, 0.0, 0.9)
    assert inners[:3].tolist() == [0, 0, 0] and inners[3] > 0 and np.isfinite(norms).all()
