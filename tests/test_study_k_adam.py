"""What decides page 05's verdicts: known answers, and for every claim an array that it passes and one that it fails."""

import dataclasses

import numpy as np
import pytest
import xarray as xr
from conftest import judgeable

from kadam import SCHEDULES
from lab.claims import claim_of, read
from lab.experiments import k_adam
from lab.files import ROOT
from lab.hostile import hostile_sequences, random_rates, ratio_to_bound
from lab.statistics import ahead, mean, within
from lab.study import k_adam as study
from lab.study.k_adam import LONG, ONE_LAG, PAIRS, TWOS, Sized, Task, named

ROWS = {row["name"]: row for row in read(ROOT / "notebooks" / "claims" / "05_k_adam.csv")}
LRS, SEEDS, RATE = [0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016], list(range(6)), 0.004
ALL = study.arms([1, 2, 10])
NOISE = np.random.default_rng(0).normal(scale=0.01, size=(len(ALL), len(SEEDS)))


def verdict(name, found):
    """The verdict of a claim of the table on an estimate, or on a number."""
    claim = judgeable(claim_of(ROWS[name], dict(shared_lr=0.001, most=10, cifar10_most=3)))
    return claim.judged(found if dataclasses.is_dataclass(found) else mean([found] * 9)).verdict


def number(name, value):
    """The same of a number without seeds."""
    claim = judgeable(claim_of(ROWS[name], dict(shared_lr=0.001, most=10, cifar10_most=3)))
    return claim.judged(study.Estimate(float(value))).verdict


def made_up(less_adam=None, best=None, accuracy=None):
    """Losses of 1 plus noise, ``less_adam[arm]`` more, each arm best at ``best[arm]``; accuracies in points of 100."""
    names = list(ALL)
    floor = np.array([1 + (less_adam or {}).get(name, 0.0) for name in names])[:, None] + NOISE
    centre = np.log([(best or {}).get(name, RATE) for name in names])[:, None]
    bowl = np.exp(0.1 * (np.log(LRS) - centre) ** 2)  # (arm, lr)
    losses = floor[:, None, :] * bowl[:, :, None]
    points = np.array([(accuracy or {}).get(name, 80.0) for name in names])[:, None, None] / 100 + NOISE[:, None] / 10
    axes = ("arm", "lr", "seed")
    return xr.Dataset(
        {"loss": (axes, losses), "validation": (axes, losses), "stopped": (axes, losses),
         "accuracy": (axes, np.broadcast_to(points, losses.shape)), "diverged": (axes, np.isnan(losses)),
         "steps": (axes, losses)},
        {"arm": names, "lr": LRS, "seed": SEEDS},
    )  # fmt: skip


BETTER, WORSE = {name: -0.2 for name in TWOS[:3]}, {name: 0.2 for name in TWOS[:2]}
COUNTS = ["k2", "transformer", "perceptron", "cifar10"]


@pytest.mark.parametrize(("lr", "tuning"), [(0.001, "untuned"), (None, "tuned")])
@pytest.mark.parametrize("task", COUNTS)
def test_three_schedules_ahead_hold_and_two_do_not(task, lr, tuning):
    few = {**WORSE, TWOS[2]: -0.2, TWOS[3]: -0.2}
    good, bad = study.count(made_up(BETTER), lr), study.count(made_up(few), lr)
    assert (good.value, bad.value) == (3, 2) and good.shown == "3 of 4"
    assert verdict(f"{task}-{tuning}", good) == "reproduced at small scale"
    assert verdict(f"{task}-{tuning}", bad) == "not reproduced"
    assert verdict(f"{task}-{tuning}", study.count(made_up(), lr)) == "inconclusive"


def test_a_tuned_rate_on_the_grids_edge_is_said_and_counted():
    data = made_up(BETTER, best={TWOS[3]: 0.0001, "one lag": 1.0, named("naive", 10): 0.0001})
    assert study.on_edge(data, PAIRS) == [TWOS[3], "one lag"]
    assert study.count(data).shown == f"3 of 4 ({TWOS[3]} at the grid's edge)"
    assert study.count(data, 0.001).shown.startswith("3 of 4") and "edge" not in study.count(data, 0.001).shown
    assert number("tuned-inside", len(study.on_edge(data, PAIRS))) == "not as predicted"
    assert number("tuned-inside", len(study.on_edge(made_up(), PAIRS))) == "as predicted"


def test_the_tuned_rate_is_that_of_the_least_validation_loss_not_of_the_test_loss():
    data = made_up(best={TWOS[0]: 0.001})
    data["loss"] = data.loss.isel(lr=slice(None, None, -1)).assign_coords(lr=LRS)
    assert study.tuned(data).sel(arm=TWOS[0]) == 0.001 and study.tuned(data).sel(arm="Adam") == RATE
    at = study.chosen(data)
    assert at.loss.sel(arm=TWOS[0]).values == pytest.approx(data.loss.sel(arm=TWOS[0], lr=0.001).values)
    assert study.chosen(data, 0.002).loss.sel(arm="Adam").values == pytest.approx(
        data.loss.sel(arm="Adam", lr=0.002).values
    )


@pytest.mark.parametrize("name", ["k2-untuned-sized", "k2-tuned-sized"])
def test_at_equal_size_the_four_schedules_are_counted_and_one_lag_is_not(name):
    differences = NOISE[:5] + np.array([-0.2, -0.2, -0.2, 0.2, -0.2])[:, None]
    found = Sized(differences, 0.031).count()
    assert (found.value, found.shown) == (3, "3 of 4 (sizes within 3 %)")
    assert verdict(name, found) == "reproduced at small scale"
    assert verdict(name, Sized(-differences, 0.0).count()) == "not reproduced"


@pytest.mark.parametrize(("name", "lr"), [("graceful-untuned", 0.001), ("graceful", None), ("cifar10-graceful", None)])
def test_losing_four_points_is_graceful_and_six_is_not(name, lr):
    def after(lost):
        return study.graceful(made_up(accuracy={named(s, 10): 80 - lost for s in SCHEDULES}), 10, lr)

    assert verdict(name, after(4)) == "reproduced at small scale"
    assert verdict(name, after(6)) == "not reproduced"
    assert study.lost(study.chosen(made_up(accuracy={named("exp", 10): 73}), lr), 10).mean(axis=1) == pytest.approx(
        [0, 0.07, 0, 0], abs=5e-3
    )


def test_what_layers_add_has_its_sign():
    plain, layers = study.chosen(made_up({TWOS[0]: -0.2})), study.chosen(made_up({TWOS[0]: 0.1}))
    added = study.added_by_layers(plain, layers)
    assert added.mean() == pytest.approx(np.log(1.1 / 0.8), abs=0.02)
    assert verdict("normalised", mean(added)) == "as predicted"
    assert verdict("normalised", mean(study.added_by_layers(layers, plain))) == "not as predicted"


def shifted(rates):
    return study.shifts(made_up(best={name: RATE * rate for name, rate in rates.items()}))


def test_shifts_find_the_rates_that_were_put_in():
    found = shifted({TWOS[0]: 0.3, "one lag": 0.7})
    assert found.sel(arm=[TWOS[0], "one lag", "Adam"]).mean("seed").values == pytest.approx(
        np.log2([0.3, 0.7, 1]), abs=0.02
    )


def test_rates_over_the_gain_hold_and_rates_that_know_nothing_of_it_do_not():
    gain = study.gains(study.only(ALL, PAIRS))
    assert gain["one lag"] == pytest.approx(gain["naive, k = 2"]) and gain["Adam"] == 1
    own, same = shifted({name: 1 / gain[name] for name in LONG}), shifted({})
    swapped = shifted(dict(zip(LONG, [1 / gain[name] for name in LONG[::-1]], strict=True)))
    for found, held in ((own, "as predicted"), (same, "not as predicted")):
        assert verdict("gain-sets-lr", within(study.gain_errors([found, found], gain), 1)) == held
    for found, held in ((own, "as predicted"), (swapped, "not as predicted")):
        assert verdict("gain-orders-lr", ahead(study.gain_order([found, found], gain))) == held


def test_lag_lowers_the_rate_or_does_not():
    less, more = shifted({"naive, k = 2": 0.1, "one lag": 0.3}), shifted({"naive, k = 2": 0.3, "one lag": 0.1})
    assert study.lag_lowers([less, less]).mean() == pytest.approx(np.log2(1 / 3), abs=0.02)
    assert verdict("lag-lowers-lr", mean(study.lag_lowers([less, less]))) == "as predicted"
    assert verdict("lag-lowers-lr", mean(study.lag_lowers([more, more]))) == "not as predicted"


def edge_runs(levels):
    """Full-batch runs that start a hundred times as high as they end, at ``levels``."""
    names, at = list(levels), [50, 100, 150, 200]
    values = np.array(list(levels.values()))[:, None, None] * np.array([100, 100, 1, 1])
    return xr.Dataset({"step": (("arm", "seed", "at"), values * np.exp(NOISE[: len(names), :, None]))},
                      {"arm": names, "seed": SEEDS, "at": at})  # fmt: skip


def test_runs_at_their_own_limits_hold_and_others_do_not():
    limit = study.limits(study.only(ALL, PAIRS))
    own = study.settled(edge_runs(limit), 200)
    assert study.over_limit(own, limit, PAIRS).mean(axis=1) == pytest.approx(np.zeros(6), abs=0.02)
    factor = {name: 2.5 * value for name, value in limit.items()}
    swapped = limit | dict(zip(LONG, [limit[name] for name in LONG[::-1]], strict=True))
    for levels, held in ((limit, "as predicted"), (factor, "not as predicted")):
        late = study.settled(edge_runs(levels), 200)
        assert verdict("lag-sets-edge", within(study.over_limit(late, limit), 1)) == held
    for levels, held in ((limit, "as predicted"), (swapped, "not as predicted")):
        late = study.settled(edge_runs(levels), 200)
        assert verdict("lag-orders-edge", ahead(study.edge_order(late, limit))) == held
    gain_sets_it = study.settled(edge_runs({**limit, "one lag": limit["naive, k = 2"]}), 200)
    for late, held in ((own, "fails, as it must"), (gain_sets_it, "CONTROL BROKEN")):
        assert number("control-edge", study.settled_over(late, limit, "one lag", "naive, k = 2")) == held


def test_one_lag_is_compared_with_the_best_of_four_by_validation():
    data = made_up({TWOS[1]: -0.1, "one lag": -0.2})
    assert study.best_of_four(data) == TWOS[1] and study.least(study.chosen(data), TWOS) == TWOS[1]
    assert study.less_best(data).mean() == pytest.approx(-0.1, abs=0.02)
    assert verdict("one-lag", mean(study.less_best(data))) == "as predicted"
    assert verdict("one-lag", mean(study.less_best(made_up({"one lag": 0.1})))) == "not as predicted"


@pytest.mark.parametrize("task", ["convnet", "transformer", "perceptron"])
def test_level_is_within_the_margin_of_the_table(task):
    row = claim_of(ROWS[f"level-{task}"])
    assert row.accept == (-study.LEVEL, study.LEVEL)

    def judged(difference):
        data = made_up()
        wave = xr.DataArray([0.002, -0.002] * 3, {"seed": SEEDS}, ["seed"])
        data["loss"] = 0 * data.loss + 1 + xr.where(data.arm == "one lag", difference + wave, 0)
        return verdict(f"level-{task}", mean(study.less_adam(study.chosen(data), ["one lag"])[0]))

    assert judged(0.0) == "as predicted"
    assert judged(0.2) == judged(-0.2) == "not as predicted"
    assert judged(0.02) == "inconclusive"


def test_the_same_interval_gets_the_same_word():
    assert [study.word(*ends) for ends in ((-0.02, 0.02), (0.001, 0.02), (-0.5, -0.1), (0.1, 0.5), (-0.1, 0.1))] == [
        "level", "level", "ahead", "behind", "undecided",
    ]  # fmt: skip
    assert [row[3] for row in study.compared(NOISE[:3] / 100 + np.array([[0], [-1], [1]]))] == [
        "level",
        "ahead",
        "behind",
    ]


def test_within_counts_the_sure_and_the_possible():
    found = within(NOISE[:3] + np.array([[0.0], [1.0], [-2.0]]), 1)
    assert (found.interval(0.95), len(NOISE[:3])) == ((1, 2), 3) and found.value in (1, 2)
    assert within(np.zeros((2, 1)), 1).interval(0.95) == (0, 2)  # one seed: nothing is sure


def test_values_in_the_order_of_a_theory_fall():
    values = np.array([[2.0], [3.0], [1.0]])
    assert (study.in_order(values, [20, 30, 10]) < 0).all()
    assert not (study.in_order(values, [10, 30, 20]) < 0).all()


def test_the_controls_of_the_count():
    found, missed = study.surely_ahead(NOISE[0] - 0.2), study.surely_ahead(NOISE[0] + 0.2)
    assert (found, missed) == (1, 0)
    assert number("control-same", missed) == number("control-planted", found) == "fails, as it must"
    assert number("control-same", found) == number("control-planted", missed) == "CONTROL BROKEN"
    assert study.surely_ahead(NOISE[0] - NOISE[1]) == 0
    assert (study.surely_ahead([-0.1]), study.surely_ahead([0.1])) == (1, 0)  # one seed: by the mean


def test_the_last_stages_bound_holds_and_the_first_ones_does_not():
    generator = np.random.default_rng(0)
    gradients, last = hostile_sequences(200, 60, generator)
    first = random_rates(200, generator)
    of_last, of_first = study.over_bounds(gradients, first, last)
    assert of_last == pytest.approx(ratio_to_bound(gradients, first, last)[1:].max())
    assert number("last-stage-bound", of_last) == "holds" and number("last-stage-bound", of_first) == "VIOLATED"
    assert number("control-first-bound", np.log10(of_first)) == "fails, as it must"
    assert number("control-first-bound", np.log10(of_last)) == "CONTROL BROKEN"
    assert study.over_bounds(gradients, last)[0] == study.over_bounds(gradients, last)[1] == pytest.approx(1, abs=0.1)


def test_limits_are_where_a_simulation_blows_up():
    adam = [False, True, True]
    assert study.settles([0.9], [39, 37, 1], 2000).tolist() == adam
    assert study.settles([], [2.1, 1.9, 0.5], 200).tolist() == adam  # gradient descent
    two = {"Adam": dict(k=1), "one lag": ONE_LAG}
    limit = study.limits(two)
    assert limit == pytest.approx({"Adam": 38, "one lag": 38})
    assert study.limits_met(two, limit) == 2
    off = study.limits_met(two, {name: 1.05 * value for name, value in limit.items()})
    assert off == 0 and number("limit-simulated", off) == "VIOLATED" and number("limit-simulated", 6) == "holds"


def test_the_gains_formula_needs_long_second_memories():
    arms = {name: ALL[name] for name in ("exp, k = 2", "scaled, k = 2")}
    long, short = (study.simulated_gain_error({name: arm}, 600) for name, arm in arms.items())
    assert number("gain-simulated", long) == "holds" and number("gain-simulated", short) == "VIOLATED"


def test_the_state_and_adamw():
    assert study.state_excess([1, 2]) == 0 and number("state-bytes", 0) == number("k1-is-adamw", 0) == "holds"
    assert number("state-bytes", 4) == number("k1-is-adamw", 1e-9) == "VIOLATED"


# --- sweeps, with runs that are not computed ---


@pytest.fixture
def swept(monkeypatch):
    """Runs whose losses and sizes tell which arm, learning rate and seed they are of."""
    asked = []

    def loss(member, seed):
        return member["k"] + 100 * member["lr"] + seed / 1000 + 0.2 * (member.get("schedule") == "exp")

    def sweep(run, calls, label):
        asked.extend(calls)
        found = []
        for call in calls:
            members = call.get("members") or [{"k": 1, "lr": call["lr"]}]
            losses = np.array([[loss(member, call["seed"])] * 2 for member in members])
            one = {name: losses if "members" in call else losses[0] for name in study.OBSERVED}
            one["update_rms"] = np.array([[0.2 * member["k"]] * 2 for member in members])
            found.append({**one, "steps": np.array([10, 20])})
        return found

    monkeypatch.setattr(study, "sweep", sweep)
    return asked


TASK = Task(k_adam.convnet_on_mnist1d, 1.3, 10, dict(steps=20, every=10))


@pytest.mark.parametrize("alone", [False, True])
def test_training_puts_every_run_in_its_place(swept, alone):
    data = study.trained("task", dataclasses.replace(TASK, alone=alone), ALL, [0.001, 0.002], [3, 5])
    assert data.loss.sel(arm="Adam", lr=0.002, seed=5).item() == pytest.approx(1.205)
    assert data.loss.sel(arm="exp, k = 2", lr=0.001, seed=3).item() == np.log(10)  # not worse than chance
    assert data.test_loss.sel(arm="exp, k = 10", lr=0.001, seed=3, step=20).item() == pytest.approx(10.303)
    assert all(call["steps"] == 20 for call in swept)


def test_rates_of_equal_size_are_used_and_their_runs_compared_with_the_right_ones(swept):
    data = study.trained("task", TASK, ALL, [0.0005, 0.001, 0.002, 0.004], [3, 5, 6])
    names = [TWOS[0], TWOS[1], TWOS[2], TWOS[3], "one lag"]
    rates = study.equal_sizes(data, 0.001, names)
    assert rates["one lag"] == pytest.approx(
        (0.002, 0.00025)
    )  # steps of k = 2 are twice as large; Adam is best at 0.0005
    del swept[:]
    as_adam, as_arm = study.sized(data, TASK, ALL, 0.001, names)
    assert [call["seed"] for call in swept] == [3, 5, 6] * 2 and swept[0]["members"][0] == {"k": 1, "lr": 0.002}
    assert as_arm.test_loss.sel(arm=TWOS[1], seed=5).values[0] == pytest.approx(2.2 + 0.025 + 0.005)
    found = study.at_equal_size(data, as_adam, as_arm, 0.001, names)
    assert found["2-Adam at 0.001"].differences[0] == pytest.approx([2.1 - 1.2] * 3)
    assert found["Adam tuned"].differences[4] == pytest.approx([2.025 - 1.05] * 3)
    assert [each.error for each in found.values()] == pytest.approx([0, 0])
    assert study.size_errors([1.1, 0.8], [1, 1]) == pytest.approx([0.1, 0.2])


def test_the_control_and_the_other_optimizers(swept):
    assert study.other_seeds(TASK, [1, 2], 0.001) == pytest.approx([1.1 + 1.001, 1.1 + 1.002])
    del swept[:]
    others = study.baselines([0.001, 0.002], [1, 2], TASK)
    assert others.rate.sel(arm="SGD, momentum", lr=0.002) == 0.2 and others.rate.sel(arm="NAdam", lr=0.001) == 0.001
    assert others.test_loss.sel(arm="NAdam", lr=0.002, seed=2).values == pytest.approx([1.202] * 2)
    assert {call["optimizer"] for call in swept} == set(k_adam.BASELINES)
    assert others.loss.sel(arm="SGD, momentum", lr=0.002, seed=1) == pytest.approx(np.log(10))
