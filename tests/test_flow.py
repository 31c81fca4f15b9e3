import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flows import adam, distance, logistic
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from kadam import KAdam, make_stages, update
from kadam.flow import FORMS, MEMORIES, Flow, gradient_of, mass_of, memory_of, position_of
from kadam.integrate import integrate
from kadam.update import Stage

ADAM = [Stage(0.9, 0.999)]
rates = st.floats(0.01, 0.9995)


def value(t, x, alpha, lr, memory):
    """What the memory makes of the scalar function x at time t, by quadrature."""
    rate, gain, present, start = memory_of(alpha, lr, memory)
    integral = quad(lambda s: gain * math.exp(-rate * (t - s)) * x(s), 0, t, epsabs=1e-13)[0]
    return integral + start * math.exp(-rate * t) * x(0) + present * x(t)


def discrete(n, x, alpha, lr):
    return (1 - alpha) * sum(alpha ** (n - j) * x(j * lr) for j in range(n + 1))


@given(rates, st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_matched_memory_has_the_mass_and_the_mean_lag_of_the_discrete_average(alpha, n):
    lr = 0.1
    for x in (lambda t: 1.0, lambda t: t, lambda t: 3 - 2 * t):
        assert value(n * lr, x, alpha, lr, "matched") == pytest.approx(discrete(n, x, alpha, lr), abs=1e-9)


@pytest.mark.parametrize(("memory", "fails_at"), [("rates", 5), ("paper", 5), ("paper", 0)])
def test_the_other_memories_have_not(memory, fails_at):
    at = 0.1 * fails_at, lambda t: 1.0
    assert abs(value(*at, 0.9, 0.1, memory) - discrete(fails_at, at[1], 0.9, 0.1)) > 1e-3


def test_rates_have_the_mean_lag_once_the_start_is_forgotten():
    late, linear = 30.0, lambda t: t
    for memory in MEMORIES:
        assert value(late, linear, 0.9, 0.1, memory) == pytest.approx(discrete(300, linear, 0.9, 0.1), abs=1e-9)


@given(rates, st.integers(0, 100))
@settings(deadline=None)
def test_the_mass_is_the_bias_correction(alpha, n):
    assert mass_of(n * 0.1, alpha, 0.1, "matched") == pytest.approx(update.bias_correction(alpha, n + 1), abs=1e-12)
    assert mass_of(n * 0.1, alpha, 0.1, "rates") == pytest.approx(
        value(n * 0.1, lambda t: 1.0, alpha, 0.1, "rates"), abs=1e-9
    )


@pytest.mark.parametrize("memory", MEMORIES)
def test_no_memory_is_the_input_itself(memory):
    assert value(0.3, lambda t: 7 + t, 0.0, 0.1, memory) == 7.3
    assert mass_of(0.0, 0.0, 0.1, memory) == mass_of(0.3, 0.0, 0.1, memory) == 1


@pytest.mark.parametrize(
    "alpha", [0.0, 0.5, 0.9995, math.nextafter(1, 0), torch.tensor([0.0, 0.9], dtype=torch.float64)]
)
def test_after_infinitely_many_steps_no_bias_is_left(alpha):
    """What ``Flow.respond`` relies on: its moments are corrected before they go to ``update.output``."""
    assert bool(torch.as_tensor(update.bias_correction(alpha, math.inf) == 1).all())
    m, v = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([4.0, 0.0], dtype=torch.float64)
    found = update.output(update.Moments(m, v), math.inf, Stage(alpha, alpha), 1.0)
    assert found.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("s", [0.3, 7.0, 300.0])
def test_position_solves_the_equation_it_names(weight_decay, s):
    """Laplace transforms: theta / u is 1 / (lr/2 s^2 + s + weight_decay) for the paper's equation, and so on."""
    lr = 0.1
    transfer = {
        form: sum(memory.gain / (s + memory.rate) + memory.present for memory in position_of(lr, weight_decay, form))
        for form in FORMS
    }
    assert transfer["first"] == pytest.approx(1 / (s + weight_decay))
    assert transfer["second"] == pytest.approx(1 / (lr / 2 * s**2 + s + weight_decay))
    # theta' = f - (lr/2) f' with f = u - weight_decay theta
    assert transfer["slow"] == pytest.approx((1 - lr / 2 * s) / (s + weight_decay * (1 - lr / 2 * s)))


@pytest.mark.parametrize("memory", ["matched", "rates"])
def test_the_first_update_is_the_algorithms(memory):
    gradient, theta = logistic()
    flow = Flow(ADAM, 0.01, memory=memory, form="first")
    state = flow.start(theta, gradient(theta, 0.0))
    velocity = flow.derivative(0.0, state, gradient(theta, 0.0))[-1]
    torch.testing.assert_close(velocity, -gradient(theta, 0.0).sign())


def test_the_second_form_starts_on_the_slow_manifold():
    gradient, theta = logistic()
    off = []
    for lr in (0.02, 0.01):
        flow = Flow(ADAM, lr, weight_decay=0.3)
        first = gradient(theta, 0.0)
        with_slope, without = flow.start(theta, first, gradient), flow.start(theta, first)
        rows = list(flow.position_rows)
        for state in (with_slope, without):
            torch.testing.assert_close(state[rows].sum(0), theta)
        velocities = [flow.derivative(0.0, state, first)[rows].sum(0) for state in (with_slope, without)]
        later = integrate(replace(flow, form="slow"), gradient, theta, [1e-4 * lr, 2e-4 * lr], tolerance=1e-9).theta
        slow = (-3 * theta + 4 * later[0] - later[1]) / (2e-4 * lr)
        off.append([distance(velocity, slow) for velocity in velocities])
    assert 3 < off[0][0] / off[1][0] < 5  # O(lr^2)
    assert 1.5 < off[0][1] / off[1][1] < 2.7  # O(lr): what the slope is for


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-12, 1e-6, 1e-3])
def test_a_gradient_that_starts_from_nearly_nothing(k, size):
    """There u turns within the first step, at any rate; a start along its derivative would be thrown far off."""
    lr, theta = 0.005, torch.zeros(2, dtype=torch.float64)

    def gradient(x, t):
        return torch.stack([torch.tanh(x[0] - 2), torch.full_like(x[1], size + t)])

    flow = Flow(make_stages((0.9, 0.999), k), lr, 0.1)
    solution = integrate(flow, gradient, theta, np.arange(101) * lr, tolerance=1e-5)
    assert solution.ok and distance(solution.theta, adam(flow, gradient, theta, 100)) < lr


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("memory", ["matched", "rates"])
@pytest.mark.parametrize("form", ["second", "first"])
def test_the_integrator_solves_the_derivative(k, memory, form):
    """Two solvers that share nothing but the right-hand side's formula."""
    gradient, theta = logistic()
    flow = Flow(make_stages((0.9, 0.99), k), 0.02, 0.2, memory=memory, form=form)
    times = np.linspace(0, 0.6, 7)
    rows = list(flow.position_rows)

    def derivative(t, y):
        state = torch.from_numpy(y).view(flow.rows, 5)
        return flow.derivative(t, state, gradient(state[rows].sum(0), t)).flatten().numpy()

    start = flow.start(theta, gradient(theta, 0.0), gradient).flatten().numpy()
    other = solve_ivp(derivative, (0, 0.6), start, "DOP853", times, rtol=1e-10, atol=1e-12).y
    other = torch.from_numpy(other.T.copy()).view(7, flow.rows, 5)[:, rows].sum(1)
    ours = integrate(flow, gradient, theta, times, tolerance=1e-7)
    assert ours.ok and distance(ours.theta, other) < 3e-8


def errors(steps, gradient, theta, tolerance=1e-7, **model):
    """Largest difference to the algorithm over T = 1, for several numbers of steps."""
    result = []
    for n in steps:
        flow = Flow(lr=1 / n, **model)
        solution = integrate(flow, gradient, theta, np.arange(n + 1) / n, tolerance=tolerance)
        assert solution.ok
        result.append(distance(adam(flow, gradient, theta, n), solution.theta))
    return np.array(result)


@pytest.mark.parametrize(
    ("model", "order"),
    [
        (dict(stages=ADAM), 2),
        (dict(stages=ADAM, weight_decay=1.0), 2),
        (dict(stages=ADAM, form="slow"), 2),
        (dict(stages=[Stage(0.3, 0.5)], weight_decay=1.0), 2),
        (dict(stages=[Stage(0.3, 0.5)], weight_decay=1.0, memory="rates"), 2),
        (dict(stages=make_stages((0.9, 0.999), 2)), 2),
        (dict(stages=make_stages((0.9, 0.999), 3), weight_decay=1.0), 2),
        (dict(stages=ADAM, form="first"), 1),
        (dict(stages=ADAM, memory="paper"), 1),
        (dict(stages=ADAM, memory="rates"), 1),
    ],
    ids=str,
)
def test_order_in_the_learning_rate(model, order):
    first, _, last = errors((200, 400, 800), *logistic(far=True), **model)
    assert np.log2(first / last) / 2 == pytest.approx(order, abs=0.35)


def test_order_is_lost_where_a_prescribed_gradient_changes_its_sign():
    """Near the change the update depends on the few gradients that a short memory holds, whatever the learning rate."""
    theta = torch.zeros(1, dtype=torch.float64)

    def through_zero(theta, t):
        return torch.full_like(theta, 0.51234 - t)

    def above_zero(theta, t):
        return torch.full_like(theta, 1.51234 - t)

    crossing, not_crossing = (
        errors((200, 400, 800), gradient, theta, stages=[Stage(0.8, 0.9)]) for gradient in (through_zero, above_zero)
    )
    assert np.log2(crossing[0] / crossing[2]) / 2 < 1.3
    assert np.log2(not_crossing[0] / not_crossing[2]) / 2 > 1.7


def test_no_model_follows_the_chatter_at_a_minimum():
    """There v fades until the algorithm overshoots at every step."""
    path = {n: errors([n], *logistic(), tolerance=1e-4, stages=[Stage(0.8, 0.95)])[0] for n in (200, 400)}
    assert path[400] > 10 * path[200]


def test_the_far_problem_has_no_change_of_sign():
    gradient, theta = logistic(far=True)
    for flow in (Flow(ADAM, 0.005), Flow([Stage(0.3, 0.5)], 0.005, 1.0), Flow(make_stages((0.9, 0.999), 3), 0.005)):
        signs = torch.stack([gradient(theta, 0.0).sign() for theta in adam(flow, gradient, theta, 200)])
        assert (signs == signs[0]).all()


def test_matched_memory_is_a_hundred_times_closer():
    matched, paper = (
        errors([400], *logistic(far=True), stages=ADAM, memory=memory)[0] for memory in ("matched", "paper")
    )
    assert matched < paper / 100


def test_a_swapped_rate_would_be_caught():
    gradient, theta = logistic()
    flow = Flow(ADAM, 0.01)
    path = adam(flow, gradient, theta, 100)
    swapped = integrate(Flow([Stage(0.999, 0.9)], 0.01), gradient, theta, np.arange(101) * 0.01)
    assert distance(swapped.theta, path) > 0.1


def test_the_discrete_face_is_the_optimizer():
    gradient, theta = logistic()
    flow = Flow(make_stages((0.9, 0.99), 2), 0.01, weight_decay=0.1, eps=1e-8)
    param = torch.nn.Parameter(theta.clone())
    optimizer = KAdam([param], lr=0.01, betas=(0.9, 0.99), k=2, weight_decay=0.1)
    for _ in range(20):
        param.grad = gradient(param, 0.0)
        optimizer.step()
    torch.testing.assert_close(adam(flow, gradient, theta, 20)[-1], param.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_a_coordinate_without_gradient_only_decays(form, memory):
    flow = Flow(make_stages((0.9, 0.999), 2), 0.01, weight_decay=0.5, form=form, memory=memory)
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    gradient = gradient_of(lambda theta: theta[0] ** 2)
    end = integrate(flow, gradient, theta, [0.5], tolerance=1e-6).theta[0]
    assert end[1] == pytest.approx(2 * math.exp(-0.25), rel=2e-3) and end[0] < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(stages=[]), "stages: an empty"),
        (dict(stages=(0.9, 0.999)), r"stages: \(0.9, 0.999\) .*pairs"),
        (dict(stages=[("a", 0.9)]), "stages: .*pairs"),
        (dict(stages=[Stage(1.0, 0.9)]), "alpha: 1.0"),
        (dict(lr=0.0), "lr: 0.0"),
        (dict(lr=math.inf), "lr: inf"),
        (dict(weight_decay=-1.0), "weight_decay: -1.0"),
        (dict(weight_decay=math.inf, form="first"), "weight_decay: inf"),
        (dict(weight_decay=50.0), "weight_decay: 50.0 .*2 lr weight_decay < 1"),
        (dict(eps=math.nan), "eps: nan"),
        (dict(eps=math.inf), "eps: inf"),
        (dict(memory="long"), "memory: 'long'.*matched, rates, paper"),
        (dict(form="third"), "form: 'third'.*second, slow, first"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Flow(**{**dict(stages=ADAM, lr=0.01), **arguments})


def test_the_slow_form_has_no_explicit_derivative():
    with pytest.raises(ValueError, match="form: 'slow'"):
        Flow(ADAM, 0.01, form="slow").derivative(0.0, torch.zeros(3, 1), torch.ones(1))
