import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kadam import stability, update
from kadam.update import Stage

rates = st.floats(0.05, 0.9995)
gradients = st.lists(st.one_of(st.just(0.0), st.floats(1e-60, 1e60), st.floats(-1e60, -1e-60)), min_size=1, max_size=40)


def updates(sequence, beta, gamma):
    """|u_n| of Adam at eps = 0, n = 0, 1, ..."""
    moments = [update.zeros(torch.empty(1, dtype=torch.float64))]
    sizes = []
    for n, gradient in enumerate(sequence, start=1):
        moments = update.cascade(torch.tensor([gradient], dtype=torch.float64), moments, n, [Stage(gamma, beta)], 0.0)
        sizes.append(update.output(moments[0], n, Stage(gamma, beta), 0.0).abs().item())
    return np.array(sizes)


@given(gradients, rates, rates)
@settings(max_examples=300, deadline=None)
def test_no_sequence_exceeds_the_exact_bound(sequence, beta, gamma):
    bound = stability.exact_bound(np.arange(len(sequence)), beta, gamma)
    assert np.all(updates(sequence, beta, gamma) <= bound * (1 + 1e-9))


@given(st.integers(0, 60), rates, rates)
@settings(max_examples=200, deadline=None)
def test_the_geometric_sequence_attains_the_exact_bound(n, beta, gamma):
    # at most (1/0.05)^60 = 1e78 between first and last: squares stay within float64
    attained = updates(stability.extremal_gradients(n, beta, gamma), beta, gamma)[-1]
    assert attained == pytest.approx(float(stability.exact_bound(n, beta, gamma)), rel=1e-9)


def test_a_smaller_bound_would_be_caught():
    attained = updates(stability.extremal_gradients(20, 0.9, 0.97), 0.9, 0.97)[-1]
    assert attained > stability.exact_bound(20, 0.9, 0.97) * (1 - 1e-6)


def test_an_extremal_sequence_that_underflows_is_refused():
    with pytest.raises(ValueError, match=r"n: 10000 .at beta = 0.9, gamma = 0.94 float64 holds it up to 7818"):
        stability.extremal_gradients(10000, 0.9, 0.94)


def test_the_continuous_bound_is_none_for_the_discrete_algorithm():
    assert stability.continuous_bound(5, 0.9, 0.97) == pytest.approx(0.905, abs=5e-4)
    assert updates(stability.extremal_gradients(5, 0.9, 0.97), 0.9, 0.97)[-1] == pytest.approx(1.008, abs=5e-4)
    assert stability.continuous_bound(300, 0.9, 0.97) == pytest.approx(676, abs=0.5)
    assert stability.exact_bound(300, 0.9, 0.97) == pytest.approx(357, abs=0.5)


def test_special_rates():
    n = np.array([0, 1, 50])
    assert stability.exact_bound(n, 0.0, 0.0).tolist() == [1, 1, 1]  # signSGD
    np.testing.assert_allclose(stability.exact_bound(n, 0.5, 0.0), np.sqrt((1 - 0.5 ** (n + 1)) / 0.5))  # RMSprop
    assert stability.exact_bound(n, 0.0, 0.5).tolist() == [1, np.inf, np.inf]
    edge = stability.exact_bound(n, 0.81, 0.9)  # r = 1: the sum is n + 1
    direct = 0.1 / np.sqrt(0.19) * np.sqrt(1 - 0.81 ** (n + 1)) / (1 - 0.9 ** (n + 1)) * np.sqrt(n + 1)
    np.testing.assert_allclose(edge, direct, rtol=1e-9)


def test_limits_at_zero_rates():
    beta, gamma = np.array([0.5, 0.0, 0.0, 0.9]), np.array([0.0, 0.0, 0.5, 0.9])
    assert stability.coefficient(beta, gamma)[:3].tolist() == [np.inf, np.inf, -np.inf]
    assert stability.exact_growth_rate(beta, gamma)[:3].tolist() == [-np.inf, -np.inf, np.inf]
    assert stability.coefficient(beta, gamma)[3] == stability.coefficient(0.9, 0.9) == pytest.approx(1 / 0.9 - 1)
    assert stability.coefficient(1e-9, 0.5) < -1e8 and stability.coefficient(0.5, 1e-9) > 1e8


@given(rates, rates)
@settings(max_examples=200, deadline=None)
def test_the_limit_of_the_exact_bound_is_its_largest_value(beta, gamma):
    limit = stability.log_exact_bound(np.inf, beta, gamma)
    values = stability.log_exact_bound(np.array([0, 1, 2, 5, 20, 100, 1000, 10**5, 10**7]), beta, gamma)
    assert np.all(np.diff(values) >= -1e-12)
    if stability.exact_growth_rate(beta, gamma) < -1e-4:
        assert values[-1] == pytest.approx(float(limit), abs=1e-9)
    elif stability.exact_growth_rate(beta, gamma) >= 0:
        assert limit == np.inf


def test_the_limit_at_special_rates():
    assert stability.exact_bound(np.inf, 0.0, 0.0) == 1
    assert stability.exact_bound(np.inf, 0.75, 0.0) == pytest.approx(2)
    assert stability.exact_bound(np.inf, 0.0, 0.5) == np.inf
    r = 0.9**2 / 0.999
    assert stability.exact_bound(np.inf, 0.999, 0.9) == pytest.approx(0.1 / np.sqrt(0.001 * (1 - r)))


def test_the_logarithm_does_not_overflow():
    log = stability.log_exact_bound(10**6, 0.5, 0.999)
    assert log == pytest.approx(10**6 * float(stability.exact_growth_rate(0.5, 0.999)), rel=1e-3)
    assert stability.exact_bound(10**6, 0.5, 0.999) == np.inf


@pytest.mark.parametrize(("beta", "gamma"), [(0.9, 0.97), (0.999, 0.9), (0.95, 0.9)])
def test_bounds_against_direct_sums(beta, gamma):
    n = 37
    total = sum((gamma**2 / beta) ** j for j in range(n + 1))
    direct = (1 - gamma) / (1 - beta) ** 0.5 * (1 - beta ** (n + 1)) ** 0.5 / (1 - gamma ** (n + 1)) * total**0.5
    assert stability.exact_bound(n, beta, gamma) == pytest.approx(direct, rel=1e-12)
    s = np.linspace(0, n, 200001)  # the kernels with eta = 1
    integrand = ((1 - gamma) / gamma) ** 2 * np.exp(-2 * (1 - gamma) / gamma * s)
    integrand /= (1 - beta) / beta * np.exp(-(1 - beta) / beta * s)
    correction = (1 - beta ** (n + 1)) ** 0.5 / (1 - gamma ** (n + 1))
    continuous = np.sqrt(np.trapezoid(integrand, s)) * correction
    assert stability.continuous_bound(n, beta, gamma) == pytest.approx(continuous, rel=1e-6)


def test_continuous_bound_at_c_equal_zero():
    gamma = 0.9
    beta = float(stability.level_curve(gamma))
    near = stability.continuous_bound(100, beta * (1 - 1e-9), gamma)
    assert stability.continuous_bound(100, beta, gamma) == pytest.approx(float(near), rel=1e-6)


@given(st.floats(0.3, 0.999), st.floats(-1.0, 1.0))
def test_level_curve(gamma, c):
    beta = float(stability.level_curve(gamma, c))
    if np.isnan(beta):
        assert 2 / gamma - 1 - c <= 1
    else:
        assert stability.coefficient(beta, gamma) == pytest.approx(c, abs=1e-9)


@given(st.floats(0.3, 0.99), st.floats(0.3, 0.99))
def test_normal_curve_is_perpendicular_to_the_level_curves(beta, gamma):
    h = 1e-6
    low, high = stability.normal_curve(np.array([gamma - h, gamma + h]), through=(beta, gamma))
    if np.isnan(low) or np.isnan(high):
        return
    tangent = np.array([(high - low) / (2 * h), 1.0])
    gradient = np.array([1 / beta**2, -2 / gamma**2])
    # perpendicular to the level curves: parallel to the gradient of C
    cross = tangent[0] * gradient[1] - tangent[1] * gradient[0]
    assert abs(cross) < 1e-4 * np.linalg.norm(tangent) * np.linalg.norm(gradient)


def test_normal_curve_at_given_values_of_c():
    wanted = np.array([-0.05, -0.01, 0.0, 0.1, 0.22])
    beta, gamma = stability.normal_curve_at(wanted)
    np.testing.assert_allclose(stability.coefficient(beta, gamma), wanted, atol=1e-9)
    np.testing.assert_allclose(2 * beta**3 + gamma**3, 2 * 0.999**3 + 0.9**3)
    beta, gamma = stability.normal_curve_at(stability.coefficient(0.999, 0.9))
    assert (beta, gamma) == (pytest.approx(0.999), pytest.approx(0.9))
    with pytest.raises(ValueError, match=r"c: 0\.5 .*C lies in"):
        stability.normal_curve_at(0.5)


def test_growth_rates():
    assert stability.continuous_growth_rate(0.9523, 0.9987) == pytest.approx(0.0237, abs=5e-5)
    assert stability.exact_growth_rate(0.9523, 0.9987) == pytest.approx(0.0231, abs=5e-5)
    log = stability.log_exact_bound(np.array([4000, 5000]), 0.9523, 0.9987)
    assert (log[1] - log[0]) / 1000 == pytest.approx(float(stability.exact_growth_rate(0.9523, 0.9987)), rel=2e-3)


def test_vanished_update_is_what_a_vanished_gradient_does():
    sequence = np.where(np.arange(200) < 10, 1.0, 0.0)
    log_update = np.log(updates(sequence, 0.95, 0.99))[10:]
    assert np.ptp(log_update - stability.log_vanished_update(np.arange(10, 200), 0.95, 0.99)) < 1e-10


def test_describe_adam():
    found = stability.describe((0.9, 0.999))
    assert (found.gamma, found.beta, found.k) == (0.9, 0.999, 1)
    assert found.c == stability.coefficient(0.999, 0.9)
    assert found.bound == stability.exact_bound(np.inf, 0.999, 0.9)
    assert found.growth_rate == stability.exact_growth_rate(0.999, 0.9) < 0
    assert found.memories == (pytest.approx(10), pytest.approx(1000))
    assert str(found) == (
        "(gamma, beta) = (0.9, 0.999): inside the stable region, C = 0.2212. No gradients can make an update larger "
        "than 7.27. Memory in steps: 10 of the first moment, 1000 of the second."
    )
    assert stability.describe((torch.tensor(0.5), torch.tensor(0.75))) == stability.describe([0.5, 0.75])


def test_describe_takes_the_last_stage():
    pairs = [(0.999, 0.9), (0.5, 0.6)]
    found = stability.describe(pairs, k=2)
    assert (found.gamma, found.beta) == pairs[1] and found.bound < np.inf
    assert str(found).startswith("(gamma, beta) = (0.5, 0.6), the last of 2 stages: inside the stable region")
    assert stability.describe(pairs[::-1], k=2).bound == np.inf
    spread = stability.describe((0.9, 0.999), k=3, schedule="inverse_exp")
    assert spread.gamma == pytest.approx(1 - 0.1 ** (1 / 3)) and spread.k == 3


@pytest.mark.parametrize(
    ("betas", "bound", "words"),
    [
        ((0.99, 0.95), np.inf,
         r"outside the stable region, C = -0\.03243\. The bound on an update grows as e\^\(0\.0156 n\): "
         r"10\^0\.3 at step 100, 10\^67\.1 at step 10,000\. So does an update whose gradient"),
        ((0.9, 0.81), np.inf,
         r"outside .*grows as the square root of n: 10\^0\.4 at step 100, 10\^1\.4 at step 10,000\."),
        ((0.9, 0.8105), 9.249, r"outside .*C = -0\.01158.* larger than 9\.249\. The paper's bound grows here"),
        ((0.5, 1 / 3), 1.225, r"at the edge of the stable region, C = 0\. .* The paper's bound grows here"),
        ((0.95, 0.95), 1.0, r"inside .*larger than 1\. Memory in steps: 20 of the first moment, 20 of the second"),
        ((0.0, 0.99), 10.0, r"\(0, 0\.99\) \(RMSprop\): inside .*C = inf\. No gradients .*larger than 10\. "),
        ((0.0, 0.0), 1.0, r"\(0, 0\) \(signSGD\): inside .*larger than 1\. "),
        ((0.9, 0.0), np.inf, r"outside .*C = -inf\. An update has no bound: the second moment forgets"),
    ],
)  # fmt: skip
def test_describe_anywhere(betas, bound, words):
    found = stability.describe(betas)
    assert found.bound == pytest.approx(bound, rel=1e-3)
    assert re.search(words, str(found)), str(found)


def test_describe_checks_as_the_optimizer_does():
    with pytest.raises(ValueError, match="Invalid beta parameter at index 1: 1.5"):
        stability.describe((0.9, 1.5))
    with pytest.raises(ValueError, match="Invalid k: 0"):
        stability.describe((0.9, 0.99), k=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability.coefficient(1.0, 0.9), r"beta: 1\.0 \(must lie in \[0, 1\)\)"),
        (lambda: stability.coefficient(-0.1, 0.9), r"beta: -0\.1 \(must lie in \[0, 1\)\)"),
        (lambda: stability.continuous_bound(3, 0.9, 0.0), r"gamma: 0\.0 \(must lie in \(0, 1\)\)"),
        (lambda: stability.exact_bound(3, -0.1, 0.9), r"beta: -0\.1 \(must lie in \[0, 1\)\)"),
        (lambda: stability.exact_bound(3, 0.9, float("nan")), "gamma: nan"),
        (lambda: stability.exact_bound(-1, 0.9, 0.9), r"n: -1 "),
        (lambda: stability.exact_bound(1.5, 0.9, 0.9), r"n: 1\.5 "),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
