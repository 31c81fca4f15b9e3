import gc
import math

import numpy as np
import pytest
import torch
from flows import adam, distance, logistic
from scipy.integrate import quad

from kadam.flow import FORMS, Flow, gradient_of
from kadam.integrate import NODES, OUTCOMES, exponential_weights, integrate, interpolation
from kadam.stages import make_stages
from kadam.update import Stage

ADAM = [Stage(0.9, 0.999)]


@pytest.mark.parametrize("z", [0.0, 1e-9, 0.3, 7.0, 150.0, 1e4, 1e9])
def test_exponential_weights_are_the_integrals(z):
    """Against s^p exp(-z (1 - s)) on (0, 1), by the recurrence that is stable for the z at hand."""
    weights = exponential_weights(z, np.array([1.0]))[0]
    for power in range(len(NODES)):
        exact = quad(lambda s, p=power: s**p * math.exp(-z * (1 - s)), max(0.0, 1 - 50 / (z + 1)), 1, epsabs=1e-15)[0]
        assert weights @ NODES**power == pytest.approx(exact, rel=1e-11)


def test_exponential_weights_at_inner_points():
    points = np.array([0.0, 0.2, 0.7])
    expected = [quad(lambda s, c=c: (s - s**3) * math.exp(-5 * (c - s)), 0, c)[0] for c in points]
    np.testing.assert_allclose(exponential_weights(5.0, points) @ (NODES - NODES**3), expected, atol=1e-14)


def test_interpolation_is_exact_for_polynomials():
    nodes, points = np.array([-1.5, -0.4, 0.0, 1.0]), np.linspace(-1, 1, 7)
    np.testing.assert_allclose(interpolation(nodes, points) @ nodes**3, points**3, atol=1e-14)


def followed(steps, order, form):
    """theta at 17 times of a linear problem whose gradient is constant at first."""
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    start, offset = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -0.4], dtype=torch.float64)
    solution = integrate(
        Flow([Stage(0.9, 0.99)], 0.2, 0.1, form=form), lambda theta, t: offset + 0.2 * t**8 * (matrix @ theta),
        start, np.linspace(0.4, 1.2, 17), step=1.2 / steps, order=order,
    )  # fmt: skip
    assert solution.statistics.accepted == steps
    return solution.theta


@pytest.fixture(scope="module")
def exact():
    return {form: followed(500, 8, form) for form in FORMS}


@pytest.mark.parametrize("form", ["second", "first"])
@pytest.mark.parametrize("order", range(2, 8))
def test_fixed_steps_have_the_declared_order(order, form, exact):
    """All derivatives of the gradient up to the eighth vanish at 0, so the start at a lower order costs nothing."""
    coarse, fine = (distance(followed(steps, order, form), exact[form]) for steps in (40, 160))
    assert math.log2(coarse / fine) / 2 == pytest.approx(order, abs=0.15 if order <= 4 else 0.55)


def test_the_slow_form_has_not(exact):
    """What the gradient at the predicted point is off by enters theta at once, through the weight of the present."""
    coarse, fine = (distance(followed(steps, 6, "slow"), exact["slow"]) for steps in (40, 160))
    assert fine < 1e-6 and math.log2(coarse / fine) / 2 < 5


@pytest.mark.parametrize("form", ["second", "slow", "first"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_the_error_is_below_the_tolerance(form, tolerance):
    gradient, theta = logistic(far=True)
    flow = Flow(make_stages((0.9, 0.999), 2), 0.005, 0.1, form=form)
    times = np.linspace(0, 1, 21)
    solution, exact = (integrate(flow, gradient, theta, times, tolerance=t).theta for t in (tolerance, 1e-8))
    travelled = (exact - theta).norm(dim=1).max()
    error = (solution - exact).norm(dim=1).max()
    assert 0 < error < tolerance * travelled


def test_the_tolerance_bounds_no_error_where_the_flow_enlarges_it():
    """2-Adam at a minimum: v fades, the flow itself oscillates, and a disturbance grows as the error does."""
    gradient, theta = logistic()
    flow = Flow(make_stages((0.9, 0.999), 2), 0.005, 0.1)
    times = np.array([0.7, 0.75, 1.0])

    def disturbed(x, t):
        return gradient(x, t) * (1 + 0.1 * math.exp(-(((t - 0.7) / 0.02) ** 2)) * math.cos(300 * t))

    exact = integrate(flow, gradient, theta, times, tolerance=1e-6).theta
    travelled = (exact - theta).norm(dim=1).max()
    error, disturbance = (
        (integrate(flow, other, theta, times, tolerance=tolerance).theta - exact).norm(dim=1) / travelled
        for other, tolerance in ((gradient, 1e-3), (disturbed, 1e-6))
    )
    assert error[:2].max() < 1e-3 < error[2]
    assert disturbance[2] > 30 * disturbance[1]


def test_a_thousand_steps_of_adam_with_fewer_than_three_hundred_gradients():
    gradient, theta = logistic()
    flow = Flow(ADAM, 1e-3)
    solution = integrate(flow, gradient, theta, np.arange(1001) * 1e-3)
    path = adam(flow, gradient, theta, 1000)
    assert distance(solution.theta, path) < 1e-3 * (path - theta).abs().max()
    assert solution.ok and solution.statistics.evaluations <= 100  # the issue asked for 300


def test_the_steps_follow_the_gradient_and_not_the_stiffness():
    """The fast rate 2/lr grows a thousandfold over the same path; the gradients that are needed do not."""
    gradient, theta = logistic(far=True)
    needed = []
    for lr in (1e-2, 1e-5):
        flow = Flow([Stage(math.exp(-lr / 0.1), math.exp(-lr / 1.0))], lr)  # memories of the times 0.1 and 1
        needed.append(integrate(flow, gradient, theta, [1.0], tolerance=1e-4).statistics.evaluations)
    assert needed[1] < 2 * needed[0]


def test_output_inside_steps_is_as_accurate_as_their_ends():
    gradient, theta = logistic()
    flow = Flow(ADAM, 0.01, 0.1)
    times = np.linspace(0.013, 0.9, 50)
    dense = integrate(flow, gradient, theta, times, tolerance=1e-5)
    assert dense.statistics.accepted < len(times)
    exact = integrate(flow, gradient, theta, times, tolerance=1e-8).theta
    np.testing.assert_array_equal(dense.times, times)
    assert distance(dense.theta, exact) < 1e-6


def test_shapes_and_devices_do_not_matter():
    gradient, theta = logistic()
    flow = Flow(ADAM, 0.01)
    flat = integrate(flow, gradient, theta, [0.0, 0.5])
    shaped = integrate(flow, lambda x, t: gradient(x.flatten(), t).view(5, 1), theta.view(5, 1), [0.0, 0.5])
    assert shaped.theta.shape == (2, 5, 1) and torch.equal(shaped.theta.flatten(1), flat.theta)
    single = integrate(flow, lambda x, t: gradient(x.double(), t).float(), theta.float(), [0.0, 0.5])
    assert single.theta.dtype == torch.float32 and distance(single.theta.double(), flat.theta) < 1e-4
    if torch.cuda.is_available():
        there = integrate(flow, lambda x, t: gradient(x.cpu(), t).cuda(), theta.cuda(), [0.0, 0.5])
        assert distance(there.theta.cpu(), flat.theta) < 1e-9


def test_a_gradient_may_use_its_buffer_again_and_autograd():
    gradient, theta = logistic()
    buffer = torch.empty_like(theta)

    def reusing(x, t):
        at = x.detach().requires_grad_()
        return buffer.copy_(torch.autograd.grad((at * gradient(at.detach(), t)).sum(), at)[0])

    times = [0.1, 0.7]
    expected = integrate(Flow(ADAM, 0.01), gradient, theta, times).theta
    assert torch.equal(integrate(Flow(ADAM, 0.01), reusing, theta, times).theta, expected)


def test_kinks_at_the_steps_of_the_algorithm():
    """A gradient piecewise linear in time, with kinks at every n lr, is followed by steps of lr at order 2."""
    flow = Flow(ADAM, 0.02, form="first", memory="rates")
    values = torch.randn(51, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = np.arange(51 * 16) / 16

    def kinked(theta, t):
        n = min(int(t / 0.02 + 1e-9), 49)
        return torch.lerp(values[n], values[n + 1], t / 0.02 - n)

    start = torch.zeros(3, dtype=torch.float64)
    coarse = integrate(flow, kinked, start, [1.0], step=0.02, order=2)
    finer = integrate(flow, kinked, start, [1.0], step=0.02 / 16, order=2, max_evaluations=len(fine))
    assert coarse.statistics.evaluations == 51
    assert distance(coarse.theta, finer.theta) < 1e-6


# what can go wrong has a name


def run(gradient, theta=(1.0, 2.0), end=1.0, lr=0.01, **arguments):
    return integrate(Flow(ADAM, lr), gradient, torch.tensor(theta, dtype=torch.float64), [0.0, end], **arguments)


def test_diverged():
    solution = run(lambda theta, t: 1 / (0.5 - t).__abs__() * theta if t < 0.5 else theta * math.nan)
    assert solution.outcome == "diverged" and 0.45 < solution.t < 0.5
    assert not solution.ok and "diverged at t = 0." in str(solution) and "stable region" in str(solution)
    assert solution.theta.shape == (1, 2) and list(solution.times) == [0.0]


def test_diverged_with_fixed_steps():
    assert run(lambda theta, t: theta if t < 0.5 else theta * math.nan, step=0.01).outcome == "diverged"


def test_step_size_underflow():
    noise = np.random.default_rng(0)
    solution = run(lambda theta, t: torch.from_numpy(noise.standard_normal(2)), theta=(0.0, 0.0), tolerance=1e-14)
    assert solution.outcome == "step size underflow" and "eps > 0" in str(solution)


def test_a_start_from_rest():
    """theta' is 0 at the start and u jumps: no error is small beside theta's own way."""
    start = torch.zeros(1, dtype=torch.float64)
    solution = integrate(Flow(ADAM, 0.01), lambda theta, t: torch.full_like(theta, t), start, [1.0])
    assert solution.ok and solution.statistics.evaluations < 50


@pytest.mark.parametrize("k", [1, 2])
def test_a_jump_of_the_update_is_no_underflow(k):
    """The second coordinate's u is 0 at the start and about 1 at once."""
    flow, start = Flow(make_stages((0.9, 0.999), k), 0.005), torch.zeros(2, dtype=torch.float64)
    solution = integrate(flow, lambda theta, t: theta.new_tensor([1.0, t]), start, [0.5], tolerance=1e-9)
    assert solution.ok and solution.statistics.evaluations < 100


@pytest.mark.parametrize(("eps", "outcome"), [(0.0, "evaluation limit"), (1e-2, "reached end")])
def test_a_coordinate_that_starts_at_its_minimum_needs_eps(eps, outcome):
    """u = -sign(g) at once, at any size of g: without eps the solution slides along a discontinuity."""

    def gradient(theta, t):
        return torch.stack([torch.tanh(theta[0] - 2), theta[1] - theta[0] ** 2])

    start = torch.zeros(2, dtype=torch.float64)
    solution = integrate(Flow(ADAM, 0.005, eps=eps), gradient, start, [0.5], max_evaluations=300)
    assert solution.outcome == outcome and (eps == 0 or solution.statistics.evaluations < 60)


def test_a_loss_that_becomes_nan():
    assert run(gradient_of(lambda theta: (theta - 0.5).sqrt().sum())).outcome == "diverged"


def test_evaluation_limit():
    gradient, theta = logistic()
    solution = integrate(Flow(ADAM, 0.001), gradient, theta, [1.0], max_evaluations=20)
    assert solution.outcome == "evaluation limit" and solution.statistics.evaluations == 20
    assert "max_evaluations" in str(solution)


def test_no_time_at_all():
    gradient, theta = logistic()
    solution = integrate(Flow(ADAM, 0.001), gradient, theta, [0.0])
    assert solution.ok and solution.t == 0 and torch.equal(solution.theta[0], theta)


def test_outputs_are_not_the_callers_start():
    gradient, theta = logistic()
    given = []
    integrate(Flow(ADAM, 0.001), gradient, theta, [0.0], on_output=lambda t, x: given.append(x))
    theta += 1
    assert (given[0] == 0).all()


def test_a_scalar_and_a_strided_parameter():
    scalar = integrate(Flow(ADAM, 0.01), gradient_of(torch.cosh), torch.tensor(1.0, requires_grad=True), [0.2])
    assert scalar.theta.shape == (1,) and not scalar.theta.requires_grad and scalar.theta[0] < 0.9
    strided = torch.ones(4, 3, dtype=torch.float64).T[:, ::2]
    solution = integrate(Flow(ADAM, 0.01), gradient_of(lambda x: x.cosh().sum()), strided, [0.2])
    assert solution.theta.shape == (1, 3, 2) and torch.equal(strided, torch.ones_like(strided))


def test_every_outcome_has_advice():
    assert all(advice for outcome, advice in OUTCOMES.items() if outcome != "reached end")


def test_statistics_and_progress():
    gradient, theta = logistic()
    calls, seen = [], []
    solution = integrate(
        Flow(ADAM, 0.005), lambda x, t: calls.append(t) or gradient(x, t), theta, [1.0], tolerance=1e-2,
        progress=lambda t, statistics: seen.append((t, statistics)),
    )  # fmt: skip
    statistics = solution.statistics
    assert statistics == seen[-1][1] and seen[-1][0] == pytest.approx(1.0)
    # one gradient a step, one at the start and one for the slope there
    assert statistics.evaluations == len(calls) == statistics.accepted + statistics.rejected + 2
    assert len(seen) == statistics.accepted and 0 < statistics.shortest < statistics.longest < 1


def test_memory_does_not_grow_with_time():
    alive, given = [], []

    def count(t, statistics):
        if statistics.accepted % 20 == 0:
            gc.collect()
            alive.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))

    gradient, theta = logistic()
    solution = integrate(
        Flow(ADAM, 0.001), gradient, theta, np.linspace(0, 1, 1001), step=0.01, progress=count,
        on_output=lambda t, x: given.append(t),
    )  # fmt: skip
    assert len(given) == 1001 and solution.theta.shape == (0, 5) and len(solution.times) == 1001
    assert len(alive) == 5 and max(alive[1:]) == min(alive[1:])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(theta=torch.ones(2, dtype=torch.int64)), TypeError, "theta: torch.int64"),
        (dict(theta=torch.ones(2, dtype=torch.bfloat16)), TypeError, "theta: torch.bfloat16"),
        (dict(theta=[1.0]), TypeError, r"theta: \[1.0\]"),
        (dict(theta=torch.ones(0)), TypeError, "theta: .*not empty"),
        (dict(theta=torch.tensor([1.0, math.nan])), ValueError, "theta: not finite"),
        (dict(times=[]), ValueError, "times"),
        (dict(times=1.0), ValueError, "times: 1.0"),
        (dict(times="soon"), ValueError, "times: 'soon'"),
        (dict(times=[[1.0], [2.0, 3.0]]), ValueError, "times: .*sequence of finite numbers"),
        (dict(times=[0.0, math.nan]), ValueError, "times: .*finite"),
        (dict(times=[0.5, 0.2]), ValueError, "times: .*increase"),
        (dict(times=[-1.0, 0.2]), ValueError, "times: .*>= 0"),
        (dict(tolerance=0.0), ValueError, "tolerance: 0.0"),
        (dict(tolerance=math.nan), ValueError, "tolerance: nan"),
        (dict(step=-0.1), ValueError, "step: -0.1"),
        (dict(order=1), ValueError, "order: 1 .*2, 3"),
        (dict(order=9), ValueError, "order: 9"),
        (dict(order=7.0), ValueError, "order: 7.0"),
        (dict(max_evaluations=0), ValueError, "max_evaluations: 0"),
        (dict(gradient=lambda theta, t: theta[0]), TypeError, r"gradient: returned torch.float64, \(\), cpu .*\(2,\)"),
        (dict(gradient=lambda theta, t: theta.float()), TypeError, "gradient: returned torch.float32"),
        (dict(gradient=lambda theta, t: theta.to("meta")), TypeError, "gradient: returned .* meta .*cpu"),
        (dict(gradient=lambda theta, t: None), TypeError, "gradient: returned None"),
        (dict(gradient=lambda theta, t: theta * math.inf), ValueError, r"gradient: not finite at theta\(0\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    theta = torch.ones(2, dtype=torch.float64)
    given = dict(gradient=gradient_of(lambda x: (x**2).sum()), theta=theta, times=[1.0])
    with pytest.raises(error, match=message):
        integrate(Flow(ADAM, 0.1), **{**given, **arguments})
