import numpy as np
import pytest
from scipy import stats

from lab.statistics import bootstrap_interval, mean_interval, rank_correlation, ratio_interval, regression


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


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 12))
    y[3:6] = np.inf  # never got there: last, together
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)


def test_rank_correlation_with_what_has_no_order_is_zero():
    assert rank_correlation([1, 2, 3], [np.inf] * 3) == 0
    assert rank_correlation([1, 2, 3], [3, 1, 2], given=[10, 20, 30]) == 0  # nothing of x is left


def test_partial_rank_correlation_is_the_textbook_formula():
    x, y, z = np.random.default_rng(1).normal(size=(3, 30)) + np.linspace(0, 3, 30)
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert rank_correlation(x, y, given=z) == pytest.approx(expected)
    assert rank_correlation(x, y, given=np.ones(30)) == pytest.approx(xy)


def test_a_ratio_of_means_and_its_interval():
    bottom = np.array([1.0, 2.0, 3.0, 4.0])
    ratio, (low, high) = ratio_interval(0.5 * bottom, bottom)
    assert ratio == low == high == 0.5
    ratio, (low, high) = ratio_interval(bottom + np.array([0.3, -0.3, 0.3, -0.3]), bottom)
    assert ratio == pytest.approx(1.0) and low < 1 < high
    _, (low, high) = ratio_interval([1.0, 1.0, 1.0], [-0.1, 0.2, 0.1])
    assert high - low > 10
