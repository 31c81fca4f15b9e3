import numpy as np
import pytest

from lab.statistics import bootstrap_interval, mean_interval, regression


def test_mean_interval_covers_at_its_level():
    generator = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, (low, high) in (mean_interval(generator.normal(size=5)) for _ in range(4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_mean_interval_of_one_value_is_everything():
    assert mean_interval([2.0]) == (2.0, (-np.inf, np.inf))


def test_bootstrap_interval_covers_at_its_level():
    generator = np.random.default_rng(0)
    found = (bootstrap_interval(generator.normal(size=60), draws=400)[1] for _ in range(1000))
    assert np.mean([low <= 0 <= high for low, high in found]) == pytest.approx(0.94, abs=0.03)
    assert bootstrap_interval([2.0, 2.0]) == (2.0, (2.0, 2.0))


def test_regression():
    assert regression(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])) == pytest.approx((2.0, 1.0))
    assert np.isnan(regression(np.ones(3), np.arange(3.0))).all()
