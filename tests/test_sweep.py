import numpy as np
import pytest

from lab import files, sweep
from lab.experiments.k_adam import baseline_on_mnist1d
from lab.experiments.quadratic import quadratic_map

RUNS = [dict(optimizer="NAdam", lr=1e-3, seed=seed, steps=2, batch=10, every=1) for seed in range(3)]


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RUNS", tmp_path)
    monkeypatch.setenv("KADAM_CACHE", "on")
    monkeypatch.setenv("KADAM_WORKERS", "1")
    monkeypatch.delenv("KADAM_CLUSTER", raising=False)
    return tmp_path


@pytest.fixture
def computed(monkeypatch):
    """Counts the runs that are computed (in this process, as there is one worker)."""
    counted = []
    original = sweep._compute

    def counting(*arguments):
        counted.append(arguments[0])
        return original(*arguments)

    monkeypatch.setattr(sweep, "_compute", counting)
    return counted


def equal(a, b):
    return all(a[name] == b[name] if isinstance(a[name], str) else np.array_equal(a[name], b[name]) for name in a | b)


def test_a_finished_run_is_not_computed_again(records, computed):
    first = sweep.sweep(baseline_on_mnist1d, RUNS[:2], "test")
    second = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    assert computed == [0, 1, 2]
    assert all(equal(a, b) for a, b in zip(first, second[:2], strict=True)) and not equal(second[0], second[1])
    assert second[0]["outcome"] == "finished" and second[0]["test_loss"].shape == (2,)


def test_processes_give_what_one_gives(records, monkeypatch):
    one = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    monkeypatch.setenv("KADAM_CACHE", "off")
    monkeypatch.setenv("KADAM_WORKERS", "2")
    two = sweep.sweep(baseline_on_mnist1d, RUNS, "test")
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_run_without_data_needs_no_mark(records, computed, monkeypatch):
    run = dict(betas=[0.99], gammas=[0.9], lrs=[0.1], condition=10.0, steps=4, window=2)
    monkeypatch.setattr(sweep.data, "checksum", lambda name: pytest.fail("no data set is read"))
    first, again = (sweep.sweep(quadratic_map, [run], "test")[0] for _ in range(2))
    assert computed == [0] and equal(first, again)


def test_a_writer_that_was_killed_leaves_no_record(records, computed):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = records.glob("*.run")
    path.rename(path.with_name(f".{path.name}.a1b2c3"))  # written, not yet moved to its name
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0, 0] and path.exists()


def test_a_damaged_record_is_computed_again(records, computed):
    (right,) = sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = records.glob("*.run")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-50], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        (again,) = sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
        assert equal(right, again)
    assert computed == [0] * 4


def test_no_flipped_byte_of_a_record_is_trusted(records):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    (path,) = records.glob("*.run")
    whole = path.read_bytes()
    assert sweep._load(path) is not None
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert sweep._load(path) is None


def test_other_code_or_data_is_another_run(records, computed, monkeypatch):
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    monkeypatch.setattr(sweep.provenance, "module_version", lambda module: "changed")
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    monkeypatch.setattr(sweep.data, "checksum", lambda name: "changed")
    sweep.sweep(baseline_on_mnist1d, RUNS[:1], "test")
    assert computed == [0, 0, 0]


def test_finished_runs_survive_a_failing_one(records, computed):
    with pytest.raises(ValueError, match="optimizer: 'Adam2'"):
        sweep.sweep(baseline_on_mnist1d, [*RUNS[:2], {**RUNS[0], "optimizer": "Adam2"}], "test")
    assert len(list(records.glob("*.run"))) == 2


def test_an_unknown_argument_is_refused_before_anything_runs(records, computed):
    with pytest.raises(TypeError, match="speed"):
        sweep.sweep(baseline_on_mnist1d, [RUNS[0], {**RUNS[1], "speed": 1}], "test")
    assert computed == []
