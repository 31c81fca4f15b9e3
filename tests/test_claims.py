import json

import pytest

from lab.claims import ClaimError, Page, accepted


def page_with(kind="replication", accept=(0.9, 1.1), **more):
    page = Page("test")
    page.predict("c", "a statement", source="test", kind=kind, accept=accept, **more)
    return page


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
def test_the_whole_interval_decides_a_replication(interval, verdict):
    page = page_with()
    page.judge("c", sum(interval) / 2, interval, seeds=3)
    assert page.claims["c"].verdict == verdict


def test_the_word_for_success_is_chosen_in_advance():
    page = page_with(held="refined")
    page.judge("c", 1.0, (0.95, 1.05), seeds=3)
    assert page.claims["c"].verdict == "refined"


def test_too_few_seeds_are_no_verdict(capsys):
    page = page_with(min_seeds=3)
    page.judge("c", 1.0, (1.0, 1.0), seeds=2)
    assert page.claims["c"].verdict == "too few seeds"
    page.verdicts()
    assert "1.000" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["theorem", "parity"])
def test_a_false_theorem_is_said(kind, capsys):
    page = page_with(kind, accept=(None, 1.0))
    page.judge("c", 1.0)
    assert page.claims["c"].verdict == "holds" and not page.claims["c"].broken
    page = page_with(kind, accept=(None, 1.0))
    page.judge("c", 1.0 + 1e-6)
    assert page.claims["c"].verdict == "VIOLATED" and page.claims["c"].broken
    page.verdicts()
    assert "VIOLATED" in capsys.readouterr().out


def test_a_control_must_fail():
    page = page_with("control")
    page.judge("c", 0.0)
    assert page.claims["c"].verdict == "fails, as it must"
    page = page_with("control")
    page.judge("c", 1.0)
    assert page.claims["c"].verdict == "CONTROL BROKEN" and page.claims["c"].broken


def test_a_control_whose_interval_touches_success_is_broken():
    page = page_with("control")
    page.judge("c", 0.5, (0.0, 1.0))
    assert page.claims["c"].verdict == "CONTROL BROKEN"


def test_no_judgement_without_prediction_and_no_prediction_without_judgement():
    with pytest.raises(ClaimError, match="judged without a prediction"):
        Page("test").judge("c", 1.0)
    with pytest.raises(ClaimError, match="never judged"):
        page_with().verdicts()


def test_nothing_is_predicted_or_judged_twice():
    page = page_with()
    with pytest.raises(ClaimError, match="predicted twice"):
        page.predict("c", "other", source="test", accept=(0, 100))
    page.judge("c", 2.0, (2.0, 2.0), seeds=3)
    with pytest.raises(ClaimError, match="judged twice"):
        page.judge("c", 1.0, (1.0, 1.0), seeds=3)
    with pytest.raises(ClaimError, match="predicted after another claim was judged"):
        page.predict("late", "hindsight", source="test", accept=(1.9, 2.1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"accept": (None, None)},
        {"accept": (2, 1)},
        {"predicted": 5.0},
        {"kind": "guess"},
        {"held": "proved"},
    ],
)
def test_wrong_predictions_are_refused(wrong):
    with pytest.raises(ClaimError, match="^c: "):
        page_with(**wrong)


@pytest.mark.parametrize(
    "numbers",
    [(float("nan"), (0, 1)), (float("inf"), (0, float("inf"))), (2.0, (0.0, 1.0)), (1.0, (float("nan"),) * 2)],
)
def test_wrong_measurements_are_refused(numbers):
    with pytest.raises(ClaimError, match="^c: measured"):
        page_with().judge("c", *numbers, seeds=3)


def test_a_replication_without_interval_is_refused():
    with pytest.raises(ClaimError, match="judged by its interval"):
        page_with().judge("c", 1.0, seeds=3)


def test_judged_claims_are_written_for_the_runner(tmp_path, monkeypatch):
    monkeypatch.setenv("KADAM_OUTPUT", str(tmp_path))
    page_with().judge("c", 1.0, (0.95, 1.05), seeds=4)
    (claim,) = json.loads((tmp_path / "claims.json").read_text())
    assert (claim["measured"], claim["interval"], claim["seeds"]) == (1.0, [0.95, 1.05], 4)


@pytest.mark.parametrize(
    ("accept", "predicted", "shown"),
    [((0.9, 1.1), 1.0, "1 ± 0.1"), ((3, 4), 3, "3 … 4"), ((None, 2), None, "≤ 2"), ((0.5, None), None, "≥ 0.5")],
)
def test_accepted_values_in_the_table(accept, predicted, shown):
    assert accepted(page_with(accept=accept, predicted=predicted).claims["c"]) == shown
