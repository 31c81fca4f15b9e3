import numpy as np
import pytest

from lab.statistics import bootstrap_interval, mean_interval, regression


def test_mean_interval_covers_at_its_level():
    generator = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, (low, high) in (mean_interval(generator.normal(size=5)) for _ in range(4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_mean_interval_of_one_value_is_everything():
    assert mean_interval([2.0]) == (2.0, (-np.inf, np.inf))


def test_bootstrap_interval_of_a_slope():
    generator = np.random.default_rng(1)
    x = np.linspace(0, 1, 40)
    y = 2 * x + 0.1 * generator.normal(size=40)
    value, (low, high) = bootstrap_interval(lambda a, b: regression(a, b)[0], x, y)
    assert low < 2 < high and low < value < high and high - low < 0.4
    assert bootstrap_interval(lambda a, b: regression(a, b)[0], x, y) == (value, (low, high))


def test_regression():
    assert regression(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])) == pytest.approx((2.0, 1.0))
    assert np.isnan(regression(np.ones(3), np.arange(3.0))).all()
