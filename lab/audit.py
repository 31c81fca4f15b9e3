"""The audit: are the published records what the code gives?

``audit`` recomputes a sample: of every *stratum* (a run with a set of optional arguments) the published short run,
then, as far as the time goes, real runs. On the kind of machine that made them they must agree to the last bit; on
another kind the short ones must agree within ``TOLERANCE``, over too few steps for rounding to grow.

``prove`` is for a change that is meant to leave results alone. It computes the same short runs with the code of another
commit and with the present one, side by side on this machine. If they agree to the last bit, execute every statement
that changed, and go both ways at every condition that did, it writes to the repository that the two codes are
equivalent: then records of the one stand for the other. Nothing else makes an old record current again.

What it cannot see: that a changed number matters only after more steps than a short run takes, or that a condition in
the midst of an expression went one way alone. So it also computes real runs, as far as the time goes, and compares them
with what is published.
"""

from __future__ import annotations

import datetime
import difflib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from lab import compare, data, experiments, files, fingerprint, provenance, records, sweep
from lab.files import ROOT
from lab.fingerprint import Code, Node, Statement
from lab.records import Arrays, Asked, Record

SHORT = "short"  # the folder of the published short runs
TOLERANCE = 1e-3
"""Allowed difference of a short run on another kind of machine, as a share of the largest number of its array. Adam's
first steps are the signs of gradients, so that where a gradient is all rounding, rounding shows at once."""


class AuditError(RuntimeError):
    """The audit found something wrong, or cannot be made."""


# --- the sample ---


def shape(value: Any) -> Any:
    """What kind of argument it is: texts and switches as they are, a number as a number, a list by its kinds."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, dict):
        return {name: shape(part) for name, part in sorted(value.items())}
    if isinstance(value, list | tuple):
        return sorted({json.dumps(shape(part), sort_keys=True) for part in value})
    return "number"


def stratum(question: Asked) -> str:
    """The run, the optional arguments that it is given, and their kinds."""
    return json.dumps([question.run.name, shape(question.arguments)], sort_keys=True)


def strata() -> dict[str, list[Asked]]:
    """The published runs, real ones, by stratum."""
    found: dict[str, list[Asked]] = {}
    for folder in records.folders():
        if folder != SHORT:
            published = records.published(folder)
            for id in published.ids():
                question = published.question(id)
                found.setdefault(stratum(question), []).append(question)
    return found


def _order(question: Asked) -> str:
    return records.written(question.arguments)


def shortened(question: Asked) -> Asked:
    """The short run of a real one."""
    return records.asked(question.run.function, question.run.shortened(question.arguments))


def short_questions() -> list[Asked]:
    """One short run of every stratum, and the corners of every run."""
    found = [shortened(min(members, key=_order)) for members in strata().values()]
    return list({question.id: question for question in [*found, *cornered(found)]}.values())


def cornered(questions: Iterable[Asked]) -> list[Asked]:
    """The corners of the runs among some short ones: with the arguments of the first of each run."""
    first: dict[str, Asked] = {}
    for question in questions:
        first.setdefault(question.run.name, question)
    return [
        records.asked(question.run.function, {**question.arguments, **corner})
        for question in first.values()
        for corner in question.run.corners
    ]


def publish_short() -> int:
    """Compute the short runs that the published records need and have not, and publish them; returns how many."""
    questions = short_questions()
    standing = {question.id: records.find(question) for question in questions}
    wanted = [question for question in questions if standing[question.id] is None]
    for record in _computed(wanted):
        standing[record.id] = record
    records.publish(SHORT, [record for record in standing.values() if record is not None])
    return len(questions)


# --- the audit of every day ---


def audit(budget: float, seed: str | None = None) -> bool:
    """Recompute a sample for about ``budget`` seconds, print what was found; whether all is well.

    ``seed`` draws the real runs; by default the commit, so that every commit looks at others.
    """
    start = time.monotonic()
    broken, old = _unreadable(), _old()
    for line in [*broken, *old]:
        print(line)
    fine = not broken and not old
    shorts = records.published(SHORT)
    lacking = [question for question in short_questions() if question.id not in shorts.ids()]
    if lacking:
        fine = False
        print(f"{len(lacking)} strata have no published short run (make records): {lacking[0].run.name} ...")
    known = experiments.all_runs()
    sample = [shorts.question(entry["id"]) for entry in shorts.manifest["records"] if entry["run"] in known]
    print(f"{len(sample)} short runs, one of every run and set of optional arguments:")
    fine &= _check(shorts, sample)
    spent = time.monotonic() - start
    chosen = _affordable((budget - spent) * joblib.cpu_count(), seed or provenance.commit())
    if chosen:
        print(f"{len(chosen)} real runs, drawn by the commit, of {sum(len(found) for found in strata().values())}:")
        for folder in records.folders():
            here = [question for place, question in chosen if place == folder]
            fine &= _check(records.published(folder), here) if here else True
    print(f"audit: {'all is well' if fine else 'SOMETHING IS WRONG'} ({time.monotonic() - start:.0f} s)")
    return fine


def _unreadable() -> list[str]:
    return [
        f"{folder}: record {id} is damaged"
        for folder in records.folders()
        for id in records.published(folder).ids()
        if records.published(folder).record(id) is None
    ]


def _old() -> list[str]:
    return [
        f"{folder}: records of {run} are old: {'; '.join(reasons[:6])}"
        for folder, run, reasons in records.standing()
        if reasons
    ]


def _affordable(seconds: float, seed: str, runs: Collection[str] | None = None) -> list[tuple[str, Asked]]:
    """Real runs, in an order drawn by ``seed``, that take about ``seconds`` of one core together."""
    declared = experiments.all_runs()
    wanted = {run for run in declared if not declared[run].timed and (runs is None or run in runs)}
    everything = []
    for folder in records.folders():
        published = records.published(folder)
        for entry in published.manifest["records"] if folder != SHORT else ():
            if entry["run"] in wanted:
                everything.append((folder, entry["id"], entry["seconds"]))
    random.Random(seed).shuffle(everything)
    chosen = []
    for folder, id, cost in everything:
        published = records.published(folder)
        if cost <= seconds and _same_machine(published.made(id)):
            seconds -= cost
            chosen.append((folder, published.question(id)))
    return chosen


def _same_machine(made: dict[str, Any]) -> bool:
    return made["machine"] == provenance.machine()


def _computed(questions: Sequence[Asked]) -> Iterator[Record]:
    """The runs, computed now, whatever is on disk; as they finish.

    Raises:
        AuditError: one of them failed; says which.
    """
    for packed in sweep.in_processes(_attempt, [(question, question.key()) for question in questions]):
        if isinstance(packed, str):
            raise AuditError(packed)
        record = records.unpack(packed)
        assert record is not None
        yield record


def _attempt(question: Asked, key: str) -> bytes | str:
    try:
        return sweep.compute(0, question, key, None)[1]
    except Exception as error:
        return f"{question.run.name} {json.dumps(records.plain(question.arguments))} failed: {error!r}"


def _check(published: records.Published, questions: Sequence[Asked]) -> bool:
    """Compare recomputed runs with the published ones; say for each kind of run what came out."""
    counts: dict[str, list[int]] = {}
    worst: dict[str, tuple[float, str]] = {}
    for record in _computed(questions):
        expected = published.record(record.id)
        off, where = (np.inf, "no record") if expected is None else disagreement(record.run, record, expected)
        made = published.made(record.id)
        allowed = 0.0 if _same_machine(made) else TOLERANCE
        count = counts.setdefault(record.run, [0, 0, 0])
        count[0] += 1
        count[1] += off == 0
        count[2] += off <= allowed
        if off > worst.get(record.run, (0.0, ""))[0]:
            worst[record.run] = off, f"{where}, {json.dumps(records.plain(record.arguments))}"
    for run, (total, equal, within) in sorted(counts.items()):
        verdict = "agree to the last bit" if equal == total else f"{equal} agree to the last bit, {within} as they must"
        print(f"  {run:<36} {total:3} {verdict}")
        if equal < total:
            print(f"      largest difference {worst[run][0]:.2e}: {worst[run][1]}")
    return all(total == within for total, _, within in counts.values())


def disagreement(run: str, one: Record, other: Record) -> tuple[float, str]:
    """``compare.difference`` of two records, 0 to the last bit alone; of measurements of time, of names and shapes."""
    a, b = one.arrays, other.arrays
    if experiments.all_runs()[run].timed:
        alike = {n: (x.shape, x.dtype.kind) for n, x in a.items()} == {n: (x.shape, x.dtype.kind) for n, x in b.items()}
        return (0.0, "") if alike else (np.inf, "names or shapes")
    if records.content_hash(a) == records.content_hash(b):
        return 0.0, ""
    off, where = compare.difference(a, b)
    return off or sys.float_info.min, where  # -0.0 and 0.0 differ in a bit


# --- a change that is meant to leave results alone ---


def prove(base: str, budget: float) -> bool:
    """Show that the code of commit ``base`` and the present one give the same; write it down; whether it worked.

    Raises:
        AuditError: no such commit, or one without declared runs; no run is affected.
    """
    start, known = time.monotonic(), experiments.all_runs()
    stale = sorted({run for run, folder, id in _published_runs() if not _stands(folder, id, run)} & set(known))
    if not stale:
        print("audit: every published record stands; there is nothing to prove")
        return True
    with tempfile.TemporaryDirectory() as scratch, _worktree(base, Path(scratch) / "base") as (old_root, commit):
        sample = [question for question in _sample() if question.run.name in stale]
        first = _representatives(sample)
        rest = [question for question in sample if question not in first]
        first += cornered(first)
        print(f"audit: {', '.join(stale)} changed since {commit[:10]}; {len(first)} short runs with either code")
        sides = _both(old_root, first, Path(scratch) / "first")
        uncovered = _uncovered(sides, stale, old_root)
        unseen = set(stale) - {question.run.name for question in sample}
        rest = [question for question in rest if question.run.name in uncovered]
        if rest:
            rest = random.Random(commit).sample(rest, len(rest))[: max(1, int(budget / 2))]
            print(f"audit: not all that changed was executed; {len(rest)} more short runs")
            more = _both(old_root, rest, Path(scratch) / "more")
            sides = [_merged(one, other) for one, other in zip(sides, more, strict=True)]
            first += rest
            uncovered = _uncovered(sides, stale, old_root)
        differing = _differing(first, sides)
        for run, found in sorted(differing.items()):
            print("".join(f"  {run} DIFFERS: {line}\n" for line in found), end="")
        for line in sorted({line for found in uncovered.values() for line in found}):
            print(f"  NOT EXECUTED: {line}")
        for run in sorted(unseen):
            print(f"  {run}: no real run of it is published")
        refused = {*differing, *uncovered, *unseen}
        codes = {run: place["code"] for run, place in sides[0].codes.items() if run not in refused}
        left_over = max(budget / 3, budget - time.monotonic() + start)
        refused |= _real_runs_differ(left_over * joblib.cpu_count(), commit, codes)
        proved = [run for run in stale if run not in refused]
        _write_down(proved, commit, sides, first)
    left = [line for line in _old() if not any(f" {run} " in line for run in refused)]
    if proved:
        print(f"audit: the same to the last bit, all that changed was executed: {', '.join(proved)}")
    for line in left:
        print(f"still old, {line} (was {base} what made them?)")
    if refused:
        print(f"audit: REFUSED, these stay old: {', '.join(sorted(refused))}. Compute them anew (make records).")
    return not refused and not left


def _real_runs_differ(seconds: float, seed: str, codes: Mapping[str, str]) -> set[str]:
    """The runs that give something else now than was published from their old ``codes``; for about ``seconds``."""
    chosen = [
        (folder, question)
        for folder, question in _affordable(seconds, seed, codes)
        if records.published(folder).made(question.id)["code"] == codes[question.run.name]
    ]
    print(f"audit: {len(chosen)} real runs beside what is published")
    by_place: dict[tuple[str, str], list[Asked]] = {}
    for folder, question in chosen:
        by_place.setdefault((folder, question.run.name), []).append(question)
    return {run for (folder, run), found in by_place.items() if not _check(records.published(folder), found)}


def _published_runs() -> Iterator[tuple[str, str, str]]:
    for folder in records.folders():
        for entry in records.published(folder).manifest["records"]:
            yield entry["run"], folder, entry["id"]


def _stands(folder: str, id: str, run: str) -> bool:
    return run in experiments.all_runs() and records.stands(records.published(folder).made(id), run)


def _sample() -> list[Asked]:
    """The short runs of all published ones, one for every set of arguments besides the seed."""
    found: dict[str, Asked] = {}
    for members in strata().values():
        for member in sorted(members, key=_order):
            question = shortened(member)
            without = {name: value for name, value in question.arguments.items() if name != "seed"}
            found.setdefault(json.dumps([question.run.name, records.plain(without)], sort_keys=True), question)
    return list(found.values())


def _representatives(questions: Iterable[Asked]) -> list[Asked]:
    found: dict[str, Asked] = {}
    for question in questions:
        found.setdefault(stratum(question), question)
    return list(found.values())


class _worktree:
    """A checkout of another commit, for a while."""

    def __init__(self, commit: str, path: Path) -> None:
        self.asked, self.path = commit, path

    def _git(self, *words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise AuditError(f"BASE: {self.asked!r} (must be a commit of this repository: {done.stderr.strip()})")
        return done.stdout.strip()

    def __enter__(self) -> tuple[Path, str]:
        commit = self._git("rev-parse", "--verify", f"{self.asked}^{{commit}}")
        self._git("worktree", "add", "--detach", str(self.path), commit)
        if not (self.path / "lab" / "records.py").is_file():
            self.__exit__()
            raise AuditError(f"BASE: {self.asked!r} (is older than declared runs: recompute instead, make records)")
        return self.path.resolve(), commit

    def __exit__(self, *_: object) -> None:
        subprocess.run(["git", "worktree", "remove", "--force", str(self.path)], cwd=ROOT, capture_output=True)
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, capture_output=True)


class _Side:
    """What one code gave."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "arrays.npz", allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        self.results: dict[int, Arrays] = {}
        for name, array in arrays.items():
            number, _, inner = name.partition("/")
            self.results.setdefault(int(number), {})[inner] = array
        self.codes: dict[str, dict[str, str]] = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
        lines = json.loads((folder / "lines.json").read_text(encoding="utf-8"))
        self.steps = {file: {(low, high) for low, high in found["steps"]} for file, found in lines.items()}
        self.called = {file: set(found["lambdas"]) for file, found in lines.items()}
        self.entered = {(file, run): set(of) for file, found in lines.items() for run, of in found["entered"].items()}
        self.statements = {file: set(found["statements"]) for file, found in lines.items()}
        self.executed = {file: set(found["statements"]) - set(found["missing"]) for file, found in lines.items()}

    def ways(self, file: str, statement: Statement) -> set[int]:
        """The lines that execution went on to from a condition."""
        lines = range(statement.line, statement.last + 1)
        return {high for low, high in self.steps.get(file, ()) if low in lines and high not in lines}


def _merged(one: _Side, other: _Side) -> _Side:
    start = len(one.results)
    one.results |= {start + number: arrays for number, arrays in other.results.items()}
    for file, lines in other.executed.items():
        one.executed[file] = one.executed.get(file, set()) | lines
        one.statements[file] = other.statements[file]
        one.steps[file] = one.steps.get(file, set()) | other.steps[file]
        one.called[file] = one.called.get(file, set()) | other.called[file]
    for place, functions in other.entered.items():
        one.entered[place] = one.entered.get(place, set()) | functions
    return one


def _both(old_root: Path, questions: Sequence[Asked], scratch: Path) -> list[_Side]:
    """The runs by the old code and by the present one, at the same time."""
    order = [{"run": question.run.name, "arguments": records.plain(question.arguments)} for question in questions]
    processes = []
    for name, root in (("old", old_root), ("new", ROOT)):
        folder = scratch / name
        folder.mkdir(parents=True)
        files.write_json(folder / "order.json", order)
        script = [
            sys.executable,
            str(ROOT / "lab" / "recompute.py"),
            str(root),
            str(folder / "order.json"),
            str(folder),
        ]
        processes.append((folder, subprocess.Popen(script, cwd=root, stderr=subprocess.PIPE, text=True)))
    for folder, process in processes:
        _, error = process.communicate()
        if process.returncode:
            said = error.strip().splitlines()[-1] if error.strip() else f"exit {process.returncode}"
            raise AuditError(f"the runs by the {folder.name} code failed: {said}")
    return [_Side(folder) for folder, _ in processes]


def _differing(questions: Sequence[Asked], sides: Sequence[_Side]) -> dict[str, list[str]]:
    """By run, where the two codes give different results."""
    found: dict[str, list[str]] = {}
    for i, question in enumerate(questions):
        one, other = (Record(question.run.name, question.arguments, side.results[i], {}) for side in sides)
        off, where = disagreement(question.run.name, one, other)
        if off:
            line = f"{json.dumps(records.plain(question.arguments))}: {where} by {off:.2e}"
            found.setdefault(question.run.name, []).append(line)
    return found


def _uncovered(sides: Sequence[_Side], stale: Iterable[str], old_root: Path) -> dict[str, list[str]]:
    """By run, the statements that changed and that the sample did not execute, in the old code and in the new one."""
    old, new = Code(old_root), fingerprint.here()
    found: dict[str, list[str]] = {}
    for run in stale:
        texts = []
        for code, side in ((old, sides[0]), (new, sides[1])):
            if run in side.codes:
                place = side.codes[run]
                texts.append(code.texts(code.of_function(place["module"], place["function"], data.LOADERS)))
        lines = [
            *_not_executed(run, texts[1], texts[0], sides[1], new, old, "new"),
            *_not_executed(run, texts[0], texts[1], sides[0], old, new, "old"),
        ] if texts else []  # fmt: skip
        if lines:
            found[run] = lines
    return found


def _not_executed(
    run: str, own: dict[Node, str], other: dict[Node, str], side: _Side, code: Code, other_code: Code, word: str
) -> Iterator[str]:
    names, texts = {node.name for node in other}, set(other.values())
    for node, text in own.items():
        path, _ = code.statements(node)
        beside = [node] if path else [inner for inner in own if inner.module == node.module]
        gone = word == "old" and text not in texts and node.name not in names
        if gone and not any(_entered(run, one, code, side) for one in beside):
            continue  # the run does without it: the statements that named it have changed, and must be executed
        if path is None:
            if text not in texts:
                yield f"{word} {node}: a kernel changed, and whether it ran cannot be seen here"
            continue
        file = str(path.relative_to(code.root))
        for statement in _changed(node, code, own, other_code, other):
            seen = side.called if statement.is_lambda else side.executed
            counts = statement.is_lambda or statement.line in side.statements.get(file, {statement.line})
            if counts and statement.line not in seen.get(file, set()):
                yield f"{word} {file}:{statement.line}, in {node}"
            elif counts and statement.last and len(side.ways(file, statement)) < 2:
                yield f"{word} {file}:{statement.line}, in {node}: one of the two ways on"


def _changed(
    node: Node, code: Code, own: Mapping[Node, str], other_code: Code, other: Mapping[Node, str]
) -> Sequence[Statement]:
    """What of a definition the other code has not; all of it if only what it refers to is another."""
    alike = [one for one, text in other.items() if text == own[node]]
    if any(not _retargeted(code.references(node), own, other_code.references(one), other) for one in alike):
        return []
    _, statements = code.statements(node)
    before = [node] if node in other else [one for one in other if one.name == node.name]
    known = [statement.text for one in before for statement in other_code.statements(one)[1]]
    blocks = difflib.SequenceMatcher(None, known, [one.text for one in statements], False).get_opcodes()
    return [one for tag, _, _, low, high in blocks if tag != "equal" for one in statements[low:high]] or statements


def _retargeted(
    one: Sequence[tuple[str, Node]], own: Mapping[Node, str], two: Sequence[tuple[str, Node]], other: Mapping[Node, str]
) -> bool:
    """Whether a name refers to another definition, not to one that was changed where it is."""
    if [how for how, _ in one] != [how for how, _ in two]:
        return True
    here, there = set(own.values()), set(other.values())
    pairs = ((own.get(now), other.get(before)) for (_, now), (_, before) in zip(one, two, strict=True))
    return any(now != before and (now in there or before in here) for now, before in pairs)


def _entered(run: str, node: Node, code: Code, side: _Side) -> bool:
    """Whether the sample of a run called a function of a definition."""
    path, _ = code.statements(node)
    called = side.entered.get((str(path.relative_to(code.root)), run), set()) if path else set()
    return bool(code.function_lines(node) & called)


def _write_down(stale: Iterable[str], base: str, sides: Sequence[_Side], sample: Sequence[Asked]) -> None:
    path = records.PUBLISHED / records.EQUIVALENCES
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for run in stale:
        old, new = (side.codes[run]["code"] for side in sides)
        shown = [
            {"arguments": records.plain(question.arguments), "sha256": records.content_hash(sides[1].results[i])}
            for i, question in enumerate(sample)
            if question.run.name == run
        ]
        entry = {
            "run": run, "old": old, "new": new, "base": base, "date": datetime.date.today().isoformat(),
            "machine": provenance.machine(), "versions": records.rests_on(run)["versions"], "sample": shown,
        }  # fmt: skip
        if old != new:  # else it is not the code that made records old
            known = [one for one in known if (one["run"], one["old"], one["new"]) != (run, old, new)] + [entry]
    if not known:
        return
    files.write(path, "[\n" + ",\n".join(" " + json.dumps(one) for one in known) + "\n]\n")
    records.forget()


def seconds(text: str) -> float:
    """A budget such as ``60s``, ``10m`` or ``1h`` in seconds.

    Raises:
        AuditError: it is none.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < np.inf:
        raise AuditError(f"BUDGET: {text!r} (must be a time such as 60s, 10m or 1h)")
    return value
