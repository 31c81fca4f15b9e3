"""What a reproduction is told about itself, on answers known beforehand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLAIM

from lab import compare, experiments, files, pages, records, sweep
from lab.claims import claim_of
from lab.compare import Shared, difference, reason
from lab.statistics import Estimate

BASE = claim_of({**CLAIM, "kind": "experiment", "held": "reproduced"})
PUBLISHED = BASE.judged(Estimate(1.0, lambda level: (0.9, 1.1), 5))
OTHER = BASE.judged(Estimate(1.4, lambda level: (1.2, 1.6), 3))
MANY = ["seeds = 3 for 5"]
SAME, ROUNDED = Shared(4, 4, 4), Shared(4, 4, 3)


def test_a_verdict_that_rests_on_fewer_seeds_says_so():
    text = reason(OTHER, PUBLISHED, MANY, Shared(4, 2, 2))
    assert text.startswith("published *reproduced*, yours *inconclusive*; ")
    assert "yours rests on 3 seeds, the published one on 5" in text
    assert "differing: seeds = 3 for 5" in text and "2 of your runs are not published" in text
    assert "round" not in text and "something is wrong" not in text


def test_the_same_seeds_are_no_cause():
    assert "rests on" not in reason(replace(OTHER, n=5), PUBLISHED, ["lr = 1 for 2"], SAME)
    assert "rests on 0 seeds" in reason(replace(OTHER, n=None), PUBLISHED, MANY, SAME)


def test_intervals_are_set_beside_each_other():
    assert "the intervals do not overlap" in reason(OTHER, PUBLISHED, MANY, SAME)
    touching = replace(OTHER, interval=(1.1, 1.6))
    assert "the intervals overlap" in reason(touching, PUBLISHED, MANY, SAME)
    below = replace(OTHER, measured=0.3, interval=(0.1, 0.8))
    assert "the intervals do not overlap" in reason(below, PUBLISHED, MANY, SAME)
    assert "intervals" not in reason(replace(OTHER, interval=None), PUBLISHED, MANY, SAME)


def test_a_wider_interval_is_named_and_a_narrower_one_is_not():
    assert "your interval is 2.0 times as wide" in reason(OTHER, PUBLISHED, MANY, SAME)
    assert "your interval is" not in reason(replace(OTHER, interval=(1.35, 1.5)), PUBLISHED, MANY, SAME)
    point = replace(PUBLISHED, interval=(1.0, 1.0))
    assert "your interval is wider: the published one is a point" in reason(OTHER, point, MANY, SAME)
    assert "your interval is" not in reason(replace(OTHER, interval=(1.4, 1.4)), point, MANY, SAME)


def test_rounding_is_a_cause_where_runs_differ():
    assert "the machines round differently" in reason(OTHER, PUBLISHED, [], ROUNDED)
    assert "the machines round differently" not in reason(OTHER, PUBLISHED, MANY, SAME)


def test_the_same_runs_with_another_verdict_are_an_alarm():
    alarm = "from the same runs and the same page: something is wrong"
    assert alarm in reason(OTHER, PUBLISHED, [], SAME)
    assert alarm in reason(OTHER, PUBLISHED, [], Shared(4, 3, 3, timed=1))  # nobody can repeat a time
    for runs in (ROUNDED, Shared(4, 0, 0), Shared(4, 3, 3)):
        assert alarm not in reason(OTHER, PUBLISHED, [], runs)


def test_a_claim_that_must_hold_and_does_not_is_an_alarm():
    broken = replace(BASE, kind="theorem").judged(Estimate(2.0))
    assert "This claim must hold: something is wrong." in reason(broken, PUBLISHED, MANY, ROUNDED)


def test_what_runs_have_in_common_is_one_sentence():
    assert str(Shared(4, 0, 0)) == "4 runs, none with the arguments of a published one"
    assert str(Shared(4, 3, 3)) == "4 runs, 3 of them published: all agree to the last bit"
    told = str(Shared(4, 3, 1, 0, 2e-7, "a.run, error, {}"))
    assert told.endswith(
        "1 agree to the last bit; the largest difference is 2.0e-07 of the largest number (a.run, error, {})"
    )
    assert str(Shared(4, 3, 1)).endswith(
        "1 agree to the last bit; the others' numbers are not on this machine, or damaged"
    )


# --- difference ---

ONE = {"a": np.array([1.0, -4.0, 2.0]), "n": np.array([1, 2])}


def test_equal_arrays_do_not_differ():
    odd = {
        "a": np.array([np.nan, np.inf, -np.inf, 1.0]),
        "t": np.array(["x"]),
        "empty": np.zeros(0),
        "zero": np.zeros(2),
    }
    odd |= {"c": np.array([1 + 2j, complex(np.nan, 1)]), "point": np.asarray(np.nan), "yes": np.array([True])}
    assert difference(odd, {name: array.copy() for name, array in odd.items()}) == (0.0, "")


def test_a_difference_is_a_share_of_the_largest_number():
    off, where = difference(ONE, {**ONE, "a": np.array([1.0, -4.0, 2.5])})
    assert (off, where) == (pytest.approx(0.5 / 4), "a")
    # of the numbers that are finite
    with_nan = np.array([1.0, -4.0, 2.0, np.nan])
    off, _ = difference({"a": with_nan}, {"a": np.add(with_nan, [0, 0, 1, 0])})
    assert off == pytest.approx(1 / 4)
    assert difference({"a": np.array([0.25])}, {"a": np.zeros(1)}) == (0.25, "a")
    assert difference({"a": np.asarray(3.0)}, {"a": np.asarray(2.0)}) == (0.5, "a")
    assert difference({"a": np.array([1 + 1j])}, {"a": np.array([1 + 0j])}) == (1.0, "a")


def test_the_worst_array_is_named():
    one = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
    other = {"a": np.array([1.0, 1.1]), "b": np.array([1.0, 2.0]), "c": np.array([1.0, 1.2])}
    assert difference(one, other)[1] == "b"


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({**ONE, "a": np.array([np.nan, -4.0, 2.0])}, "a"),
        ({**ONE, "a": np.array([np.inf, -4.0, 2.0])}, "a"),
        ({**ONE, "a": ONE["a"][:2]}, "a"),
        ({**ONE, "a": ONE["a"][None]}, "a"),
        ({**ONE, "a": ONE["a"].astype(np.float32)}, "a"),
        ({**ONE, "n": np.array([1, 3])}, "n"),
        ({**ONE, "n": ONE["n"].astype(np.int32)}, "n"),
        ({"a": ONE["a"]}, "arrays ['n']"),
        ({**ONE, "b": np.ones(1)}, "arrays ['b']"),
    ],
)
def test_what_cannot_be_measured_is_infinitely_far(other, where):
    assert difference(ONE, other) == (math.inf, where)
    assert difference(other, ONE)[0] == math.inf


@pytest.mark.parametrize("other", [np.array(["up"]), np.array(["finished"]), np.array([1.0])])
def test_another_text_is_infinitely_far(other):
    assert difference({"t": np.array(["on"])}, {"t": other}) == (math.inf, "t")


def test_infinities_of_other_signs_are_infinitely_far():
    assert difference({"a": np.array([np.inf])}, {"a": np.array([-np.inf])}) == (math.inf, "a")
    assert difference({"a": np.array([np.inf])}, {"a": np.array([np.nan])}) == (math.inf, "a")


# --- pages ---


@pytest.fixture
def beside(house, monkeypatch):
    """Writes what is published and what was reproduced of one page, and compares."""
    monkeypatch.setattr(files, "ROOT", house)

    def entry(claims, **changed):
        return {"provenance": {"key": "k", "parameters": {"x": 1.0}, **changed},
                "claims": [claim.__dict__ for claim in claims]}  # fmt: skip

    def both(mine, theirs=(PUBLISHED,), runs=SAME, **changed):
        monkeypatch.setattr(compare, "shared", lambda page, profile: runs)
        files.write_json(house / "results" / "recorded" / "claims.json", {"tiny": entry(theirs)})
        files.write_json(house / "results" / "standard" / "claims.json", {"tiny": entry(mine, **changed)})
        return compare.compare("standard")

    return both


def test_equal_results_are_fine(beside):
    text, fine = beside([PUBLISHED])
    assert fine and "| c | 1 [0.9, 1.1]: reproduced | 1 [0.9, 1.1]: reproduced | yes |" in text
    assert "4 runs, 4 of them published: all agree to the last bit." in text
    assert text.endswith("1 of 1 verdicts are the same.\n") and "- **" not in text


def test_another_verdict_from_other_parameters_is_explained_and_fine(beside):
    text, fine = beside([OTHER], runs=Shared(4, 0, 0), parameters={"x": 2.0, "y": 1})
    assert fine and "| **no** |" in text and "differing: x = 2.0 for 1.0, y = 1 for None" in text
    assert "0 of 1 verdicts are the same." in text


def test_another_verdict_from_another_page_or_other_rounding_is_fine(beside):
    text, fine = beside([OTHER], key="other")
    assert fine and "differing: the page's cells, what they use, or versions" in text
    text, fine = beside([OTHER], runs=ROUNDED)
    assert fine and "the machines round differently" in text


def test_another_verdict_from_the_same_page_and_runs_is_not_fine(beside):
    text, fine = beside([OTHER])
    assert not fine and "something is wrong" in text


@pytest.mark.parametrize("theirs", [True, False])
def test_a_claim_that_must_hold_and_does_not_is_not_fine(beside, theirs):
    theorem = replace(BASE, kind="theorem")
    broken = theorem.judged(Estimate(2.0))
    published = theorem.judged(Estimate(1.0))
    text, fine = beside([broken], [published], parameters={"x": 2.0})
    assert not fine and "must hold" in text
    text, fine = beside([broken], [broken] if theirs else [])
    assert not fine and ("here and published. This claim must hold" if theirs else "not published") in text


def test_claims_of_one_side_alone_are_named(beside):
    text, fine = beside([PUBLISHED, replace(OTHER, name="new")], [PUBLISHED, replace(OTHER, name="gone")])
    assert fine and "**new**: not published." in text and "**gone**: published, and not yours." in text
    assert "1 of 1 verdicts are the same." in text


def test_a_published_page_that_was_not_run_is_not_fine_and_an_unpublished_one_is(beside, house):
    beside([PUBLISHED])
    (house / "results" / "standard" / "claims.json").unlink()
    text, fine = compare.compare("standard")
    assert not fine and "Not compared: it has no finished claims here." in text
    beside([PUBLISHED])
    (house / "results" / "recorded" / "claims.json").unlink()
    text, fine = compare.compare("standard")
    assert fine and "Not compared: it has no finished claims in recorded/claims.json." in text


def test_the_comparison_is_printed_and_written(beside, house, capsys):
    text, _ = beside([PUBLISHED])
    assert compare.write("standard")
    assert (house / "results" / "standard" / "COMPARISON.md").read_text() == text
    assert capsys.readouterr().out == f"{text}\nwritten to results/standard/COMPARISON.md\n"


# --- runs ---

RUN = dict(betas=[0.99], gammas=[0.9], condition=10.0, steps=6, window=4)


@pytest.fixture
def three(house, monkeypatch):
    """Three published runs, which a page at standard asked for too; its own records are here."""
    monkeypatch.setattr(files, "ROOT", house)
    run = experiments.all_runs()["stable_region.quadratic"]
    questions = [records.asked(run.function, {**RUN, "lrs": [lr]}) for lr in (0.1, 0.2, 0.3)]
    own = [records.unpack(sweep.compute(0, q, q.key(), records.path_of(q))[1]) for q in questions]
    folder = pages.kept("tiny", "standard")
    folder.mkdir(parents=True)
    lines = [
        {"run": record.run, "arguments": records.plain(record.arguments), "id": record.id, "sha256": record.sha256}
        for record in own
    ]
    (folder / sweep.USED).write_text("".join(json.dumps(line) + "\n" for line in lines))
    records.publish("tiny", own)
    return own


def changed(record, add):
    name = next(name for name, array in record.arrays.items() if array.dtype.kind == "f" and np.isfinite(array).all())
    return name, replace(record, arrays={**record.arrays, name: record.arrays[name] + add})


def test_the_same_runs_agree_to_the_last_bit(three):
    assert compare.shared("tiny", "standard") == Shared(3, 3, 3)
    assert compare.shared("tiny", "standard").same


def test_only_runs_with_the_same_arguments_are_compared(three):
    records.publish("tiny", three[:2])
    found = compare.shared("tiny", "standard")
    assert found == Shared(3, 2, 2) and not found.same


def test_the_farthest_run_is_named_with_its_arguments(three):
    name, far = changed(three[1], 1.0)
    records.publish("tiny", [changed(three[0], 1e-9)[1], far, three[2]])
    found = compare.shared("tiny", "standard")
    assert (found.runs, found.shared, found.equal) == (3, 3, 1) and not found.same
    largest = np.abs(three[1].arrays[name]).max()
    assert found.farthest == pytest.approx(1 / largest)
    assert found.where.startswith(f"stable_region.quadratic, {name}, ") and '"lrs": [0.2]' in found.where


def test_runs_that_are_kept_nowhere_are_counted_and_not_measured(three, monkeypatch):
    records.publish("tiny", [changed(three[0], 1.0)[1], *three[1:]])
    monkeypatch.setenv("KADAM_CACHE", "off")
    found = compare.shared("tiny", "standard")
    assert found == Shared(3, 3, 2) and "not on this machine" in str(found)


def test_measurements_of_time_are_left_out(three, monkeypatch):
    records.publish("tiny", [changed(record, 1.0)[1] for record in three])
    run = experiments.all_runs()["stable_region.quadratic"]
    monkeypatch.setitem(experiments.RUNS, run.name, replace(run, timed=True))
    found = compare.shared("tiny", "standard")
    assert found == Shared(3, 0, 0, timed=3) and found.same


def test_a_run_that_is_no_longer_declared_is_no_reason_to_stop(three, monkeypatch):
    records.publish("tiny", [changed(three[0], 1.0)[1], *three[1:]])
    monkeypatch.setattr(compare.experiments, "all_runs", dict)
    assert compare.shared("tiny", "standard") == Shared(3, 3, 2)


def test_a_page_that_swept_nothing_has_no_runs_in_common(house):
    assert compare.shared("tiny", "standard") == Shared(0, 0, 0)
