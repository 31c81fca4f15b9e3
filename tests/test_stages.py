import numpy as np
import pytest

from kadam.stages import SCHEDULES, make_stages


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_stage_is_the_pair_itself(schedule):
    assert make_stages((0.9, 0.999), 1, schedule) == [(0.9, 0.999)]


def test_schedules_at_k_3():
    expected = {
        "inverse_exp": (1 - 0.1 ** (1 / 3), 1 - 0.001 ** (1 / 3)),
        "exp": (0.9**3, 0.999**3),
        "scaled": (0.3, 0.333),
        "naive": (0.9, 0.999),
    }
    for schedule, pair in expected.items():
        assert make_stages((0.9, 0.999), 3, schedule) == [pytest.approx(pair, rel=1e-12)] * 3


def test_numpy_numbers_will_do():
    assert make_stages(tuple(np.array([0.9, 0.999])), np.int64(2)) == make_stages((0.9, 0.999), 2)


def test_explicit_pairs_are_taken_as_they_are():
    assert make_stages([(0.9, 0.99), (0.0, 0.5)], 2, "exp") == [(0.9, 0.99), (0.0, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((0.9, 0.999), 0), ValueError, "Invalid k: 0"),
        (((0.9, 0.999), 1.5), ValueError, "Invalid k: 1.5"),
        (((0.9, 0.999), True), ValueError, "Invalid k: True"),
        (((0.9, 0.999), 2, ["exp"]), ValueError, "Invalid schedule: .'exp'"),
        (((0.9, 0.999), 2, "linear"), ValueError, "Invalid schedule: 'linear'.*inverse_exp"),
        (((1.0, 0.999), 2), ValueError, "Invalid beta parameter at index 0: 1.0"),
        (((0.9, -0.1), 2), ValueError, "Invalid beta parameter at index 1: -0.1"),
        (((0.9, float("nan")), 2), ValueError, "Invalid beta parameter at index 1: nan"),
        (((0.9,), 1), TypeError, r"Invalid betas: \(0.9,\)"),
        ((0.9, 1), TypeError, "Invalid betas: 0.9"),
        ((("a", "b"), 1), TypeError, "Invalid betas"),
        ((((0.9, 0.99), (0.9, 0.99)), 3), ValueError, "2 explicit pairs for k = 3"),
        ((((0.9, 0.99), (0.9, 1.0)), 2), ValueError, "Invalid beta parameter at index 1: 1.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make_stages(*arguments)
