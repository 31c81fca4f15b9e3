import numpy as np
import pytest
from scipy import stats

from lab.statistics import (
    Estimate,
    ahead,
    mean,
    mean_interval,
    median,
    rank_correlation,
    regression,
    share,
    simultaneous_intervals,
)


def test_mean_interval_covers_at_its_level():
    generator = np.random.default_rng(0)
    covered = [low <= 0 <= high for _, (low, high) in (mean_interval(generator.normal(size=5)) for _ in range(4000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_mean_interval_of_one_value_is_everything():
    assert mean_interval([2.0]) == (2.0, (-np.inf, np.inf))


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


# --- estimates ---


def covered(estimate_of, truth, level, draws=2000):
    found = (estimate_of(i).interval(level) for i in range(draws))
    return np.mean([low <= truth <= high for low, high in found])


def test_a_mean_covers_at_every_level():
    values = np.random.default_rng(1).normal(3.0, size=(2000, 6))
    for level in (0.8, 0.95, 0.99):
        assert covered(lambda i: mean(values[i]), 3.0, level) == pytest.approx(level, abs=0.015)
    one = mean([1.0, 2.0, 6.0])
    assert (one.value, one.n, one.unit) == (3.0, 3, "seeds") and one.interval(0.95) == mean_interval([1.0, 2.0, 6.0])[1]


def test_a_median_covers_at_least_at_its_level_whatever_the_distribution():
    values = np.random.default_rng(2).exponential(size=(2000, 11))
    for level, skipped in ((0.8, 3), (0.95, 2)):  # of 11 values, those left out on either side
        exact = 1 - 2 * stats.binom.cdf(skipped - 1, 11, 0.5)
        assert exact >= level
        assert covered(lambda i: median(values[i]), np.log(2), level) == pytest.approx(exact, abs=0.015)


def test_a_median_takes_runs_that_gave_up():
    given_up = median([1.0, 2.0, np.inf, 3.0, np.inf, 2.5, 1.5, np.inf])
    assert given_up.value == 2.5 and given_up.interval(0.9) == (1.5, np.inf)
    assert median([1.0, 2.0, 3.0, 10.0]).value == 2.5
    assert median([1.0, 2.0, 3.0]).interval(0.95) == (-np.inf, np.inf)  # three values cannot say so much
    assert median(np.arange(6.0)).interval(0.95) == (0.0, 5.0)
    with pytest.raises(ValueError, match="values"):
        median([1.0, np.nan])
    with pytest.raises(ValueError, match="values"):
        median([])


def test_a_share_has_the_exact_interval_and_is_said_in_words():
    four = share(4, 5)
    assert four.shown == "4 of 5" and four.interval(0.95) == pytest.approx((0.2836, 0.9949), abs=1e-4)
    assert share(0, 3).interval(0.95)[0] == 0.0 and share(3, 3).interval(0.95)[1] == 1.0
    for wrong in ((6, 5), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            share(*wrong)


def test_comparisons_ahead_go_from_the_certain_to_the_possible():
    noise = np.random.default_rng(3).normal(size=(4, 8))
    found = ahead(noise + np.array([[-50.0], [-0.2], [0.2], [50.0]]))
    assert found.interval(0.95) == (1.0, 3.0) and found.n == 8
    assert found.shown == f"{int(found.value)} of 4" and 1 <= found.value <= 3
    assert ahead(noise - 50).interval(0.95) == (4.0, 4.0)


@pytest.mark.parametrize("wrong", [[], [1.0, np.nan], [np.inf, 1.0], [[1.0, 2.0]]])
def test_means_of_what_is_not_finite_are_refused(wrong):
    with pytest.raises(ValueError, match="finite"):
        mean(wrong)


def test_a_plain_number_has_no_interval():
    assert Estimate(1.0).interval is None
