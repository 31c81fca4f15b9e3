"""The runs of page 02."""

import numpy as np

from lab.experiments.stable_region import transformer_on_words

OUTSIDE = [[0.5, 0.95]]
SHORT = dict(seed=0, steps=6, lr=1e-3, batch=2, context=8)


def test_watched_coordinates_are_those_with_the_largest_last_update():
    result = transformer_on_words(OUTSIDE, watched=5, **SHORT)
    assert result["gradients"].shape == result["updates"].shape == (6, 5)
    assert result["outcome"] == "finished" and len(result["carriers"]) == 5
    # the second run is the first one again, to the last bit
    assert np.abs(result["updates"][-1]).max() == np.float32(result["largest_update"][-1])
    # from its gradients follow the updates (beta, gamma of the theory, eps = 0)
    beta, gamma = OUTSIDE[0]
    m = v = 0.0
    for g in result["gradients"].astype(float):
        m, v = gamma * m + (1 - gamma) * g, beta * v + (1 - beta) * g**2
    u = -m / (1 - gamma**6) / np.sqrt(v / (1 - beta**6))
    np.testing.assert_allclose(result["updates"][-1], u, rtol=1e-4)


def test_full_batches_do_not_depend_on_their_order():
    text = dict(blocks=4, **SHORT | {"batch": 4})
    one = transformer_on_words(OUTSIDE, dtype="float64", **text)
    noisy = transformer_on_words(OUTSIDE, dtype="float64", **text | {"batch": 2})
    first = one["loss"][0]
    assert np.isclose(first, noisy["loss"][:2].mean(), rtol=0.02) and noisy["loss"][0] != first


def test_the_last_pair_is_the_last_stage():
    inside, outside = [0.999, 0.9], OUTSIDE[0]
    ends = [
        transformer_on_words(pairs, **SHORT)["largest_update"][-1]
        for pairs in ([inside], [inside, outside], [outside, inside])
    ]
    assert len(set(ends)) == 3
