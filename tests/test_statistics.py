import numpy as np
import pytest
from scipy import stats

from lab.statistics import (
    bootstrap_interval,
    mean_interval,
    rank_correlation,
    regression,
    simultaneous_intervals,
)


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


def test_simultaneous_intervals_of_one_comparison_are_students():
    values = np.random.default_rng(0).normal(size=5)
    (mean,), ((low, high),) = simultaneous_intervals([values])
    expected, (t_low, t_high) = mean_interval(values)
    assert mean == pytest.approx(expected) and (high - low) / (t_high - t_low) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_simultaneous_intervals_cover_together_at_their_level(shared):
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(250):
        _, interval = simultaneous_intervals(
            generator.normal(size=(4, 5)) + shared * generator.normal(size=5), draws=500
        )
        covered.append(((interval[:, 0] <= 0) & (interval[:, 1] >= 0)).all())
    assert np.mean(covered) == pytest.approx(0.94, abs=0.04)  # one by one it would be 0.81, were they independent


def test_simultaneous_intervals_pay_once_for_what_comparisons_share():
    values = np.random.default_rng(0).normal(size=6)
    widths = [
        np.ptp(simultaneous_intervals(np.array(rows))[1], axis=1)[0]
        for rows in ([values], [values] * 30, np.random.default_rng(1).permuted([values] * 30, axis=1))
    ]
    assert widths[1] == pytest.approx(widths[0]) and widths[2] > 1.5 * widths[0]


def test_simultaneous_intervals_at_their_borders():
    mean, interval = simultaneous_intervals([[1.0], [2.0]])
    assert mean.tolist() == [1, 2] and interval.tolist() == [[-np.inf, np.inf]] * 2
    assert simultaneous_intervals([[2.0, 2.0, 2.0]])[1].tolist() == [[2.0, 2.0]]
    with pytest.raises(ValueError, match="must be .comparisons, seeds., all finite"):
        simultaneous_intervals([[1.0, np.inf]])
    with pytest.raises(ValueError, match="shape .3,"):
        simultaneous_intervals([1.0, 2.0, 3.0])
