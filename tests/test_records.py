"""A record is trusted if it is whole, answers the question, and was made from what the answer rests on now."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import experiments, files, records
from lab.records import Published, Record, RecordError

RUN = "stable_region.quadratic"
OTHER = "k_adam.edge_of_stability"
ARRAYS = {
    "error": np.array([1.0, np.nan, -0.0]),
    "names": np.array(["a", "bc"]),
    "count": np.array(3),
    "empty": np.ones(0),
}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PUBLISHED", tmp_path / "records")
    monkeypatch.setattr(files, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("KADAM_CACHE", "on")
    monkeypatch.delenv("KADAM_RECORDS", raising=False)
    records.forget()
    yield tmp_path / "records"
    records.forget()


def question(steps=3, run=RUN, **given):
    function = experiments.all_runs()[run].function
    arguments = dict(betas=[0.9], gammas=[0.9], lrs=[0.1], condition=10.0) if run == RUN else dict(k=1, seed=0, every=1)
    return records.asked(function, {**arguments, "steps": steps, **given})


def record(asked=None, arrays=ARRAYS, **made):
    found = records.computed(asked or question(), arrays, 1.0)
    return dataclasses.replace(found, made={**found.made, **made})


def same(one, other):
    return (one.run, one.arguments, one.made, one.sha256) == (other.run, other.arguments, other.made, other.sha256)


def test_what_is_published_is_found_again():
    written = [record(), record(question(4, eps=float("inf")), {"x": np.arange(6).reshape(2, 3)})]
    records.publish("page", written)
    assert all(
        same(records.find(question_of), one) for question_of, one in zip(map(asked_of, written), written, strict=True)
    )
    assert records.find(question(5)) is None
    assert set(records.find(question()).result) == set(ARRAYS) and records.find(question()).result["count"] == 3


def asked_of(one):
    return records.Asked(experiments.all_runs()[one.run], one.arguments)


def test_published_files_can_be_read_without_this_project(store):
    records.publish("page", [record()])
    manifest = json.loads((store / "page" / "manifest.json").read_text())
    (entry,) = manifest["records"]
    with np.load(store / "page" / f"{entry['run']}.npz") as arrays:
        assert arrays[f"{entry['id']}/count"] == 3 and entry["arguments"]["steps"] == 3


def test_the_same_arrays_give_the_same_bytes_in_any_order(store):
    def content():
        return {path.name: path.read_bytes() for path in (store / "page").iterdir()}

    one, two = record(), record(question(4))
    records.publish("page", [one, two])
    first = content()
    records.publish("page", [two, dataclasses.replace(one, arrays=dict(reversed(ARRAYS.items())))])
    assert content() == first
    records.publish("page", [one])
    assert content() != first


def test_publishing_replaces_what_was_published(store):
    records.publish("page", [record(), record(question(run=OTHER))])
    records.publish("page", [record(question(4))])
    assert sorted(path.name for path in (store / "page").iterdir()) == ["manifest.json", f"{RUN}.npz"]
    assert records.find(question()) is None and records.find(question(4)) is not None


def test_no_flipped_byte_and_no_cut_of_a_published_file_is_trusted(store, capsys):
    records.publish("page", [record()])
    path = store / "page" / f"{RUN}.npz"
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    harmless = 0
    for content in [*damaged, whole[:-1], whole[:-30], whole[: len(whole) // 2], b""]:
        path.write_bytes(content)
        records.forget()
        found = records.find(question())
        if found is None:
            assert f"page/{RUN}.npz" in capsys.readouterr().err
        else:  # a byte that no reader looks at, such as a date
            assert found.sha256 == record().sha256
            harmless += 1
    assert harmless < len(damaged) / 2


def test_a_record_under_the_name_of_another_is_not_trusted(store, capsys):
    records.publish("page", [record(), record(question(4), {"x": np.ones(3)})])
    manifest = store / "page" / "manifest.json"
    content = json.loads(manifest.read_text())
    one, two = content["records"]
    one["arguments"], two["arguments"] = two["arguments"], one["arguments"]
    manifest.write_text(json.dumps(content))
    records.forget()
    assert records.find(question()) is None and records.find(question(4)) is None
    assert "damaged or foreign" in capsys.readouterr().err


def test_an_altered_number_is_not_trusted(store):
    records.publish("page", [record()])
    path = store / "page" / f"{RUN}.npz"
    with np.load(path) as found:
        arrays = {name: found[name] for name in found.files}
    arrays[f"{question().id}/count"] = np.array(4)
    path.write_bytes(records.npz(arrays))
    records.forget()
    assert records.find(question()) is None


@pytest.mark.parametrize("what", ["manifest.json", f"{RUN}.npz"])
def test_a_folder_where_a_file_should_be_is_named(store, capsys, what):
    records.publish("page", [record()])
    (store / "page" / what).unlink()
    (store / "page" / what).mkdir()
    records.forget()
    try:
        assert records.find(question()) is None
        said = capsys.readouterr().err
    except RecordError as error:
        said = str(error)
    assert what in said


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "null",
        "[]",
        "{}",
        '{"records": [{}]}',
        '{"records": 3}',
        '{"records": [{"id": "a", "run": "b"}]}',
    ],
)
def test_a_manifest_that_is_none_is_named(store, content):
    records.publish("page", [record()])
    (store / "page" / "manifest.json").write_text(content)
    records.forget()
    with pytest.raises(RecordError, match=r"manifest\.json: not a manifest"):
        records.find(question())


@pytest.mark.parametrize("part", ["codes", "circumstances"])
def test_a_manifest_that_lacks_a_part_is_named(store, part):
    records.publish("page", [record()])
    path = store / "page" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: []}))
    records.forget()
    with pytest.raises(RecordError, match=r"manifest\.json: not a manifest"):
        records.find(question())


def test_equivalences_that_are_no_json_are_named(store):
    records.publish("page", [record()])
    (store / records.EQUIVALENCES).write_text("[")
    records.forget()
    with pytest.raises(RecordError, match=records.EQUIVALENCES):
        records.find(question())


def test_a_record_of_this_machine_is_found_again_and_no_damage_is_trusted(capsys):
    path = records.path_of(question())
    packed = records.pack(record())
    for damage in (packed[:-1], packed[:40] + b"x" + packed[41:], b"", records.pack(record(question(4)))):
        files.write(path, damage)
        assert records.find(question()) is None
        assert path.name in capsys.readouterr().err
    files.write(path, packed)
    assert same(records.find(question()), record())


def test_a_folder_in_place_of_a_record_of_this_machine_is_named():
    records.path_of(question()).mkdir(parents=True)
    with pytest.raises(RecordError, match=records.path_of(question()).name):  # before the run is computed
        records.find(question())


# --- whether it stands ---


def test_a_record_stands_for_what_it_was_made_from():
    now = record().made
    assert records.stands(now, RUN) and records.why_not(now, RUN) == []
    for part, other in (("code", "0" * 64), ("data", "1" * 64), ("versions", {**now["versions"], "torch": "1.0"})):
        assert not records.stands({**now, part: other}, RUN) and records.why_not({**now, part: other}, RUN)


def test_it_is_said_why_a_record_does_not_stand():
    now = record().made
    definitions = {**now["definitions"], "kadam.update.advance": "0" * 16, "kadam.update.gone": "1" * 16}
    del definitions["kadam.update.output"]
    moved = {name.replace("kadam.stages.", "kadam.elsewhere."): text for name, text in definitions.items()}
    versions = {**now["versions"], "torch": "1.0", "scipy": "1.2"}
    made = {**now, "code": "0" * 64, "data": "abc", "versions": versions, "definitions": moved}
    assert records.why_not(made, RUN) == [
        "data: the checksum was abc, is None",
        "versions: scipy was 1.2, is not used",
        f"versions: torch was 1.0, is {now['versions']['torch']}",
        "changed: kadam.update.advance",
        "no longer used, or renamed: kadam.update.gone",
        "new, or renamed: kadam.update.output",
    ]


def test_an_old_record_is_not_found_and_only_mode_says_why():
    definitions = {**record().made["definitions"], "kadam.update.advance": "0" * 16}
    records.publish("page", [record(code="0" * 64, definitions=definitions)])
    assert records.find(question()) is None
    assert "changed: kadam.update.advance" in str(records.missing([question()]))
    assert "no record of it is published" in str(records.missing([question(9)]))


def equivalences(store, *chain, run=RUN):
    entries = [{"run": run, "old": old, "new": new} for old, new in itertools.pairwise(chain)]
    files.write(store / records.EQUIVALENCES, json.dumps(entries))
    records.forget()


def test_a_record_stands_through_a_chain_of_equivalent_codes(store):
    now = record().made["code"]
    records.publish("page", [record(code="a")])
    assert records.find(question()) is None
    equivalences(store, "a", "b", now)
    assert same(records.find(question()), record(code="a"))
    equivalences(store, "a", "b", "a", now)  # there and back again
    assert records.find(question()) is not None
    for broken in [("b", now), ("a", "b"), (now, "b", "a"), ("a", "b", "c")]:
        equivalences(store, *broken)
        assert records.find(question()) is None


def test_an_equivalence_is_of_one_run(store):
    records.publish("page", [record(code="a")])
    equivalences(store, "a", record().made["code"], run=OTHER)
    assert records.find(question()) is None


def test_an_equivalence_excuses_neither_data_nor_versions(store):
    now = record().made
    equivalences(store, "a", now["code"])
    assert records.stands({**now, "code": "a"}, RUN)
    assert not records.stands({**now, "code": "a", "data": "other"}, RUN)
    assert not records.stands({**now, "code": "a", "versions": {}}, RUN)


def test_a_record_of_this_machine_stands_through_an_equivalence(store):
    old = record(code="a")
    files.write(files.RUNS / f"{question().key('a')}.run", records.pack(old))
    assert records.find(question()) is None
    equivalences(store, "a", record().made["code"])
    assert same(records.find(question()), old)


def test_the_mode_decides_whether_published_records_count(monkeypatch):
    records.publish("page", [record()])
    monkeypatch.setenv("KADAM_RECORDS", "off")
    assert records.find(question()) is None
    monkeypatch.setenv("KADAM_RECORDS", "none")
    with pytest.raises(RecordError, match="KADAM_RECORDS: 'none'"):
        records.find(question())


# --- what is asked ---

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
names = st.text() | st.sampled_from(["tuple", "dict", "float"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(names, inner, max_size=4),
)


def exact(value):
    """``value`` with nothing that compares equal though it differs."""
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(exact, value)]
    if isinstance(value, dict):
        return ["dict", *sorted((name, exact(part)) for name, part in value.items())] if value else "no dict"
    return [type(value).__name__, repr(value)]


@given(values)
def test_plain_values_come_back_as_they_were(value):
    assert repr(exact(records.unplain(json.loads(json.dumps(records.plain(value)))))) == repr(exact(value))


@given(values, values)
def test_two_values_never_look_alike(one, other):
    alike = json.dumps(records.plain(one), sort_keys=True) == json.dumps(records.plain(other), sort_keys=True)
    assert alike == (repr(exact(one)) == repr(exact(other)))


@pytest.mark.parametrize("value", [np.ones(2), {1: 2}, {1, 2}, np.int64(3), 1j, b"x", float])
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(TypeError, match="must be numbers"):
        records.plain([value])


def test_a_default_that_is_given_asks_the_same_question():
    assert question(eps=1e-8).id == question().id != question(eps=1e-7).id
    assert question(eps=1e-8).arguments == question().arguments


def test_a_changed_default_dates_a_record(tmp_path):
    """The default is no part of the question, but of the code."""
    from lab.fingerprint import Code

    for folder in ("kadam", "lab"):
        shutil.copytree(files.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "lab" / "experiments" / "quadratic.py"
    path.write_text(path.read_text().replace("eps: float = 1e-8", "eps: float = 1e-7"))
    changed = Code(tmp_path).of_function("lab.experiments.quadratic", "quadratic_map")
    assert changed.fingerprint != records.closure(RUN).fingerprint


def test_records_of_a_page_keep_how_they_were_made(store):
    written = [record(), record(question(4), machine={"system": "other"}, commit="c", python="3.99")]
    records.publish("page", written)
    found = Published(store / "page")
    assert [found.made(one.id) for one in written] == [one.made for one in written]
    assert isinstance(found.record(written[1].id), Record)


def test_the_records_are_read_as_the_docs_say(monkeypatch):
    import doctest

    monkeypatch.chdir(files.ROOT)
    result = doctest.testfile(str(files.ROOT / "docs" / "evidence.md"), module_relative=False)
    assert result.failed == 0 and result.attempted == 5
