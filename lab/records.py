"""Records of runs: what was computed, from what, and whether it still stands.

A run is asked for by its declared name and its arguments. A record *stands* if it was computed from the same data, with
the same versions of the packages that its code names, by code with the same fingerprint (``lab.fingerprint``), or by
code that ``make audit`` has shown to give the same results (``equivalents``).

There are two stores. ``results/runs/`` is this machine's: a file a run, written as soon as the run is finished, no part
of the repository. ``results/records/`` is published: a folder a page, with an npz file a kind of run, and
``manifest.json``, which says of every record how it came about. To read one without this project::

    manifest = json.load(open("results/records/01_continuous_time/manifest.json"))
    record = manifest["records"][0]  # "run", "arguments", "id", ...
    arrays = numpy.load(f"results/records/01_continuous_time/{record['run']}.npz")
    arrays[f"{record['id']}/error"]
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lab import data, experiments, files, fingerprint, provenance
from lab.experiments import Run
from lab.files import RESULTS
from lab.provenance import digest

Result = dict[str, Any]
Arrays = dict[str, np.ndarray]
PUBLISHED = RESULTS / "records"
EQUIVALENCES = "equivalences.json"
MODES = ("use", "off", "only")
PARTS = {"code", "data", "versions", "definitions", "seconds", "commit", "machine", "python"}  # of Record.made
META = "__record__"  # in a file of this machine's store, for whoever opens it


class RecordError(RuntimeError):
    """A record is needed and is not there, or what is there cannot be trusted."""


# --- what is asked for ---


def plain(value: Any, where: str = "arguments") -> Any:
    """``value`` as JSON can keep it, so that no two different values look alike; ``unplain`` is the inverse.

    Raises:
        TypeError: something that is no number, text, bool, None, list, tuple or dict with texts as keys.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):  # numpy.float64 is a float
        number = value.item() if isinstance(value, np.generic) else value
        if isinstance(number, float) and not math.isfinite(number):
            return {"float": repr(number)}
        return number
    if isinstance(value, list):
        return [plain(part, where) for part in value]
    if isinstance(value, tuple):
        return {"tuple": [plain(part, where) for part in value]}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        inner = {name: plain(part, f"{where}.{name}") for name, part in value.items()}
        return {"dict": inner} if set(inner) & {"tuple", "dict", "float"} else inner
    raise TypeError(f"{where}: {value!r} (must be numbers, texts, lists, tuples and dicts with texts as keys)")


def unplain(value: Any) -> Any:
    """The value that ``plain`` wrote."""
    if isinstance(value, list):
        return [unplain(part) for part in value]
    if isinstance(value, dict):
        if set(value) == {"tuple"}:
            return tuple(unplain(part) for part in value["tuple"])
        if set(value) == {"float"}:
            return float(value["float"])
        if set(value) == {"dict"}:
            return {name: unplain(part) for name, part in value["dict"].items()}
        return {name: unplain(part) for name, part in value.items()}
    return value


@dataclass(frozen=True)
class Asked:
    """A run with its arguments, those that differ from the defaults of the function."""

    run: Run
    arguments: dict[str, Any]

    @property
    def id(self) -> str:
        """Of the question alone, whatever the code."""
        return _id(self.run.name, self.arguments)

    def key(self, code: str | None = None) -> str:
        """Of all that the answer rests on; ``code`` is another fingerprint than the present one."""
        return digest({"id": self.id, **_rests_on(self.run.name), **({"code": code} if code else {})})[:32]


def asked(function: Callable[..., Result], given: Mapping[str, Any]) -> Asked:
    """The question that a call puts.

    Raises:
        TypeError: the function is no declared run, or lacks an argument; or an argument is no plain value.
    """
    run = experiments.declared(function)
    bound = inspect.signature(function).bind(**given)
    defaults = {name: argument.default for name, argument in inspect.signature(function).parameters.items()}
    differing = {
        name: value
        for name, value in bound.arguments.items()
        if defaults[name] is inspect.Parameter.empty or written(value) != written(defaults[name])  # 1 is not True
    }
    for name, value in differing.items():
        plain(value, f"{run.name}: {name}")
    return Asked(run, dict(sorted(differing.items())))


def written(value: Any) -> str:
    """A plain value as text: the same for the same value alone, and the order in which records are listed."""
    return json.dumps(plain(value), sort_keys=True)


def _id(run: str, arguments: Mapping[str, Any]) -> str:
    return digest([run, plain(arguments)])[:20]


@cache
def closure(name: str) -> fingerprint.Closure:
    """The code of a declared run, as it is now.

    Raises:
        RecordError: the code does something that the closure cannot follow.
    """
    function = experiments.all_runs()[name].function
    found = fingerprint.here().of_function(function.__module__, function.__qualname__, data.LOADERS)
    if found.problems:
        reasons = "; ".join(found.problems)
        raise RecordError(f"{name}: its code cannot be followed, so no record of it would be safe: {reasons}")
    return found


@cache
def _rests_on(name: str) -> dict[str, Any]:
    run, code = experiments.all_runs()[name], closure(name)
    return {
        "code": code.fingerprint,
        "data": data.checksum(run.data) if run.data else None,
        "versions": provenance.versions(code.packages),
    }


def rests_on(name: str) -> dict[str, Any]:
    """Fingerprint of the code, checksum of the data and versions that a run's results rest on now."""
    return dict(_rests_on(name))


# --- what was computed ---


@dataclass(frozen=True)
class Record:
    """The result of a run.

    Attributes:
        run, arguments: what was asked.
        arrays: the answer; numbers are arrays without dimensions.
        made: ``code``, ``data``, ``versions`` that it rests on; ``definitions`` of the code; ``seconds``, ``commit``,
            ``machine``, ``python``.
    """

    run: str
    arguments: dict[str, Any]
    arrays: Arrays
    made: dict[str, Any]

    @property
    def id(self) -> str:
        return _id(self.run, self.arguments)

    @property
    def result(self) -> Result:
        return {name: array if array.ndim else array.item() for name, array in self.arrays.items()}

    @property
    def sha256(self) -> str:
        return content_hash(self.arrays)


def content_hash(arrays: Arrays) -> str:
    """SHA-256 of arrays: names, types, shapes and every bit."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def computed(question: Asked, arrays: Arrays, seconds: float) -> Record:
    """The record of a run that has just been computed here."""
    code = closure(question.run.name)
    made = {**rests_on(question.run.name), "definitions": code.definitions, "seconds": round(seconds, 2),
            "commit": provenance.commit(), "machine": provenance.machine(), "python": provenance.python()}  # fmt: skip
    return Record(question.run.name, question.arguments, arrays, made)


def stands(made: Mapping[str, Any], name: str) -> bool:
    """Whether what was computed from ``made`` is what the run ``name`` would give now."""
    now = rests_on(name)
    return all(made[part] == now[part] for part in ("data", "versions")) and made["code"] in equivalents(name)


def why_not(made: Mapping[str, Any], name: str) -> list[str]:
    """Sentences that say why a record no longer stands; none if it does."""
    now, found = rests_on(name), []
    if made["data"] != now["data"]:
        found.append(f"data: the checksum was {made['data']}, is {now['data']}")
    for package in sorted({*made["versions"], *now["versions"]}):
        before, after = made["versions"].get(package, "not used"), now["versions"].get(package, "not used")
        if before != after:
            found.append(f"versions: {package} was {before}, is {after}")
    if made["code"] not in equivalents(name):
        found += changed_definitions(made["definitions"], closure(name).definitions)
    return found


def changed_definitions(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which definitions differ, by name; one that only moved is not among them."""
    gone, new = set(before.values()) - set(after.values()), set(after.values()) - set(before.values())
    old_names = {name for name, text in before.items() if text in gone}
    new_names = {name for name, text in after.items() if text in new}
    found = [f"changed: {name}" for name in sorted(old_names & new_names)]
    found += [f"no longer used, or renamed: {name}" for name in sorted(old_names - new_names)]
    found += [f"new, or renamed: {name}" for name in sorted(new_names - old_names)]
    return found or ["the same definitions refer to each other differently"]


@cache
def _equivalences() -> list[dict[str, Any]]:
    path = PUBLISHED / EQUIVALENCES
    if not path.exists():
        return []
    try:
        return [{part: entry[part] for part in ("run", "old", "new")} for entry in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a list of equivalences ({error!r}); restore it from git") from None


def equivalents(name: str) -> set[str]:
    """The fingerprints of code that gives what the present code of the run gives, its own among them."""
    found, queue = set(), [closure(name).fingerprint]
    while queue:
        code = queue.pop()
        found.add(code)
        queue += [e["old"] for e in _equivalences() if e["run"] == name and e["new"] == code and e["old"] not in found]
    return found


# --- this machine's store ---


def cache_is_on() -> bool:
    """Whether runs are kept on this machine: unless ``KADAM_CACHE=off``."""
    return os.environ.get("KADAM_CACHE") != "off"


def path_of(question: Asked) -> Path:
    """Where a run that is computed now is kept on this machine."""
    return files.RUNS / f"{question.key()}.run"


def pack(record: Record) -> bytes:
    """A record as this machine keeps it: the SHA-256 of an npz file, then that file."""
    buffer = io.BytesIO()
    meta = {"run": record.run, "arguments": plain(record.arguments), "made": record.made}
    content: dict[str, Any] = {META: np.asarray(json.dumps(meta)), **record.arrays}
    np.savez_compressed(buffer, **content)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def unpack(packed: bytes) -> Record | None:
    """The record, or None if it is damaged."""
    if hashlib.sha256(packed[32:]).digest() != packed[:32]:
        return None
    try:
        with np.load(io.BytesIO(packed[32:]), allow_pickle=False) as arrays:
            meta = json.loads(str(arrays[META]))
            found = {name: arrays[name] for name in arrays.files if name != META}
        return Record(meta["run"], unplain(meta["arguments"]), found, meta["made"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        return None


def local(question: Asked) -> Record | None:
    """This machine's record of a run, if it stands; a damaged one is named and left out.

    Raises:
        RecordError: where it would be kept there is something that is no file.
    """
    if not cache_is_on():
        return None
    for code in sorted(equivalents(question.run.name)):
        path = files.RUNS / f"{question.key(code)}.run"
        if not path.exists():
            continue
        if not path.is_file():
            raise RecordError(f"{path}: is in the way of a record (must be a file, or nothing)")
        record = unpack(path.read_bytes())
        if record is not None and record.id == question.id and record.made["code"] == code:
            return record
        say(f"{path}: damaged or foreign (computed anew)")
    return None


# --- what is published ---


def mode() -> str:
    """What ``KADAM_RECORDS`` says of the published records: ``use`` them, ``off``, or ``only`` them.

    Raises:
        RecordError: it says something else.
    """
    found = os.environ.get("KADAM_RECORDS") or "use"
    if found not in MODES:
        raise RecordError(f"KADAM_RECORDS: {found!r} (must be one of {', '.join(MODES)})")
    return found


class Published:
    """The published records of a page, or of the audit's short runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "manifest.json"
        self.manifest: dict[str, Any] = {"records": [], "codes": {}, "circumstances": []}
        try:
            if path.exists():
                self.manifest = json.loads(path.read_text(encoding="utf-8"))
            self._by_id = {entry["id"]: entry for entry in self.manifest["records"]}
            for id, entry in self._by_id.items():
                if lacking := {"run", "arguments", "arrays", "sha256"} - {*entry} or PARTS - {*self.made(id)}:
                    raise KeyError(*sorted(lacking))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RecordError(f"{path}: not a manifest of records ({error!r}); restore it from git") from None

    def ids(self) -> list[str]:
        return list(self._by_id)

    def made(self, id: str) -> dict[str, Any]:
        """What a record was made from, and how; see ``Record.made``."""
        entry = self._by_id[id]
        of_code = self.manifest["codes"][entry["code"]]
        return {"code": entry["code"], **of_code, "seconds": entry["seconds"],
                **self.manifest["circumstances"][entry["circumstances"]]}  # fmt: skip

    def question(self, id: str) -> Asked:
        """What was asked.

        Raises:
            RecordError: no run has that name any more.
        """
        entry = self._by_id[id]
        if entry["run"] not in experiments.all_runs():
            raise RecordError(f"{self.folder.name}: {entry['run']} {entry['arguments']} (no run is declared so)")
        return Asked(experiments.all_runs()[entry["run"]], unplain(entry["arguments"]))

    def sha256(self, id: str) -> str:
        return self._by_id[id]["sha256"]

    def record(self, id: str) -> Record | None:
        """The record, or None if it is not there or damaged, which is said."""
        entry = self._by_id.get(id)
        if entry is None:
            return None
        try:
            arrays = {name.partition("/")[2]: array for name, array in self._members(entry["run"], id)}
        except Exception as error:  # a damaged archive raises almost anything
            say(f"{self.folder.name}/{entry['run']}.npz: cannot be read ({error!r})")
            return None
        record = Record(entry["run"], unplain(entry["arguments"]), arrays, self.made(id))
        if record.sha256 != entry["sha256"] or record.id != id:
            say(f"{self.folder.name}/{entry['run']}.npz: record {id} is damaged or foreign (not used)")
            return None
        return record

    def _members(self, run: str, id: str) -> list[tuple[str, np.ndarray]]:
        found = _opened(self.folder / f"{run}.npz")
        names = self._by_id[id]["arrays"]
        return [(f"{id}/{name}", found[f"{id}/{name}"]) for name in names]


@cache
def _opened(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


@cache
def published(folder: str) -> Published:
    """The published records of a page."""
    return Published(PUBLISHED / folder)


def folders() -> list[str]:
    """The pages that have published records."""
    return sorted(path.parent.name for path in PUBLISHED.glob("*/manifest.json"))


def standing() -> dict[tuple[str, str, tuple[str, ...]], int]:
    """How many published records there are by folder, run, and why they no longer stand: no reasons if they do."""
    known, found = experiments.all_runs(), Counter[tuple[str, str, tuple[str, ...]]]()
    for folder in folders():
        of_page = published(folder)
        for entry in of_page.manifest["records"]:
            run = entry["run"]
            reasons = why_not(of_page.made(entry["id"]), run) if run in known else ["no run is declared so"]
            found[folder, run, tuple(reasons)] += 1
    return dict(sorted(found.items()))


def find(question: Asked) -> Record | None:
    """The record of a run that stands: this machine's, else a published one, as far as ``mode`` allows."""
    found = local(question)
    if found is not None or mode() == "off":
        return found
    for folder in folders():
        of_page = published(folder)
        if question.id not in of_page.ids() or not stands(of_page.made(question.id), question.run.name):
            continue
        if (found := of_page.record(question.id)) is not None:
            return found
    return None


def publish(folder: str, records: Iterable[Record]) -> None:
    """Write the records of a page, in place of those that were published before."""
    target = PUBLISHED / folder
    kept = sorted(
        {record.id: record for record in records}.values(), key=lambda record: (record.run, written(record.arguments))
    )
    codes: dict[str, Any] = {}
    circumstances: list[dict[str, Any]] = []
    entries = []
    by_run: dict[str, Arrays] = {}
    for record in kept:
        made = record.made
        codes[made["code"]] = {name: made[name] for name in ("data", "versions", "definitions")}
        here = {name: made[name] for name in ("commit", "machine", "python")}
        if here not in circumstances:
            circumstances.append(here)
        entries.append(
            {"id": record.id, "run": record.run, "arguments": plain(record.arguments), "arrays": sorted(record.arrays),
             "code": made["code"], "sha256": record.sha256, "seconds": made["seconds"],
             "circumstances": circumstances.index(here)}
        )  # fmt: skip
        arrays = by_run.setdefault(record.run, {})
        arrays |= {f"{record.id}/{name}": record.arrays[name] for name in sorted(record.arrays)}
    for run, arrays in by_run.items():
        files.write(target / f"{run}.npz", npz(arrays))
    head = {"page": folder, "circumstances": circumstances, "codes": dict(sorted(codes.items()))}
    files.write(target / "manifest.json", _one_line_each({**head, "records": entries}))
    for path in target.glob("*.npz"):
        if path.stem not in by_run:
            path.unlink()
    forget()


def forget() -> None:
    """Read anew what is published: it has changed."""
    for remembered in (published, _opened, _equivalences):
        remembered.cache_clear()


def npz(arrays: Arrays) -> bytes:
    """An npz file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _one_line_each(manifest: dict[str, Any]) -> str:
    """JSON with a line for every record, so that a difference shows which one changed."""
    rest = {name: value for name, value in manifest.items() if name != "records"}
    head = json.dumps(rest, indent=1, ensure_ascii=False)
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in manifest["records"])
    return f'{head[:-2]},\n "records": [\n{lines}\n ]\n}}\n'


def missing(questions: Sequence[Asked]) -> RecordError:
    """The error for runs that may only be read and are not there: it names them and says why."""
    lines = []
    for question in questions[:3]:
        reasons = ["no record of it is published"]
        for folder in folders():
            if question.id in published(folder).ids():
                reasons = why_not(published(folder).made(question.id), question.run.name) or ["its record is damaged"]
        lines.append(f"{question.run.name} {question.arguments}: {'; '.join(reasons[:5])}")
    more = f" and {len(questions) - 3} more" if len(questions) > 3 else ""
    return RecordError(
        f"KADAM_RECORDS=only, and {len(questions)} records are missing or no longer stand (make records computes them;"
        f" make audit BASE=commit shows that a change left them alone): {' | '.join(lines)}{more}"
    )


def say(text: str) -> None:
    print(f"kadam: {text}", file=sys.stderr, flush=True)
