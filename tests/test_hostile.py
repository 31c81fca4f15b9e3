import numpy as np
import pytest

from kadam import stability
from lab.hostile import hostile_sequences, random_rates, ratio_to_bound

RATES = np.array([0.9]), np.array([0.97])


def test_the_ratio_is_one_for_the_extremal_sequence_alone():
    extremal = stability.extremal_gradients(50, 0.9, 0.97)[None]
    assert ratio_to_bound(extremal, RATES)[-1] == pytest.approx(1, rel=1e-9)
    assert ratio_to_bound(np.ones((1, 51)), RATES)[-1] < 0.99
    # one sequence for every n: it is extremal at every n at once
    np.testing.assert_allclose(ratio_to_bound(extremal, RATES), 1, rtol=1e-9)


def test_a_nan_is_not_hidden():
    gradients = np.ones((3, 20))
    gradients[1, 7] = np.nan
    ratios = ratio_to_bound(gradients, tuple(np.repeat(rate, 3) for rate in RATES))
    assert np.isfinite(ratios[:7]).all() and np.isnan(ratios[7:]).all()


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_bound_is_found(monkeypatch, factor):
    right = stability.exact_bound
    monkeypatch.setattr(stability, "exact_bound", lambda n, *rates: right(n, *rates) * (factor if n else 1))
    extremal = stability.extremal_gradients(50, 0.9, 0.97)[None]
    assert ratio_to_bound(extremal, RATES)[-1] == pytest.approx(1 / factor)
    hostile = ratio_to_bound(*hostile_sequences(2000, 100, np.random.default_rng(5)))[1:].max()
    assert hostile == pytest.approx(1 / factor, rel=0.01)


def test_hostile_sequences_come_close_and_do_not_exceed():
    generator = np.random.default_rng(5)
    gradients, rates = hostile_sequences(2000, 100, generator)
    assert np.isfinite(gradients).all() and gradients.shape == (2000, 100)
    assert 0.99 < ratio_to_bound(gradients, rates)[1:].max() <= 1 + 1e-9
    early = random_rates(2000, generator)
    assert ratio_to_bound(gradients, early, rates).max() <= 1 + 1e-9


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="steps: 301"):
        hostile_sequences(5, 301, np.random.default_rng(0))
