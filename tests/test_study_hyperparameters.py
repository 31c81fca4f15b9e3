"""What decides page 03's verdicts: answers known beforehand, and cases in which the verdict comes out otherwise."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from lab import claims
from lab.claims import claim_of
from lab.statistics import Estimate, rank_correlation
from lab.study import hyperparameters as study

TABLE = {
    row["name"]: row for row in claims.read(Path(__file__).parent.parent / "notebooks/claims/03_hyperparameters.csv")
}
LIMITS = dict(normal_limit=study.chance_limit(12), line_limit=study.chance_limit(6))
C = np.linspace(-0.04, 0.22, 12)
HELD, MISSED = "reproduced at small scale", "not reproduced"


def verdict(name, found):
    """Of a claim of the page, at the published numbers of points."""
    estimate = found if isinstance(found, Estimate) else Estimate(float(found))
    return claim_of(TABLE[name], LIMITS).judged(estimate).verdict


def seeds_of(steps, seeds=5, noise=0.01):
    """Runs (seeds, points) that take ``steps``, each seed a little differently."""
    return np.asarray(steps) * np.exp(noise * np.random.default_rng(1).standard_normal((seeds, len(steps))))


# --- the limits ---


@pytest.mark.parametrize("points", [3, 4, 5, 6])
def test_the_limit_is_what_one_in_twenty_of_all_orders_reaches(points):
    ranks = np.arange(points)
    found = np.array([rank_correlation(ranks, order) for order in permutations(ranks)])
    limit = study.chance_limit(points)
    assert np.mean(found <= limit + 1e-9) <= 0.05 or limit == -1
    weaker = found[found > limit + 1e-3].min()
    assert np.mean(found <= weaker + 1e-9) > 0.05
    counts = study.squared_rank_differences(points)
    differences = [int(np.square(ranks - order).sum()) for order in permutations(ranks)]
    assert counts.tolist() == np.bincount(differences, minlength=len(counts)).tolist()


def test_the_limits_of_tables_of_ranks():
    # one-sided, 5 %, of any table of Spearman's coefficient
    expected = {4: -1.0, 5: -0.9, 6: -0.829, 7: -0.714, 8: -0.643, 10: -0.564, 12: -0.503}
    assert {n: study.chance_limit(n) for n in expected} == pytest.approx(expected, abs=1.5e-3)
    assert study.chance_limit(14) == study.WEAKEST  # never weaker
    with pytest.raises(ValueError, match="points: 15"):
        study.chance_limit(15)


def test_the_margin_of_the_controls_is_that_of_the_claims():
    levels = [row for name, row in TABLE.items() if "-level-" in name]
    assert len(levels) == 4 and all(claim_of(row, LIMITS).accept == (None, study.HALF) for row in levels)


# --- order ---


def test_correlations_by_hand():
    # C = 1, 2, 3: falling; rising; 1 and 3 exchanged with 2 last: squared differences 1 + 1 + 4 of ranks 2, 3, 1
    found = study.correlations([1.0, 2.0, 3.0], [[30.0, 20.0, 10.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    np.testing.assert_allclose(found, [-1, 1, 1 - 6 * 6 / 24])


def test_order_is_the_mean_over_seeds_and_its_interval_ends_at_the_possible():
    values = np.array([-C, -C, -C, C[[1, 0, *range(2, 12)]] * -1])
    found = study.goes_with(C, values)
    exchanged = 1 - 6 * 2 / (12**3 - 12)
    assert found.value == pytest.approx(-(3 + exchanged) / 4)
    low, high = found.interval(0.95)
    assert low == -1 and found.value < high < -0.98 and found.n == 4


ORDERS = [name for name in TABLE if "-speed-" in name or "-loss-" in name]


@pytest.mark.parametrize("name", ORDERS)
def test_a_claim_of_order_holds_for_a_falling_measure_and_not_for_a_rising_or_a_wandering_one(name):
    falling = seeds_of(np.geomspace(500, 100, 12))
    assert verdict(name, study.goes_with(C, falling)) == HELD
    assert verdict(name, study.goes_with(C, falling[:, ::-1])) == MISSED
    wandering = seeds_of([100, 500, 200, 400, 300, 150, 450, 250, 350, 120, 480, 220])
    assert verdict(name, study.goes_with(C, wandering)) == MISSED
    halves = np.concatenate([falling, falling[:, ::-1]])  # seeds that are not of one mind
    assert verdict(name, study.goes_with(C, halves)) in ("inconclusive", MISSED)


@pytest.mark.parametrize("name", [name for name in TABLE if name.endswith("-fixed")])
def test_a_claim_on_a_line_of_six_points_needs_more_than_a_tendency(name):
    c = np.linspace(0.02, 0.22, 6)
    assert verdict(name, study.goes_with(c, seeds_of(np.geomspace(500, 100, 6)))) == "as predicted"
    tendency = seeds_of([500, 120, 400, 300, 200, 100], noise=0)  # one chance order in eleven gets that far
    assert study.correlations(c, tendency) == pytest.approx([1 - 6 * 58 / 210] * 5)
    assert verdict(name, study.goes_with(c, tendency)) == "not as predicted"


def test_runs_that_never_get_there_are_last_together():
    steps = seeds_of([500, 500, 500, 300, 200, 100], noise=0)
    last = rank_correlation(range(6), [3, 3, 3, 2, 1, 0])
    np.testing.assert_allclose(study.correlations(np.arange(6), steps), last)


# --- variation of speed ---


def test_factor_by_hand():
    assert study.factor([[100.0, 200.0]]) == pytest.approx([2.0])
    # of 100, 200, 400 the pairs differ by 2, 4, 2
    assert study.factor([[100.0, 200.0, 400.0], [50.0, 50.0, 50.0]]) == pytest.approx([2 ** (4 / 3), 1.0])


def test_factor_does_not_grow_with_the_number_of_points():
    generator = np.random.default_rng(2)
    few, many = (np.log(study.factor(np.exp(generator.standard_normal((4000, n))))).mean() for n in (4, 12))
    assert few == pytest.approx(many, rel=0.03)


def test_relative_variation_by_hand():
    normal = [[100.0, 400.0]]
    assert study.relative_variation([[100.0, 200.0]], normal) == pytest.approx([0.5])
    assert study.relative_variation([[300.0, 300.0]], normal) == pytest.approx([0.0])
    # a normal curve on which nothing varies does not help the claim
    assert study.relative_variation([[100.0, 200.0]], [[500.0, 500.0]]) == pytest.approx([1.0])


def test_a_level_curve_on_which_runs_never_get_there_may_vary_more_than_it_seems():
    normal = seeds_of(np.geomspace(500, 100, 12))
    level, missing = np.full((5, 6), 900.0), np.full((5, 6), 1000.0)
    assert study.varies_less([level, level], normal, 1000).interval(0.95) == pytest.approx((0, 0))
    found = study.varies_less([level, missing], normal, 1000)
    assert found.value == pytest.approx(0) and found.interval(0.95) == pytest.approx((0, 0.5))


@pytest.mark.parametrize("name", [name for name in TABLE if "-level-" in name])
def test_a_claim_of_level_curves_holds_where_they_are_even_and_not_where_they_are_not(name):
    normal, even = seeds_of(np.geomspace(500, 100, 12)), seeds_of([105, 100, 103, 98, 102, 100])
    uneven = seeds_of(np.geomspace(400, 100, 6))
    assert verdict(name, study.varies_less([even, even], normal, 1000)) == HELD
    assert verdict(name, study.varies_less([even, uneven], normal, 1000)) != HELD
    assert verdict(name, study.varies_less([uneven, uneven], normal, 1000)) == MISSED
    never = np.full((5, 6), 1000.0)
    assert verdict(name, study.varies_less([never, never], normal, 1000)) == "inconclusive"


# --- runs to numbers ---


def many(losses):
    """A sweep of several points: (lr, seed, point, evaluation), the same on both parts."""
    axes = ("lr", "seed", "point", "evaluation")
    steps = np.broadcast_to(10 * np.arange(1, losses.shape[-1] + 1), (*losses.shape[:2], losses.shape[-1]))
    of = {name: (axes, losses) for name in ("validation_loss", "test_loss")}
    labels = {"lr": np.arange(losses.shape[0]), "seed": np.arange(losses.shape[1])}
    return xr.Dataset({**of, "steps": (("lr", "seed", "evaluation"), steps)}, labels)


def runs(losses):
    """A sweep of one point and one seed: ``losses`` by learning rate, (lr, evaluation)."""
    return many(np.asarray(losses, dtype=float)[:, None, None, :])


def test_measured_by_hand():
    found = study.measured(runs([[4, 3, 2], [3, 1, 2], [2, 1.5, 1.4]]), target=2.5)
    assert found["steps"].values.ravel().tolist() == [25.0, 10.0]  # untuned at the first rate, tuned at the third
    assert found["loss"].values.ravel().tolist() == [2.0, 1.0]  # tuned at the second
    assert found["lr_of_steps"].values.ravel().tolist() == [0, 2]
    assert found["lr_of_loss"].values.ravel().tolist() == [0, 1]
    assert not found["missed"].any() and found.attrs["length"] == 30


def test_runs_that_never_get_there_count_as_the_runs_length_and_are_tuned_by_loss():
    found = study.measured(runs([[4, 4, 4], [4, 3.5, 3.4], [4, np.nan, np.nan]]), target=1.0)
    assert found["steps"].values.ravel().tolist() == [30.0, 30.0] and found["missed"].all()
    assert found["lr_of_steps"].values.ravel().tolist() == [0, 1]
    assert found["loss"].values.ravel().tolist() == [4.0, 3.4]


def test_a_run_that_diverged_has_no_best_loss():
    assert np.isinf(study.measured(runs([[1.0, np.nan]]), target=0.5)["loss"]).all()


def test_a_tuned_rate_at_the_grids_edge_is_said():
    plan = study.plan(4, 3, -0.04, 0.1)
    losses = np.stack([np.full((1, len(plan.points), 2), loss) for loss in (3.0, 2.0, 1.0)])
    edge = study.Found(plan, study.measured(many(losses), target=0.5))
    assert edge.at_edge(study.NORMAL, "loss") == 4
    said = edge.remark("loss", study.TUNED, study.NORMAL)
    assert said == "at 4 of 4 points the tuned learning rate is the first or the last of the grid"
    assert edge.remark("loss", study.UNTUNED, study.NORMAL) == ""
    inside = study.Found(plan, study.measured(many(losses[[0, 2, 1]]), target=0.5))
    assert inside.remark("loss", study.TUNED, study.NORMAL) == ""


# --- the points ---


def test_the_points_of_a_plan():
    plan = study.plan(12, 6, -0.04, 0.1)
    assert len(plan.points) == 12 + 4 * 6 - 3 == len(set(plan.points))  # the default is on four curves
    assert study.DEFAULT in plan.points and plan.levels == ["C = 0.22", "C = 0.10"]
    np.testing.assert_allclose(plan.on("normal curve", plan.c), np.linspace(-0.04, plan.c.max(), 12), atol=1e-6)
    beta, gamma = np.transpose(plan.points)
    assert np.all(plan.on("γ = 0.9", gamma) == 0.9) and np.all(plan.on("β = 0.999", beta) == 0.999)


def test_measures_take_the_points_of_their_curve():
    plan = study.plan(12, 6, -0.04, 0.1)
    gamma = np.array(plan.points)[:, 1]
    losses = np.broadcast_to(gamma[:, None], (1, 2, len(gamma), 2))  # that γ alone decides
    found = study.Found(plan, study.measured(many(losses), target=0.0))
    assert found.order("normal curve", "loss", "untuned").value == -1
    assert found.order("β = 0.999", "loss", "untuned").value == -1
    assert found.order("γ = 0.9", "loss", "untuned").value == 0


# --- controls ---


def test_the_controls_fail_as_they_must_and_would_catch_a_broken_measure(monkeypatch):
    normal, even = seeds_of(np.geomspace(500, 100, 12)), seeds_of([105, 100, 103, 98, 102, 100])
    order = study.shuffled_order(C, normal, LIMITS["normal_limit"], 100)
    level = study.shuffled_curves([even, even], normal, 1000, study.HALF, 100)
    assert verdict("control-order", order) == verdict("control-level", level) == "fails, as it must"
    monkeypatch.setattr(study, "rank_correlation", lambda c, y: -0.9)  # a measure that sees order everywhere
    assert verdict("control-order", study.shuffled_order(C, normal, -0.5, 20)) == "CONTROL BROKEN"
    monkeypatch.setattr(study, "relative_variation", lambda *given: np.array([0.1, 0.2, 0.1, 0.2, 0.1]))
    assert (
        verdict("control-level", study.shuffled_curves([even, even], normal, 1000, study.HALF, 20)) == "CONTROL BROKEN"
    )


def test_together_is_alone_can_fail():
    assert (verdict("together-is-alone", 5e-7), verdict("together-is-alone", 0.1)) == ("holds", "VIOLATED")
