import numpy as np
import pytest

from kadam import stability
from lab.hostile import hostile_sequences, largest_ratio_to_bound, random_rates


def test_the_ratio_is_one_for_the_extremal_sequence_and_nan_stays():
    rates = np.array([0.9]), np.array([0.97])
    extremal = stability.extremal_gradients(50, 0.9, 0.97)[None]
    assert largest_ratio_to_bound(extremal, rates) == pytest.approx(1, rel=1e-9)
    extremal[0, 7] = np.nan
    assert np.isnan(largest_ratio_to_bound(extremal, rates))


def test_rates_that_do_not_fit_break_the_bound():
    # the check can fail: the extremal sequence of (0.9, 0.97), run at (0.9, 0.97), held against the bound of others
    extremal = stability.extremal_gradients(50, 0.9, 0.97)
    size = largest_ratio_to_bound(extremal[None], (np.array([0.9]), np.array([0.97])))
    assert size * stability.exact_bound(50, 0.9, 0.97) > stability.exact_bound(50, 0.99, 0.9)


def test_hostile_sequences_come_close_and_do_not_exceed():
    generator = np.random.default_rng(5)
    gradients, rates = hostile_sequences(2000, 100, generator)
    assert np.isfinite(gradients).all() and gradients.shape == (2000, 100)
    late = largest_ratio_to_bound(gradients[:, 1:], rates)
    assert 0.99 < late <= 1 + 1e-9
    early = random_rates(2000, generator)
    assert largest_ratio_to_bound(gradients, early, rates) <= 1 + 1e-9


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="steps: 301"):
        hostile_sequences(5, 301, np.random.default_rng(0))
