"""What decides page 04's verdicts: known answers, and for every claim an array that it passes and one that it fails."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import judgeable

from kadam import invariance
from kadam.invariance import LAWS, momentum_factor
from lab.claims import claim_of, read
from lab.files import ROOT
from lab.statistics import Estimate, mean
from lab.study import meta_adaptive as study
from lab.study.meta_adaptive import ARMS, SPHERE_LAWS

CLAIMS = read(ROOT / "notebooks" / "claims" / "04_meta_adaptive.csv")
ROWS = {row["name"]: row for row in CLAIMS}
VALUES = dict(gammas=4, large=0.99, equilibrium_steps=1500, most="2", least="0.5", half=150)
GAMMAS, SEEDS, LRS = [0.0, 0.5, 0.9, 0.99], [3, 5, 6, 8, 9], [0.001, 0.002, 0.004, 0.008]
NOISE = np.random.default_rng(0).normal(scale=0.003, size=(8, len(SEEDS)))


def verdict(name, found):
    """The verdict of a claim of the table on an estimate or a plain number."""
    claim = judgeable(claim_of(ROWS[name], VALUES))
    return claim.judged(found if dataclasses.is_dataclass(found) else Estimate(float(found))).verdict


def test_every_claim_of_the_table_can_be_read_and_presupposes_one_above_it():
    names = [row["name"] for row in CLAIMS]
    for row in CLAIMS:
        presupposed = claim_of(row, VALUES).presupposes
        assert not presupposed or names.index(presupposed) < names.index(row["name"])


# --- invariance ---


def test_cosine_and_inverse_error_have_known_answers():
    w, g = torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0])
    assert study.cosine(w, g) == 0 and study.cosine(w, 2 * w) == pytest.approx(1)
    assert study.inverse_error(g, g / 3, 3.0) == pytest.approx(0, abs=1e-7)
    assert study.inverse_error(g, g, 3.0) == pytest.approx(2)


def test_layers_hold_and_no_layer_does_not():
    tried = study.layers_tried()
    rows = {row[0]: row[1:] for row in study.layer_rows(tried)}
    assert rows["LayerNorm"] == ("0", "0", "0") and "0" not in rows["no layer"]
    for name in study.LAYERS:
        assert verdict("orthogonal", tried[name][0]) == verdict("inverse-gradient", tried[name][1]) == "holds"
        assert verdict("control-no-layer", tried[name][0]) == "CONTROL BROKEN"
    for name in study.BROKEN:
        assert verdict("orthogonal", tried[name][0]) == verdict("inverse-gradient", tried[name][1]) == "VIOLATED"
        assert verdict("control-no-layer", tried[name][0]) == "fails, as it must"


def test_a_weight_missed_or_found_in_vain_or_in_other_parts_counts():
    assert study.misfits({"a": 1, "b": 2}, {"a": 1, "b": 2}) == 0
    assert study.misfits({"a": 1, "b": 1}, {"b": 2, "c": 1}) == 3
    assert (verdict("finder", 0), verdict("finder", 1)) == ("holds", "VIOLATED")


# --- the laws where they must be exact ---


def test_the_lag_law_is_exact_under_sgd_and_the_others_are_not():
    readings = study.sgd_readings(steps=8)
    assert verdict("lag-exact", study.errors_of(readings, "lag").max()) == "holds"
    for law in ("paper", "momentum"):
        assert verdict("lag-exact", study.errors_of(readings, law).max()) == "VIOLATED"
    assert verdict("control-paper-sgd", study.errors_of(readings, "paper").min()) == "fails, as it must"
    assert verdict("control-paper-sgd", study.errors_of(readings, "lag").min()) == "CONTROL BROKEN"
    made_up = {
        "w": SimpleNamespace(predicted={"paper": torch.tensor([2.0, 3.0])}, squared_norm=torch.tensor([2.0, 4.0]))
    }
    assert study.errors_of(made_up, "paper") == pytest.approx([0.25])


def test_simulated_gradients_give_the_closed_forms_and_pulled_ones_do_not():
    free = study.simulated([0.0, 0.9], 1e-2, 0.3, size=300, steps=1200)
    pulled = study.simulated([0.0, 0.9], 1e-2, 0.3, pull=1.0, size=300, steps=1200)
    assert verdict("simulated-norm", study.furthest(free["norm"])) == "holds"
    assert verdict("simulated-rotation", study.furthest([free["once"], free["many"]])) == "holds"
    assert verdict("simulated-rotation", study.furthest(pulled["many"])) == "VIOLATED"
    assert verdict("simulated-norm", study.furthest(free["norm"] / momentum_factor([0.0, 0.9]))) == "VIOLATED"
    assert verdict("control-pull", study.closest(pulled["many"])) == "fails, as it must"
    assert verdict("control-pull", study.closest(free["many"])) == "CONTROL BROKEN"


def test_angles_and_ratios_have_known_answers():
    angle = 0.1 * np.arange(20)
    circle = np.stack([np.cos(angle), np.sin(angle)], -1)[:, None]
    assert study.rms_angle(circle, 3) == pytest.approx([0.3])
    assert (study.furthest([1.1, 0.8]), study.closest([1.1, 0.8])) == (0.8, 1.1)


# --- the norm ---


def made_up_norms(factor, off=0.0, of_lag=None, readout=0.5, paper=None):
    """Runs whose fitted factors are ``factor``, (gammas,), and whose laws are off by ``off`` (paper: ``paper``)."""
    axes, units = ("seed", "setting", "gamma"), ["first.weight", "second.weight", "readout.weight"]
    shape = (len(SEEDS), 2, len(GAMMAS), len(units))
    spread = (
        np.array([1.1, 0.9, 50.0]) * np.array([1.2, 0.8])[:, None, None]
    )  # units and settings; the read-out differs
    fitted = np.asarray(factor)[:, None] * spread * (1 + NOISE[0])[:, None, None, None]
    lag = np.broadcast_to(np.asarray(factor if of_lag is None else of_lag)[:, None] * spread, shape)
    errors = {law: (paper if law == "paper" and paper is not None else off) for law in LAWS}
    time = {law: np.ones((*shape[:3], 4, 3)) for law in LAWS}
    for law, error in errors.items():
        time[law][..., -1, :] += np.array([error, -error, readout])
    variables = {law: ((*axes, "time", "unit"), values) for law, values in time.items()}
    variables |= {"squared_norm": ((*axes, "time", "unit"), np.ones((*shape[:3], 4, 3)))}
    variables |= {name: ((*axes, "unit"), values) for name, values in (("fitted", fitted), ("fitted_lag", lag))}
    return xr.Dataset(variables, {"gamma": GAMMAS, "seed": SEEDS, "unit": units, "time": [0, 1, 2, 3]})


OURS, PAPERS = momentum_factor(GAMMAS), np.ones(len(GAMMAS))


@pytest.mark.parametrize("task", ["transformer", "perceptron"])
def test_the_factor_of_the_papers_law_and_that_of_ours(task):
    ours, papers = made_up_norms(OURS), made_up_norms(PAPERS)
    assert study.factor_at(ours, 0.9).value == pytest.approx(19, rel=0.01)
    assert verdict(f"{task}-paper", study.factor_at(papers, 0.9)) == "reproduced at small scale"
    assert verdict(f"{task}-paper", study.factor_at(ours, 0.9)) == "not reproduced"
    slopes = {name: mean(study.slopes(GAMMAS, study.factors(found))) for name, found in (("o", ours), ("p", papers))}
    assert slopes["o"].value == pytest.approx(1) and slopes["p"].value == pytest.approx(0, abs=1e-9)
    assert verdict(f"{task}-slope", slopes["o"]) == "refined"
    assert verdict(f"{task}-slope", slopes["p"]) == "not as predicted"


def test_a_factor_has_a_least_value_and_the_read_out_is_left_out():
    assert study.factors(made_up_norms(0 * OURS)).min() == study.LEAST_FACTOR
    assert study.hidden(made_up_norms(OURS)).unit.values.tolist() == ["first.weight", "second.weight"]


@pytest.mark.parametrize("task", ["transformer", "perceptron"])
def test_a_law_that_is_off_by_three_per_cent_holds_and_one_by_ten_does_not(task):
    near, far = (made_up_norms(OURS, off) for off in (0.03, 0.1))
    assert study.median_errors(near, "lag") == pytest.approx([0.03] * len(SEEDS))
    assert verdict(f"{task}-lag", mean(study.median_errors(near, "lag"))) == "refined"
    assert verdict(f"{task}-lag", mean(study.median_errors(far, "lag"))) == "not as predicted"


@pytest.mark.parametrize("task", ["transformer", "perceptron"])
def test_the_largest_gamma_against_the_lag_law(task):
    same, other = made_up_norms(OURS), made_up_norms(OURS, of_lag=OURS * [1, 1, 1, 1.3])
    assert study.over_lag_law(other).mean() == pytest.approx(1 / 1.3, rel=0.01)
    assert verdict(f"{task}-large", mean(study.over_lag_law(same))) == "refined"
    assert verdict(f"{task}-large", mean(study.over_lag_law(other))) == "not as predicted"


def test_the_controls_of_the_norm_laws():
    found, blind = made_up_norms(OURS, 0.01, paper=0.02), made_up_norms(OURS, 0.01, readout=0.01, paper=0.3)
    assert study.readout_error(found) == pytest.approx(0.5)
    assert verdict("control-readout", study.readout_error(found)) == "fails, as it must"
    assert verdict("control-readout", study.readout_error(blind)) == "CONTROL BROKEN"
    assert study.error_at(found, "paper", 0.0) == pytest.approx(0.02)
    assert verdict("control-gamma-0", study.error_at(found, "paper", 0.0)) == "fails, as it must"
    assert verdict("control-gamma-0", study.error_at(blind, "paper", 0.0)) == "CONTROL BROKEN"


def test_wrong_pairings_pass_where_the_factors_are_paired_wrongly():
    assert verdict("control-shuffled", study.passing_pairings(GAMMAS, OURS[:, None])) == "fails, as it must"
    assert verdict("control-shuffled", study.passing_pairings(GAMMAS, OURS[::-1, None])) == "CONTROL BROKEN"


# --- equilibrium and rotation ---


def made_up_calm(norm=(1, 1, 1, 1), once=(1, 1, 1, 1), many=1.0, end=1.0):
    """Runs whose norm and angles are these multiples of the closed forms; ``end``: largest first weights over least."""
    axes, scales, spans = ("scale", "seed", "gamma"), [0.5, 1.0, 2.0], [1, 150]
    noise = (1 + NOISE[0])[None, :, None] * np.ones((3, 1, len(GAMMAS)))
    u_squared = 7 * noise
    closed = invariance.equilibrium_squared_norm(u_squared, 1e-2, 0.3, np.array(GAMMAS))
    turns = invariance.rotation(1e-2, 0.3, np.array(GAMMAS)[:, None], np.array(spans))
    multiples = np.stack([np.array(once), np.full(len(GAMMAS), many)], -1)
    path = np.ones((3, len(SEEDS), len(GAMMAS), 5)) * noise[..., None]
    path[-1] *= end
    return xr.Dataset(
        {"u_squared": (axes, u_squared), "squared_norm": (axes, closed * np.array(norm) * noise),
         "turned": ((*axes, "span"), turns * multiples * noise[..., None]), "path": ((*axes, "step"), path)},
        {"gamma": GAMMAS, "scale": scales, "seed": SEEDS, "span": spans}, {"lr": 1e-2, "weight_decay": 0.3},
    )  # fmt: skip


def test_the_norm_in_equilibrium():
    own, paper = made_up_calm(), made_up_calm(norm=1 / OURS)
    assert study.norm_ratios(own).mean("seed").values == pytest.approx([1] * 4, abs=0.01)
    assert study.closed_norm(own, momentum=False).mean() < study.closed_norm(own).mean() / 10
    for found, held in ((own, "as predicted"), (paper, "not as predicted")):
        assert verdict("equilibrium", study.over_gamma(study.norm_ratios(found))) == held
        assert verdict("equilibrium-each", study.within(study.norm_ratios(found))) == held


def test_deviations_that_cancel_in_the_mean_are_counted():
    cancelling = study.norm_ratios(made_up_calm(norm=(1.25, 0.8, 1, 1)))
    assert verdict("equilibrium", study.over_gamma(cancelling)) == "as predicted"
    assert study.within(cancelling).shown == "2 of 4"
    assert verdict("equilibrium-each", study.within(cancelling)) == "not as predicted"
    near = study.within(np.ones((4, 5)) * 1.1 + NOISE[:4])
    assert near.interval(0.95)[0] == 0 and near.interval(0.95)[1] == 4
    assert study.within(np.ones((4, 1))).interval(0.95) == (0, 4)  # one seed: nothing is sure


def test_the_first_weights_are_forgotten_or_not():
    for end, held in ((1.02, "within its limits"), (1.3, "not as predicted")):
        assert study.forgotten(made_up_calm(end=end)) == pytest.approx([end] * len(SEEDS))
        assert verdict("forgotten", mean(study.forgotten(made_up_calm(end=end)))) == held


def test_the_angle_of_one_step_and_of_many():
    own, other = made_up_calm(), made_up_calm(once=(1.3, 1.3, 1.3, 1.3), many=0.4)
    for found, held in ((own, "as predicted"), (other, "not as predicted")):
        angles = study.angle_ratios(found)
        assert verdict("rotation-once", study.over_gamma(angles[0])) == held
        assert verdict("rotation-each", study.within(angles[0])) == held
        assert verdict("rotation-many", study.over_gamma(angles[-1])) == held
    assert study.angle_ratios(other).sel(span=150).mean() == pytest.approx(0.4, rel=0.01)


def test_spans_end_with_half_the_window():
    assert study.spans(300) == [1, 2, 5, 10, 20, 50, 100, 150] and study.spans(40) == [1, 2, 5, 10, 20]


# --- the sphere ---


def made_up_sphere(length, apart):
    """Paths that are ``length[law]`` times as long as the real one and end ``apart[law]`` of the way from it."""
    steps, weights = 3, 2
    grow = np.arange(1, steps + 1)[:, None] * np.ones(weights)
    real = grow * np.ones((len(SEEDS), 1, 1))
    per_law = {
        name: np.array([found.get(law, usual) for law in SPHERE_LAWS])[:, None, None] * grow
        for name, found, usual in (("length", length, 1.0), ("apart", apart, 0.3))
    }
    noisy = {name: values * (1 + NOISE[0])[:, None, None, None] for name, values in per_law.items()}
    return xr.Dataset(
        {name: (("seed", "law", "step", "weight"), values) for name, values in noisy.items()}
        | {name: (("seed", "step", "weight"), real) for name in ("travelled", "real_length")},
        {"law": list(SPHERE_LAWS), "seed": SEEDS},
    )


@pytest.mark.parametrize(("claim", "law"), [("passable", "nudged"), ("paper", "paper"), ("lag", "lag")])
def test_a_path_as_long_as_the_real_one_passes_and_a_longer_one_does_not(claim, law):
    good, bad = made_up_sphere({}, {}), made_up_sphere({law: 1.2}, {})
    held = {"paper": "reproduced at small scale", "lag": "refined", "nudged": "as predicted"}[law]
    missed = "not reproduced" if law == "paper" else "not as predicted"
    assert study.lengths(bad, law).mean() == pytest.approx(1.2, rel=0.01)
    assert verdict(f"sphere-{claim}", mean(study.lengths(good, law))) == held
    assert verdict(f"sphere-{claim}", mean(study.lengths(bad, law))) == missed


def test_if_the_turned_start_fails_the_papers_law_cannot_be_judged():
    passable = claim_of(ROWS["sphere-passable"], VALUES).judged(mean(1.5 + NOISE[0]))
    paper = claim_of(ROWS["sphere-paper"], VALUES).judged(mean(1 + NOISE[0]), presupposed=passable)
    assert paper.verdict == "not decidable"


def test_the_true_norm_is_exact_and_a_turned_start_is_seen():
    found = made_up_sphere({}, {"identity": 1e-9})
    assert verdict("sphere-exact", study.apart(found, "identity").max()) == "holds"
    assert verdict("sphere-exact", study.apart(found, "nudged").max()) == "VIOLATED"
    assert verdict("control-nudged", study.apart(found, "nudged").min()) == "fails, as it must"
    assert verdict("control-nudged", study.apart(found, "identity").min()) == "CONTROL BROKEN"


# --- the direct test ---


def made_up_test(loss, best=None):
    """Arms with these losses at the rate ``best[arm]`` (0.002), more elsewhere; test loss is validation loss + 0.1."""
    best = best or {}
    at = np.log([best.get(arm, 0.002) for arm in ARMS])[:, None]
    bowl = 0.5 * (np.log(LRS) - at) ** 2
    floor = np.array([loss.get(arm, 1.0) for arm in ARMS])[:, None] + NOISE[: len(ARMS)]
    values = floor[:, :, None, None] + bowl[:, None, :, None] + np.array([0.3, 0.0, 0.1])
    axes = ("arm", "seed", "lr", "evaluation")
    found = xr.Dataset({"validation_loss": (axes, values), "test_loss": (axes, values + 0.1),
                        "rms": (axes[:3], np.ones(values.shape[:3]))},
                       {"arm": list(ARMS), "seed": SEEDS, "lr": LRS})  # fmt: skip
    return study.with_losses(found, 10.0)


def compared(loss, name):
    return mean(study.comparisons(study.losses(made_up_test(loss)))[name])


USEFUL = {"layers, AdamW": 0.6, "no layers, 2-Adam": 0.7, "no layers, 2-Adam by tensor": 0.7, "layers, 2-Adam": 0.6}
USELESS = {"layers, AdamW": 0.6, "no layers, 2-Adam": 0.95, "no layers, 2-Adam by tensor": 0.95, "layers, 2-Adam": 0.4}
HARMFUL = {"layers, AdamW": 1.4, "no layers, 2-Adam": 1.2, "no layers, AdamW resized": 1.0}


@pytest.mark.parametrize("task", ["convnet", "text"])
def test_what_2_adam_gives_back(task):
    for name in ("back", "back-scalar", "specific"):
        assert verdict(f"{task}-{name}", compared(USEFUL, name)) == "reproduced at small scale"
        assert verdict(f"{task}-{name}", compared(USELESS, name)) == "not reproduced"
    for name in ("benefit", "wins", "not-size"):
        assert verdict(f"{task}-{name}", compared(USEFUL, name)) == "as predicted"
        assert verdict(f"{task}-{name}", compared(HARMFUL, name)) == "not as predicted"
    assert compared(USEFUL, "back").value == pytest.approx(0.3 - 0.2, abs=0.01)
    assert compared(USELESS, "specific").value == pytest.approx(0.2 - 0.025, abs=0.01)


@pytest.mark.parametrize("task", ["convnet", "text"])
def test_without_a_benefit_nothing_can_be_given_back(task):
    benefit = claim_of(ROWS[f"{task}-benefit"], VALUES).judged(compared({}, "benefit"))
    wins = claim_of(ROWS[f"{task}-wins"], VALUES).judged(compared(HARMFUL, "wins"))
    assert benefit.verdict == "inconclusive" and wins.verdict == "not as predicted"
    for name, presupposed in (("back", benefit), ("back-scalar", benefit), ("specific", wins)):
        claim = claim_of(ROWS[f"{task}-{name}"], VALUES)
        assert claim.presupposes == presupposed.name
        assert claim.judged(compared(USEFUL, name), presupposed=presupposed).verdict == "not decidable"


def test_the_tuned_rate_is_that_of_the_least_validation_loss_and_its_edge_is_said():
    found = made_up_test({}, {"layers, AdamW": 0.001, "no layers, 2-Adam": 0.008})
    assert study.tuned(found).values.tolist() == [0.001, 0.008, 0.002, 0.002, 0.002, 0.002]
    assert study.on_edge(found) == ["layers, AdamW", "no layers, 2-Adam"]
    assert study.losses(found).mean("seed").values == pytest.approx([1.1] * len(ARMS), abs=0.01)
    assert study.edge_remark(found, "benefit") == "tuned rate at the grid's edge: layers, AdamW"
    assert study.edge_remark(found, "not-size") == "tuned rate at the grid's edge: no layers, 2-Adam"
    assert study.edge_remark(made_up_test({}), "back") == ""
    assert verdict("rates-inside", len(study.on_edge(found))) == "not as predicted"
    assert verdict("rates-inside", len(study.on_edge(made_up_test({})))) == "as predicted"


def test_the_test_loss_is_that_of_the_least_validation_loss_and_divergence_counts_as_chance():
    axes, shape = ("arm", "seed", "lr", "evaluation"), (1, 1, 2, 3)
    validation, test = np.broadcast_to([3.0, 1.0, 2.0], shape).copy(), np.broadcast_to([0.5, 4.0, 0.1], shape).copy()
    validation[..., 1, 2:] = test[..., 1, 2:] = np.nan
    found = study.with_losses(xr.Dataset({"validation_loss": (axes, validation), "test_loss": (axes, test)}), 9.0)
    assert found.stopped.values.ravel().tolist() == [4.0, 9.0]
    assert found.validation.values.ravel().tolist() == [1.0, 9.0]


def test_what_is_planted_is_found():
    planted, nothing = made_up_test({}), made_up_test({}, {"layers, AdamW": 0.001})
    assert study.worst_found({"convnet": planted, "text": planted}) == 2
    assert study.worst_found({"convnet": nothing}) == 0
    assert verdict("control-planted", 2) == "fails, as it must" and verdict("control-planted", 1) == "CONTROL BROKEN"


# --- sweeps, with runs that are not computed ---


def test_sweeps_ask_for_the_page_s_runs_and_name_their_axes(monkeypatch):
    asked = []

    def sweep(run, calls, label):
        asked.extend(calls)
        found = []
        for call in calls:
            losses = np.full((2, 3), ord(call["arm"][0]) + call["seed"] / 100)
            found.append({"validation_loss": losses, "test_loss": losses, "rms": np.ones(2), "steps": np.arange(3)})
        return found

    monkeypatch.setattr("lab.grid.sweep", sweep)
    found = study.direct("convnet", [0.001, 0.002], [3, 5], 30, 10)
    assert [call["arm"] for call in asked] == [key for key in ARMS.values() for _ in range(2)]
    assert asked[0] == dict(arm="a", lrs=[0.001, 0.002], weight_decay=0.1, seed=3, steps=30, every=10)
    assert found.test_loss.sel(arm="no layers, AdamW", seed=5, lr=0.002).values == pytest.approx([99.05] * 3)
