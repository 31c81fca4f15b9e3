import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CLAIM, write_claims

from lab import claims, files, pages
from lab.claims import ClaimError, Page, accepted, accepts, claim_of
from lab.statistics import Estimate, mean, share


def claim(**row):
    return claim_of({**CLAIM, "kind": "experiment", "accept": "0.9 … 1.1", **row})


def over(low, high, n=3):
    """An estimate with a fixed interval at 95 %, and one half as wide again above."""
    middle, half = (low + high) / 2, (high - low) / 2

    def interval(level):
        wide = half if level <= 0.95 else 1.5 * half
        return middle - wide, middle + wide

    return Estimate(middle, interval, n)


@pytest.fixture
def page_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KADAM_OUTPUT", raising=False)

    def made(*rows, **values):
        write_claims(tmp_path, *rows)
        page = Page("tiny")
        page.predict(**values)
        return page

    return made


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.95, 1.05), "reproduced at small scale"),
        ((0.85, 1.05), "inconclusive"),
        ((0.5, 1.5), "inconclusive"),
        ((1.2, 1.4), "not reproduced"),
        ((0.2, 0.4), "not reproduced"),
    ],
)
def test_the_whole_interval_decides_an_experiment(interval, verdict):
    assert claim().judged(over(*interval)).verdict == verdict


def test_what_fails_of_ours_is_not_called_the_papers():
    assert claim(whose="ours").judged(over(1.2, 1.4)).verdict == "not as predicted"
    assert claim(whose="ours").judged(over(0.95, 1.05)).verdict == "as predicted"
    assert claim(whose="harder").judged(over(1.2, 1.4)).verdict == "not reproduced"


def test_the_word_for_success_is_chosen_in_advance():
    assert claim(held="refined").judged(over(0.95, 1.05)).verdict == "refined"


def test_too_few_seeds_are_no_verdict_and_no_number():
    judged = claim(min_seeds="3").judged(over(0.95, 1.05, n=2))
    assert judged.verdict == "too few seeds" and claims.shown(judged) == "–"


def test_all_experiments_together_ask_for_more():
    judged = claim().judged(over(0.92, 1.08), family=20)
    assert judged.verdict == "reproduced at small scale" and judged.corrected_verdict == "inconclusive"
    assert judged.corrected == pytest.approx((0.88, 1.12))
    assert claim().judged(over(0.92, 1.08), family=1).corrected_verdict == "reproduced at small scale"


def test_the_family_is_the_pages_experiments(page_with):
    page = page_with({"kind": "experiment"}, {"name": "d", "kind": "experiment"}, {"name": "e"})
    values = [0.8, 1.0, 1.3]
    page.judge("c", mean(values))
    assert page.claims["c"].corrected == pytest.approx(mean(values).interval(0.975))


def test_a_claim_whose_premise_fails_is_not_decidable():
    premise = claim().judged(over(0.5, 1.5))
    judged = claim(name="d", presupposes="c").judged(over(0.95, 1.05), presupposed=premise)
    assert judged.verdict == judged.corrected_verdict == "not decidable" and not judged.has_held
    assert "presupposes c, which is inconclusive" in claims.said(judged)
    barely = claim().judged(over(0.92, 1.08), family=20)  # not jointly
    jointly = claim(name="d", presupposes="c").judged(over(0.97, 1.03), family=20, presupposed=barely)
    assert jointly.verdict == "reproduced at small scale" and jointly.corrected_verdict == "not decidable"
    held = claim().judged(over(0.95, 1.05))
    assert claim(name="d").judged(over(0.95, 1.05), presupposed=held).verdict == "reproduced at small scale"


def test_a_premise_stands_above_and_is_judged_before(page_with):
    rows = {"kind": "experiment"}, {"name": "d", "kind": "experiment", "presupposes": "c"}
    with pytest.raises(ClaimError, match="d: presupposes 'c' .must stand above it"):
        page_with(*reversed(rows))
    page = page_with(*rows)
    with pytest.raises(ClaimError, match="d: judged before c, which it presupposes"):
        page.judge("d", over(0.9, 1.1))


def test_what_holds_within_its_limits_and_not_exactly_says_so():
    assert "within ±8 %, and for certain not exactly" in claims.said(claim(predicted="1").judged(over(0.92, 0.96)))
    near = claim(predicted="1").judged(over(0.95, 0.995), family=9)  # jointly its interval holds 1
    assert "within ±5 %, and by this interval not exactly" in claims.said(near)
    zero = claim(predicted="0", accept="0 ± 0.1").judged(over(0.02, 0.05))
    assert "within ±0.05, and for certain not exactly" in claims.said(zero)
    assert claim(predicted="1", whose="ours").judged(over(0.92, 0.96)).verdict == "within its limits"
    assert claim(predicted="1").judged(over(0.95, 1.05)).remark == ""
    assert claim(predicted="").judged(over(0.92, 0.96)).remark == ""
    counted = Estimate(1.0, lambda level: (1.0, 1.0), 3, shown="4 of 4")
    assert claim(predicted="0.95").judged(counted).remark == ""


@pytest.mark.parametrize("kind", ["theorem", "parity"])
def test_a_false_theorem_is_said(kind):
    one = claim(kind=kind, accept="≤ 1.0", predicted="")
    assert one.judged(Estimate(1.0)).verdict == "holds" and not one.judged(Estimate(1.0)).broken
    assert one.judged(Estimate(1.0 + 1e-6)).verdict == "VIOLATED" and one.judged(Estimate(1.0 + 1e-6)).broken


def test_a_control_must_fail():
    assert claim(kind="control").judged(Estimate(0.0)).verdict == "fails, as it must"
    broken = claim(kind="control").judged(Estimate(1.0))
    assert broken.verdict == "CONTROL BROKEN" and broken.broken
    assert claim(kind="control").judged(over(0.0, 1.0)).verdict == "CONTROL BROKEN"  # touches success


def test_a_measurement_may_fail_and_an_illustration_cannot():
    assert claim(kind="measurement").judged(Estimate(1.0)).verdict == "reproduced at small scale"
    assert claim(kind="measurement", whose="ours").judged(Estimate(1.0)).verdict == "as predicted"
    missed = claim(kind="measurement", whose="ours").judged(Estimate(2.0))
    assert missed.verdict == "not as predicted" and not missed.broken
    shown = claim(kind="illustration", accept="", predicted="").judged(Estimate(2.0))
    assert shown.verdict == "shown, not judged" and not shown.is_prediction and not shown.has_held


def test_what_was_formed_after_its_runs_is_no_prediction():
    assert claim(known="trial").is_prediction and not claim(known="post hoc").is_prediction
    for kind in ("experiment", "measurement"):
        fitting = claim(known="post hoc", kind=kind).judged(over(0.95, 1.05))
        assert fitting.verdict == "fits, formed afterwards" and fitting.has_held
        assert claim(known="post hoc", kind=kind).judged(over(1.2, 1.4)).verdict == "not reproduced"
    assert claim(known="post hoc").judged(over(0.95, 1.05, n=2)).verdict == "too few seeds"


def test_no_judgement_without_prediction_and_no_prediction_without_judgement(page_with):
    page = page_with({})
    with pytest.raises(ClaimError, match="d: judged without a prediction"):
        page.judge("d", 1.0)
    with pytest.raises(ClaimError, match="never judged"):
        page.verdicts()


def test_nothing_is_predicted_or_judged_twice_or_after_a_sweep(page_with, tmp_path, monkeypatch):
    page = page_with({})
    with pytest.raises(ClaimError, match="predicted twice"):
        page.predict()
    page.judge("c", 1.0)
    with pytest.raises(ClaimError, match="judged twice"):
        page.judge("c", 1.0)
    monkeypatch.setenv("KADAM_OUTPUT", str(tmp_path))
    (tmp_path / "runs.jsonl").touch()
    with pytest.raises(ClaimError, match="predicted after an experiment"):
        page_with({})
    with pytest.raises(ClaimError, match="c: stands twice"):
        (tmp_path / "runs.jsonl").unlink()
        page_with({}, {})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accept": ""}, "accept: ''"),
        ({"accept": "about 1"}, "must be '≥ a'"),
        ({"accept": "2 … 1", "predicted": ""}, "accepts nothing"),
        ({"predicted": "5.0"}, "predicted 5.0 is not in accept"),
        ({"predicted": "five"}, "could not convert"),
        ({"kind": "guess"}, "kind 'guess'"),
        ({"whose": "mine"}, "whose 'mine'"),
        ({"known": "always"}, "known 'always'"),
        ({"held": "proved"}, "held 'proved'"),
        ({"statement": ""}, "statement and source"),
        ({"statement": "at {lr}"}, "a value in braces was not given"),
        ({"colour": "red"}, "columns"),
    ],
)
def test_wrong_predictions_are_refused(wrong, message):
    with pytest.raises(ClaimError, match=f"^c: .*{message}"):
        claim(**wrong)


def test_values_of_the_page_stand_for_names_in_braces(page_with):
    page = page_with({"statement": "at {lr:g}", "predicted": "{edge}", "accept": "{edge} ± 1"}, lr=1e-3, edge=38.0)
    (one,) = page.claims.values()
    assert (one.statement, one.predicted, one.accept) == ("at 0.001", 38.0, (37.0, 39.0))


def test_a_page_may_leave_out_what_it_does_not_test(page_with, tmp_path):
    write_claims(tmp_path, {}, {"name": "cifar-a"}, {"name": "cifar-b"})
    page = Page("tiny")
    page.predict(without=["cifar"])
    assert list(page.claims) == ["c"]


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("≤ 2", (None, 2.0)), ("≥ -0.5", (-0.5, None)), ("= 0", (0.0, 0.0)), ("1 ± 0.25", (0.75, 1.25)),
     ("1e-3 … 2E3", (1e-3, 2e3)), (" ≤1e-12 ", (None, 1e-12))],
)  # fmt: skip
def test_accepted_values_are_read(text, bounds):
    assert accepts(text) == bounds


@pytest.mark.parametrize(
    ("accept", "predicted", "shown"),
    [("1 ± 0.1", "1.0", "1 ± 0.1"), ("3 … 4", "3", "3 … 4"), ("≤ 2", "", "≤ 2"), ("≥ 0.5", "", "≥ 0.5"),
     ("= 0", "0", "= 0")],
)  # fmt: skip
def test_accepted_values_are_shown_as_they_are_written(accept, predicted, shown):
    assert accepted(claim(accept=accept, predicted=predicted)) == shown


@pytest.mark.parametrize(
    "value, interval", [(np.nan, (0, 1)), (np.inf, (0, np.inf)), (2.0, (0.0, 1.0)), (1.0, (np.nan,) * 2)]
)
def test_wrong_measurements_are_refused(value, interval):
    with pytest.raises(ClaimError, match="^c: measured"):
        claim().judged(Estimate(value, lambda level: interval, 3))


def test_an_experiment_without_interval_is_refused():
    with pytest.raises(ClaimError, match="judged by its interval"):
        claim().judged(Estimate(1.0, n=3))


def test_judged_claims_are_written_for_the_runner(page_with, tmp_path, monkeypatch):
    page = page_with({"kind": "experiment"})
    monkeypatch.setenv("KADAM_OUTPUT", str(tmp_path))
    page.judge("c", share(4, 5))
    (written,) = json.loads((tmp_path / "claims.json").read_text())
    assert (written["measured"], written["n"], written["shown"]) == (0.8, 5, "4 of 5")


def test_a_share_is_shown_in_words_with_per_cent():
    judged = claim(accept="≥ 0.5", predicted="").judged(share(10, 10))
    assert claims.measured(judged) == claims.brief(judged) == "10 of 10 [69 %, 100 %]".replace(" %", "%")


def test_a_remark_stands_beside_the_verdict(page_with):
    page = page_with({"kind": "experiment"})
    page.judge("c", over(0.92, 0.96), remark="2 of 9 rates are at the grid's edge")
    assert "not exactly; 2 of 9 rates are at" in claims.said(page.claims["c"])


def test_texts_take_numbers_and_verdicts_from_claims(page_with):
    page = page_with({"kind": "experiment"})
    with pytest.raises(ClaimError, match="c: is no judged claim"):
        page.filled("{c}")
    page.judge("c", over(0.95, 1.0625))
    assert page.filled("{c}, {c.value}: {c.verdict}.") == "1.01 [0.95, 1.06], 1.01: *reproduced at small scale*."
    with pytest.raises(ClaimError, match="d: is no judged claim"):
        page.filled("{d.verdict}")


def test_the_first_screen_is_filled_at_the_end(page_with, monkeypatch):
    put = {}
    monkeypatch.setattr(claims, "update_display", lambda content, display_id: put.update({display_id: content}))
    page = page_with({"kind": "experiment"})
    page.answer("It is {c.value}.")
    page.judge("c", over(0.95, 1.05))
    with pytest.raises(ClaimError, match="no figure for the first screen"):
        page.verdicts()
    page.figure = "image", "caption"
    page.verdicts()
    assert put["tiny-answer"].data == "It is 1." and put["tiny-figure"] == "image" and put["tiny-caption"] == "caption"
    assert "reproduced at small scale" in repr(put["tiny-verdicts"])


def test_the_summary_counts_what_must_hold_and_names_what_does_not():
    fine = [claim(kind=kind, name=kind).judged(Estimate(value)) for kind, value in (("theorem", 1.0), ("control", 9.0))]
    text = repr(claims.summary(fine))
    assert "1 theorems checked, 1 controls that fail" in text and "VIOLATED" not in text
    assert "VIOLATED" in repr(claims.summary([claim(kind="theorem").judged(Estimate(9.0))]))


def test_a_verdict_that_changes_with_the_profile_says_so():
    judged = [claim().judged(over(0.95, 1.05)), claim(name="d").judged(over(0.95, 1.05))]
    text = claims.differing(judged, {"c": "inconclusive", "d": "reproduced at small scale", "e": "holds"})
    assert "c (inconclusive, here reproduced at small scale)" in text and "d (" not in text
    assert claims.differing(judged, {}) == ""


@pytest.mark.parametrize("page", pages.names())
def test_every_committed_table_can_be_read(page):
    path = files.NOTEBOOKS / "claims" / f"{page}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        assert set(next(csv.reader(file))) == set(claims.COLUMNS)
    assert Path(path).read_bytes().count(b"\r") == 0 and len(claims.read(path)) > 5
