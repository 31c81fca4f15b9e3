from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from kadam.flow import Flow
from lab.claims import AFTERWARDS, HELD, claim_of, read
from lab.files import NOTEBOOKS
from lab.statistics import mean
from lab.study import continuous_time as study

ROWS = {row["name"]: row for row in read(Path(NOTEBOOKS) / "claims" / "01_continuous_time.csv")}
STEPS, SEEDS = 21, 10
ALL = np.ones(SEEDS, dtype=bool)


def verdict(name, estimate):
    """The verdict of a claim in the page's table, if what it presupposes has held."""
    claim = claim_of(ROWS[name], dict(lr=3e-4, edge_lr=5e-3, steps=STEPS))
    found = estimate if not isinstance(estimate, float) else study.Estimate(estimate)
    return claim.judged(found).verdict


def errors(*last):
    """Errors that grow linearly to ``last``, one run each; (seeds, steps)."""
    return np.outer(last, np.linspace(0, 1, STEPS))


def within(error, came=ALL, limit=study.LIMIT):
    return study.seeds_of(study.largest(error, came) <= limit)


TRACKS = ("track-adam", "track-adam-paper", "track-adamw", "track-adamw-paper", "track-2-adam")


@pytest.mark.parametrize("name", TRACKS)
def test_a_flow_tracks_if_it_stays_within_a_hundredth_in_most_seeds(name):
    good, bad = errors(*[0.009] * SEEDS), errors(*[0.011] * SEEDS)
    assert verdict(name, within(good)) in HELD
    assert verdict(name, within(bad)) in ("not as predicted", "not reproduced")
    half = errors(*[0.009] * 5, *[0.011] * 5)
    assert verdict(name, within(half)) == "inconclusive" and within(half).shown == "5 of 10"
    assert verdict(name, within(good[:5], ALL[:5])) == "inconclusive"  # five seeds cannot decide


def test_a_flow_that_gave_up_does_not_track_however_near_it_was():
    early = errors(*[0.001] * SEEDS)
    early[:, 12:] = np.nan
    assert np.isinf(study.largest(early, ~ALL)).all()
    assert verdict("track-adam", within(early, ~ALL)) == "not as predicted"
    assert study.largest(early, ALL) == pytest.approx(np.full(SEEDS, 0.001 * 11 / 20))
    assert list(study.done(["reached end", "evaluation limit"])) == [True, False]


def test_the_control_with_swapped_rates_breaks_if_nothing_is_seen():
    def control(*last):
        return verdict("control-swapped", study.counted(study.largest(errors(*last), ALL[: len(last)]) <= study.LIMIT))

    assert control(3.0) == control(*[3.0] * 9, 0.001) == "fails, as it must"
    assert control(*[0.001] * SEEDS) == "CONTROL BROKEN"


def curves(offset=0.0):
    """16 straight lines to -1 ... 1, (seeds, steps, curves), and the same off by ``offset`` of the figure's height."""
    solid = np.linspace(0, 1, STEPS)[None, :, None] * np.linspace(-1, 1, 16) + 7.0
    solid = np.repeat(solid, SEEDS, axis=0)
    return solid, solid + 2 * offset * np.linspace(0, 1, STEPS)[None, :, None]


@pytest.mark.parametrize("name", ["figure-adam", "figure-adamw"])
def test_lines_of_a_figure_overlap_up_to_a_hundredth_of_its_height(name):
    off = study.off_in_figure(*curves(0.008), ALL)
    assert off == pytest.approx(np.full(SEEDS, 0.008))
    assert verdict(name, study.seeds_of(off <= study.LIMIT)) == "reproduced at small scale"
    assert verdict(name, study.seeds_of(study.off_in_figure(*curves(0.02), ALL) <= study.LIMIT)) == "not reproduced"
    assert verdict(name, study.seeds_of(study.off_in_figure(*curves(), ~ALL) <= study.LIMIT)) == "not reproduced"


def test_a_figure_against_itself_a_twentieth_later_is_off_by_a_fortieth_of_its_height():
    late = study.off_when_late(curves()[0])  # the height is that of the run without its last step
    assert late == pytest.approx(np.full(SEEDS, 1 / 20 / (2 * 19 / 20)))
    assert verdict("control-shift", study.counted(late <= study.LIMIT)) == "fails, as it must"
    assert verdict("control-shift", study.counted(np.zeros(SEEDS) <= study.LIMIT)) == "CONTROL BROKEN"


def test_matched_memory_is_closer_only_by_a_factor_of_five():
    one = np.full(SEEDS, 0.1)
    assert verdict("track-closer", study.seeds_of(study.closer(one, 5.1 * one))) == "refined"
    assert verdict("track-closer", study.seeds_of(study.closer(one, 4.9 * one))) == "not as predicted"
    assert list(study.closer([np.inf, np.inf, 1.0], [np.inf, 1.0, np.inf])) == [False, False, True]


def test_first_beyond_is_the_first_step_above_the_limit_or_where_it_gave_up():
    error = np.array([[np.nan, 0.0, 0.02, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, np.nan, np.nan], [0.0, 0.0, 0.0, 0.0]])
    first = study.first_beyond(error, [True, True, False, False], 0.01)
    assert list(first) == [2, np.inf, 2, 4]


def test_batches_are_judged_by_which_flow_is_off_first():
    early, late = (study.first_beyond(errors(*[last] * SEEDS), ALL, study.LIMIT) for last in (0.09, 0.019))
    never = study.first_beyond(errors(*[0.001] * SEEDS), ALL, study.LIMIT)
    assert early[0] == 3 and late[0] == 11 and np.isinf(never).all()
    assert verdict("batches", study.seeds_of(early < late)) == "as predicted"
    assert verdict("batches", study.seeds_of(late < early)) == "not as predicted"
    assert verdict("batches", study.seeds_of(never < never)) == "not as predicted"


AT = np.tile([5, 10, 15, 20], (SEEDS, 1))
RISES, STAYS = (np.tile(k, (SEEDS, 1)) for k in ([1.0, 20.0, 45.0, 30.0], [0.1, 0.1, 0.2, 0.1]))


@pytest.mark.parametrize(("name", "edge"), [("half-reached", 19.0), ("edge-reached", 38.0)])
def test_k_comes_to_the_edge_if_one_measurement_is_there(name, edge):
    assert verdict(name, study.seeds_of(study.comes_to(RISES, edge))) == "as predicted"
    assert verdict(name, study.seeds_of(study.comes_to(STAYS, edge))) == "not as predicted"
    assert study.comes_to([[1.0, edge]], edge).all() and not study.comes_to([[1.0, edge - 0.1]], edge).any()


RISING = xr.Dataset({"at": (("seed", "point"), AT), "sharpness": (("seed", "point"), RISES)})


@pytest.mark.parametrize(
    ("name", "edge", "limit"),
    [("track-half", 19.0, 0.01), ("smooth-paper", study.PAPER_EDGE, 0.01), ("track-edge", 38.0, 0.05)],
)
def test_errors_are_judged_up_to_the_last_measurement_before_the_edge(name, edge, limit):
    last = 10 if edge == 38.0 else 5
    held, missed = AFTERWARDS if "paper" in name else "as predicted", "not as predicted"
    for factor, words in ((0.9, held), (1.1, missed)):
        error = errors(*[factor * limit * (STEPS - 1) / last] * SEEDS)
        assert study.largest_until(error, AT, RISES, edge) == pytest.approx(np.full(SEEDS, factor * limit))
        assert verdict(name, study.within_until(error, RISING, edge, limit)) == words
    gone = errors(*[0.0] * SEEDS)
    gone[:, last:] = np.nan
    assert np.isinf(study.largest_until(gone, AT, RISES, edge)).all()
    assert np.isinf(study.largest_until(gone[:, :last], AT, RISES, edge)).all()
    assert (study.largest_until(errors(*[1.0] * SEEDS), AT, 40 + RISES, edge) == 0.25).all()  # there from the first on


def test_what_no_seed_can_tell_is_not_decidable():
    reached = study.comes_to(STAYS, 19.0)
    presupposed = claim_of(ROWS["half-reached"], dict(lr=1.0, edge_lr=1.0)).judged(study.seeds_of(reached))
    found = study.seeds_of(study.largest_until(errors(*[0.0] * SEEDS), AT, STAYS, 19.0) <= 0.01, reached)
    claim = claim_of(ROWS["track-half"], dict(lr=1.0, edge_lr=1.0)).judged(found, presupposed=presupposed)
    assert claim.verdict == "not decidable" and found.shown == "none to ask"


def test_a_flow_is_lost_if_it_is_off_at_the_end_or_gave_up():
    def lost(error, came):
        return study.seeds_of(~(study.at_the_end(error, came) <= study.COARSE), study.comes_to(RISES, study.EDGE))

    assert verdict("lost-at-edge", lost(errors(*[0.06] * SEEDS), ALL)) == "as predicted"
    assert verdict("lost-at-edge", lost(errors(*[0.04] * SEEDS), ALL)) == "not as predicted"
    assert verdict("lost-at-edge", lost(errors(*[0.04] * SEEDS), ~ALL)) == "as predicted"


def test_bends_are_alike_on_a_smooth_path_and_opposite_on_a_zigzag():
    steps = np.arange(100.0)
    smooth, zigzag = np.sin(steps / 30), (-1.0) ** steps
    assert study.bends_alike(np.stack([smooth, zigzag])[..., None]) == pytest.approx([1, -1], abs=0.05)


COUNTS = [100, 200, 400]
MEASURED = ("order-matched", "order-k-adam", "order-rmsprop", "order-first", "order-paper", "order-rates")


@pytest.mark.parametrize("name", MEASURED)
def test_an_order_is_the_power_of_the_learning_rate(name):
    first, second = (study.order(COUNTS, 3.0 * np.array(COUNTS, dtype=float) ** -power) for power in (1, 2))
    assert (first, second) == pytest.approx((1, 2))
    good, bad = (first, second) if name in MEASURED[3:] else (second, first)
    word = AFTERWARDS if name in MEASURED[:3] else "as predicted"
    assert verdict(name, good) == word and verdict(name, bad) == "not as predicted"


def test_fresh_orders_are_judged_by_their_mean():
    spread = np.linspace(-0.1, 0.1, SEEDS)
    assert verdict("order-fresh", mean(2 + spread)) == "as predicted"
    assert verdict("order-fresh", mean(1 + spread)) == "not as predicted"


def test_orders_of_every_pair_and_model_and_their_table():
    found = xr.DataArray(
        np.array(COUNTS, dtype=float) ** -np.array([1.0, 2.0])[:, None] * np.ones((1, 2, 1)),
        {"pair": [study.LONG], "model": ["one", "two"], "count": COUNTS},
    )
    assert study.orders_of(found).values == pytest.approx(np.array([[1, 2]]))
    assert study.order_rows(found) == [("one", "1.00", "2.5e-03"), ("two", "2.00", "6.3e-06")]
    assert study.gain(found, "one", "two") == pytest.approx(np.log10(400))
    assert verdict("gain", 2.1) == "as predicted" and verdict("gain", 1.9) == "not as predicted"


def test_without_the_mass_of_the_first_step_the_order_is_one():
    lost, kept = (
        study.order(COUNTS[:2], study.off(COUNTS[:2], [study.PAIRS[study.LONG]], kind=kind, weight_decay=1.0))
        for kind in (study.Massless, Flow)
    )
    assert verdict("control-mass", lost) == "fails, as it must" and verdict("control-mass", kept) == "CONTROL BROKEN"


def test_a_change_of_sign_costs_an_order():
    through, beside = (
        study.order(COUNTS, study.off(COUNTS, [study.Stage(0.8, 0.9)], study.straight(offset))) for offset in (0.5, 1.5)
    )
    assert (
        verdict("control-sign", through) == "fails, as it must" and verdict("control-sign", beside) == "CONTROL BROKEN"
    )


def test_mass_and_lag_agree_for_matched_memory_alone():
    assert verdict("mass-and-lag", study.mass_and_lag_difference()) == "holds"
    for memory in ("rates", "paper"):
        assert verdict("mass-and-lag", study.mass_and_lag_difference(memory)) == "VIOLATED"


def test_growth_is_the_largest_root_of_the_recursion():
    for k in (45.0, 60.0):
        roots = np.roots([1, -(1.9 - 0.1 * k), 0.9])
        assert study.growth(k) == pytest.approx(np.log(np.abs(roots).max()), rel=0.01)
    assert study.growth(37.0) < 0 < study.growth(39.0)
    assert study.growth(2.0, "paper") < 0 < study.growth(2.3, "paper")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("edge-adam", 37.9, 19.0),
        ("edge-paper", 2.12, 38.0),
        ("edge-matched", -0.04, 0.01),
        ("sharpness-known", 0.98, 0.5),
    ],
)
def test_the_edges_could_have_come_out_otherwise(name, good, bad):
    assert verdict(name, good) == "holds" and verdict(name, bad) == "VIOLATED"


def test_power_iteration_finds_the_largest_curvature(monkeypatch):
    assert verdict("sharpness-known", study.known_sharpness()) == "holds"
    few = study.sharpness
    monkeypatch.setattr(study, "sharpness", lambda *arguments: few(*arguments, products=1))
    assert verdict("sharpness-known", study.known_sharpness()) == "VIOLATED"


def test_gradients_are_counted_and_a_flow_that_is_off_is_refused(monkeypatch):
    assert verdict("evaluations", 100.0) == "as predicted" and verdict("evaluations", 400.0) == "not as predicted"
    assert 10 < study.evaluations_for(20, within=0.1) < 100
    with pytest.raises(RuntimeError, match="flow"):
        study.evaluations_for(20, within=0.0)


def test_the_summary_counts_and_takes_medians_of_those_that_came():
    error = np.stack([errors(0.001, 0.02), errors(0.001, 0.02)])
    error[1, 1, 11:] = np.nan
    runs = xr.Dataset(
        {"error": (("arm", "seed", "step"), error), "evaluations": (("arm", "seed"), [[10, 20], [30, 40]]),
         "outcome": (("arm", "seed"), [["reached end"] * 2, ["reached end", "diverged"]])},
        {"arm": ["adam", "2-adam"], "seed": [0, 1]},
    )  # fmt: skip
    assert study.worst(runs).values == pytest.approx(np.array([[0.001, 0.02], [0.001, np.inf]]))
    assert study.summary_rows(runs) == [
        ("Adam, matched memory", "1 of 2", "0 of 2", "1.1e-02", "11", "15"),
        ("2-Adam, matched memory", "1 of 2", "1 of 2", "1.0e-03", "11", "35"),
    ]


def test_the_table_of_the_edge_says_when_k_and_the_error_rise():
    flow = xr.Dataset(
        {"error": (("seed", "step"), errors(*[0.1] * SEEDS)), "outcome": ("seed", ["reached end"] * SEEDS),
         "discrete": (("seed", "step", "parameter"), curves()[0] + np.sin(np.arange(STEPS) / 5)[:, None])},
    )  # fmt: skip
    ((label, k, there, lost, bends, gave_up),) = study.edge_rows({"η": (flow, RISING)})
    assert (label, k, there, lost) == ("η", "45.0 (45.0 … 45.0)", "10 (10 … 10)", "11 (11 … 11)")
    assert bends.startswith("+") and gave_up == "0 of 10"
    flat = RISING.assign(sharpness=(("seed", "point"), STAYS))
    assert study.edge_rows({"η": (flow, flat)})[0][2] == "never"
