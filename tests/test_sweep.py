import json

import numpy as np
import pytest

from lab import experiments, files, fingerprint, records, sweep
from lab.experiments.k_adam import baseline_on_mnist1d
from lab.experiments.quadratic import quadratic_map

RUNS = [dict(optimizer="NAdam", lr=1e-3, seed=seed, steps=2, batch=10, every=1) for seed in range(3)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    runs = tmp_path / "results" / "runs"
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "RUNS", runs)
    monkeypatch.setattr(records, "PUBLISHED", tmp_path / "results" / "records")
    monkeypatch.setenv("KADAM_CACHE", "on")
    monkeypatch.setenv("KADAM_RECORDS", "use")
    monkeypatch.setenv("KADAM_WORKERS", "1")
    for name in ("KADAM_CLUSTER", "KADAM_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    records.forget()
    yield runs
    for remembered in (records.closure, records._rests_on):
        remembered.cache_clear()
    records.forget()


@pytest.fixture
def computed(monkeypatch):
    """Counts the runs that are computed (in this process, as there is one worker)."""
    counted = []
    original = sweep.compute

    def counting(*arguments):
        counted.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(sweep, "compute", counting)
    return counted


def equal(a, b):
    return all(a[name] == b[name] if isinstance(a[name], str) else np.array_equal(a[name], b[name]) for name in a | b)


def test_a_finished_run_is_not_computed_again(store, computed):
    first = sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    second = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    assert computed == [0, 1, 2]
    assert all(equal(a, b) for a, b in zip(first, second[:2], strict=True)) and not equal(second[0], second[1])
    assert second[0]["outcome"] == "finished" and second[0]["test_loss"].shape == (2,)


def test_processes_give_what_one_gives(store, monkeypatch):
    one = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    monkeypatch.setenv("KADAM_CACHE", "off")
    monkeypatch.setenv("KADAM_WORKERS", "2")
    two = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_run_without_data_needs_no_mark(store, computed, monkeypatch):
    run = dict(betas=[0.99], gammas=[0.9], lrs=[0.1], condition=10.0, steps=4, window=2)
    monkeypatch.setattr(records.data, "checksum", lambda name: pytest.fail("no data set is read"))
    first, again = (sweep.sweep(quadratic_map, [run], "test")[0] for _ in range(2))
    assert computed == [0] and equal(first, again)


def test_a_writer_that_was_killed_leaves_no_record(store, computed):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = store.glob("*.run")
    path.rename(path.with_name(f".{path.name}.a1b2c3"))  # written, not yet moved to its name
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0, 0] and path.exists()


def test_a_damaged_record_is_computed_again_and_named(store, computed, capsys):
    (right,) = sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = store.glob("*.run")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-50], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        (again,) = sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
        assert equal(right, again) and path.read_bytes() != damaged
        said = f"kadam: {path}: damaged or foreign (computed anew)"
        assert capsys.readouterr().err.count(said) == 1
    assert computed == [0] * 4


def test_a_record_under_the_name_of_another_run_is_not_taken(store, computed, capsys):
    first, second = sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    one, two = (records.path_of(records.asked(baseline_on_mnist1d, run)) for run in RUNS[:2])
    one.write_bytes(two.read_bytes())
    (again,) = sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert equal(first, again) and not equal(second, again) and computed == [0, 1, 0]
    assert "damaged or foreign" in capsys.readouterr().err


def test_no_flipped_byte_of_a_record_is_trusted(store):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = store.glob("*.run")
    whole = path.read_bytes()
    assert records.unpack(whole) is not None
    for position in range(0, len(whole), 7):
        flipped = whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        assert records.unpack(flipped) is None


def test_other_code_or_data_is_another_run(store, computed, monkeypatch):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    changed = fingerprint.Closure("changed", {}, frozenset(), ())
    for module, name, value in (
        (records, "closure", lambda name: changed),
        (records.data, "checksum", lambda name: "changed"),
        (records.provenance, "versions", lambda packages: {"torch": "changed"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            records._rests_on.cache_clear()
            sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
            sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")  # it has a record of its own now
        records._rests_on.cache_clear()
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0] * 4 and len(list(store.glob("*.run"))) == 4


def test_finished_runs_survive_a_failing_one(store, computed):
    with pytest.raises(ValueError, match="optimizer: 'Adam2'"):
        sweep.sweep(baseline_on_mnist1d, [*RUNS[:2], {**RUNS[0], "optimizer": "Adam2"}], "test")
    assert len(list(store.glob("*.run"))) == 2


def test_an_unknown_argument_is_refused_before_anything_runs(store, computed):
    with pytest.raises(TypeError, match="speed"):
        sweep.sweep(baseline_on_mnist1d, [RUNS[0], {**RUNS[1], "speed": 1}], "test")
    assert computed == []


def test_what_may_only_be_read_and_is_not_there_is_named(store, computed, monkeypatch):
    monkeypatch.setenv("KADAM_RECORDS", "only")
    with pytest.raises(records.RecordError) as caught:
        sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    assert "2 records are missing or no longer stand" in str(caught.value)
    assert "k_adam.baseline {" in str(caught.value) and "'seed': 1" in str(caught.value)
    assert "no record of it is published" in str(caught.value) and computed == []


def test_what_may_only_be_read_is_read_from_what_is_published(store, computed, monkeypatch):
    first = sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    records.publish("page", [records.find(records.asked(baseline_on_mnist1d, run)) for run in RUNS[:2]])
    for path in store.glob("*.run"):
        path.unlink()
    monkeypatch.setenv("KADAM_RECORDS", "only")
    again = sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    assert all(equal(a, b) for a, b in zip(first, again, strict=True)) and computed == [0, 1]

    monkeypatch.setattr(records.data, "checksum", lambda name: "changed")
    records._rests_on.cache_clear()
    with pytest.raises(records.RecordError, match=r"k_adam.baseline .*data: the checksum was \w+, is changed"):
        sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0, 1]


def test_what_is_published_may_be_left_alone(store, computed, monkeypatch):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    records.publish("page", [records.find(records.asked(baseline_on_mnist1d, RUNS[0]))])
    monkeypatch.setenv("KADAM_CACHE", "off")
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0]
    monkeypatch.setenv("KADAM_RECORDS", "off")
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0, 0]
    monkeypatch.setenv("KADAM_RECORDS", "on")
    with pytest.raises(records.RecordError, match="KADAM_RECORDS: 'on' .must be one of use, off, only"):
        sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")


def test_a_run_whose_record_was_damaged_on_the_way_is_an_error(store, monkeypatch):
    original = sweep.compute

    def damaging(index, *rest):
        index, packed = original(index, *rest)
        return index, packed if index != 1 else packed[:-1]

    monkeypatch.setattr(sweep, "compute", damaging)
    with pytest.raises(records.RecordError, match="k_adam.baseline .*'seed': 1.*: its record was damaged on the way"):
        sweep.sweep(baseline_on_mnist1d, RUNS, "test")


def test_a_process_with_other_code_than_the_one_that_asked_refuses(store):
    question = records.asked(baseline_on_mnist1d, RUNS[0])
    with pytest.raises(records.RecordError, match="k_adam.baseline: its code, data or a package changed"):
        sweep.compute(0, question, question.key(code="other"), None)


def test_an_argument_equal_to_the_default_is_the_same_question(store, computed):
    run = dict(betas=[0.99], gammas=[0.9], lrs=[0.1], condition=10.0, steps=4, window=2)
    first, again, other = sweep.sweep(quadratic_map, [run, {**run, "seed": 0, "eps": 1e-8}, {**run, "seed": 1}], "test")
    questions = [records.asked(quadratic_map, given) for given in (run, {**run, "seed": 0}, {**run, "seed": 1})]
    assert questions[0].id == questions[1].id != questions[2].id
    assert questions[0].arguments == questions[1].arguments and questions[2].arguments["seed"] == 1
    assert equal(first, again) and not equal(first, other)


def test_a_function_that_is_no_declared_run_is_refused(store):
    with pytest.raises(TypeError, match="must be declared by lab.experiments.run"):
        sweep.sweep(lambda x: {"x": x}, [{"x": 1}], "test")


def test_two_runs_cannot_have_one_name():
    with pytest.raises(ValueError, match="name: 'stable_region.quadratic' .is the run .*quadratic_map"):
        experiments.run("stable_region.quadratic", short={})(baseline_on_mnist1d)


VALUES = [
    None, True, 3, 0.1, -0.0, "x", [1, [2]], (1, (2,)), [(1,), [1]], {}, {"a": {"b": (1, [2.5])}}, float("inf"),
    {"tuple": [1]}, {"float": "nan"}, {"dict": {"a": 1}}, {"dict": {"tuple": (1,)}}, {"tuple": 1, "b": 2},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value):
    back = records.unplain(json.loads(json.dumps(records.plain(value), allow_nan=False)))
    assert repr(back) == repr(value)  # the types of what is inside, and the sign of zero


def test_no_two_values_look_alike():
    written = [json.dumps(records.plain(value), sort_keys=True) for value in [*VALUES, [1, (2,)], (1, [2]), 3.0, "3"]]
    assert len(set(written)) == len(written)
    assert repr(records.unplain(records.plain(float("nan")))) == "nan"
    assert records.plain(np.float64(0.5)) == 0.5 and type(records.plain(np.float64(0.5))) is float


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1: 2}}, {1, 2}, np.zeros(2), complex(1), b"x"], ids=repr)
def test_what_json_would_change_is_kept_out(store, value):
    with pytest.raises(TypeError, match="must be numbers, texts, lists, tuples and dicts with texts as keys"):
        records.plain(value)
    with pytest.raises(TypeError, match="must be numbers, texts"):
        sweep.sweep(baseline_on_mnist1d, [{**RUNS[0], "optimizer": value}], "test")


def test_a_page_is_told_what_was_asked_and_what_the_answers_were_made_from(store, tmp_path, monkeypatch):
    monkeypatch.setenv("KADAM_OUTPUT", str(tmp_path))
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    before, after = map(json.loads, (tmp_path / sweep.USED).read_text().splitlines())
    question = records.asked(baseline_on_mnist1d, RUNS[0])
    assert before == {"run": "k_adam.baseline", "arguments": records.plain(question.arguments), "id": question.id}
    assert after == {**before, **records.rests_on("k_adam.baseline"), "sha256": records.find(question).sha256}
