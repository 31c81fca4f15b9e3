"""What a reproduction gave, beside what is published: claim by claim, and record by record.

A reproduction of ``standard`` is compared with what that profile gives from the published records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab import claims, experiments, files, pages, records, report
from lab.claims import Claim

MUST_HOLD = "This claim must hold: something is wrong."


@dataclass(frozen=True)
class Shared:
    """How the runs that a reproduction shares with the published ones compare.

    Attributes:
        runs: how many this page of the reproduction rests on.
        shared: how many of them are published with the same arguments; measurements of time do not count.
        equal: how many of these agree to the last bit.
        timed: how many of ``runs`` measure time.
        farthest: of the others, the largest difference of a number over the largest number of its array.
        where: its run, arguments and array.
    """

    runs: int
    shared: int
    equal: int
    timed: int = 0
    farthest: float = 0.0
    where: str = ""

    @property
    def same(self) -> bool:
        """Whether all runs are those that are published; measurements of time do not count."""
        return self.equal + self.timed == self.runs

    def __str__(self) -> str:
        if not self.shared:
            return f"{self.runs} runs, none with the arguments of a published one"
        if self.equal == self.shared:
            return f"{self.runs} runs, {self.shared} of them published: all agree to the last bit"
        start = f"{self.runs} runs, {self.shared} of them published: {self.equal} agree to the last bit"
        if not self.where:
            return f"{start}; the others' numbers are not on this machine, or damaged"
        return f"{start}; the largest difference is {self.farthest:.1e} of the largest number ({self.where})"


def compare(profile: str, asked: Iterable[str] | None = None) -> tuple[str, bool]:
    """The comparison as Markdown; and whether nothing speaks against what is published.

    Something does if a claim that must hold does not, or if a verdict differs although page and runs are the same.
    """
    theirs_of = pages.RECORDED if profile == "standard" else "full"
    published, mine = report.recorded_claims(theirs_of), report.recorded_claims(profile)
    lines, fine = ["# Published, and yours\n"], True
    same = total = 0
    for page in asked or pages.names():
        if page not in mine or page not in published:
            where = "here" if page not in mine else f"in {pages.results_of(theirs_of).name}/claims.json"
            lines.append(f"## {page}\n\nNot compared: it has no finished claims {where}.\n")
            fine = fine and page not in published
            continue
        theirs = {claim.name: claim for claim in report.claims_of(published[page])}
        found = shared(page, profile)
        rows, notes = [], []
        for claim in report.claims_of(mine[page]):
            other = theirs.get(claim.name)
            fine = fine and not claim.broken
            if other is None:
                notes.append(f"- **{claim.name}**: not published.")
                continue
            total += 1
            agrees = claim.verdict == other.verdict
            same += agrees
            rows.append((claim.name, _shown(other), _shown(claim), "yes" if agrees else "**no**"))
            if not agrees:
                differing = _differing(mine[page], published[page])
                notes.append(f"- **{claim.name}**: {reason(claim, other, differing, found)}")
                fine = fine and (bool(differing) or not found.same)
            elif claim.broken:
                notes.append(f"- **{claim.name}**: *{claim.verdict}*, here and published. {MUST_HOLD}")
        absent = theirs.keys() - {claim.name for claim in report.claims_of(mine[page])}
        notes += [f"- **{name}**: published, and not yours." for name in sorted(absent)]
        table = report.table(("claim", "published [95 %]: verdict", "yours [95 %]: verdict", "same verdict?"), rows)
        lines += [f"## {page}\n", f"{found}.\n", table + "\n", *notes, *([""] if notes else [])]
    lines.append(f"{same} of {total} verdicts are the same.")
    return "\n".join(lines) + "\n", fine


def reason(mine: Claim, other: Claim, differing: list[str], runs: Shared) -> str:
    """A sentence for a verdict that differs from the published one."""
    said = f"published *{other.verdict}*, yours *{mine.verdict}*"
    if mine.broken:
        return f"{said}. {MUST_HOLD}"
    if not differing and runs.same:
        return f"{said}, from the same runs and the same page: something is wrong."
    causes = []
    if mine.n != other.n:
        causes.append(f"yours rests on {mine.n or 0} {mine.unit}, the published one on {other.n or 0}")
    if mine.interval and other.interval:
        wide, wide_there = mine.interval[1] - mine.interval[0], other.interval[1] - other.interval[0]
        if wide > 1.1 * wide_there:
            times = f"{wide / wide_there:.1f} times as wide" if wide_there else "wider: the published one is a point"
            causes.append(f"your interval is {times}")
        overlap = mine.interval[0] <= other.interval[1] and other.interval[0] <= mine.interval[1]
        causes.append("the intervals overlap" if overlap else "the intervals do not overlap")
    if differing:
        causes.append(f"differing: {', '.join(differing)}")
    if runs.equal < runs.shared:
        causes.append("the machines round differently")
    if runs.shared + runs.timed < runs.runs:
        causes.append(f"{runs.runs - runs.shared - runs.timed} of your runs are not published")
    return f"{said}; {'; '.join(causes)}."


def shared(page: str, profile: str) -> Shared:
    """Compare the runs of a finished page with the published records of the same runs."""
    used = {entry["id"]: entry for entry in pages.used_runs(pages.kept(page, profile))}
    names = experiments.all_runs()
    both = equal = timed = 0
    farthest, where = 0.0, ""
    theirs = records.published(page)
    for id, entry in used.items():
        if entry["run"] in names and names[entry["run"]].timed:
            timed += 1
            continue
        if id not in theirs.ids():
            continue
        both += 1
        if theirs.sha256(id) == entry["sha256"]:
            equal += 1
            continue
        if entry["run"] not in names:
            continue
        record, own = theirs.record(id), records.local(theirs.question(id))
        if record is not None and own is not None:
            off, array = difference(record.arrays, own.arrays)
            if off >= farthest:
                farthest, where = off, f"{entry['run']}, {array}, {json.dumps(entry['arguments'])}"
    return Shared(len(used), both, equal, timed, farthest, where)


def difference(one: records.Arrays, other: records.Arrays) -> tuple[float, str]:
    """The largest |difference| of two records over the largest |number| of its array, and the array's name.

    Infinite where names, shapes or types differ, a text or an integer does, or a number is not finite in one alone.
    """
    if sorted(one) != sorted(other):
        return np.inf, f"arrays {sorted(set(one) ^ set(other))}"
    worst, where = 0.0, ""
    for name in one:
        a, b = one[name], other[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf, name
        if a.dtype.kind not in "fc":
            off = 0.0 if np.array_equal(a, b) else np.inf
        else:
            odd = ~(np.isfinite(a) & np.isfinite(b))
            strange = not np.array_equal(a[odd], b[odd], equal_nan=True)
            most = np.abs(b[~odd]).max(initial=0.0)
            off = np.inf if strange else np.abs(a[~odd] - b[~odd]).max(initial=0.0) / (most or 1.0)
        if off > worst:
            worst, where = float(off), name
    return worst, where


def write(profile: str, asked: Iterable[str] | None = None) -> bool:
    """Print the comparison and write it to COMPARISON.md of the profile's results."""
    text, fine = compare(profile, asked)
    path = pages.results_of(profile) / "COMPARISON.md"
    files.write(path, text)
    print(text)
    print(f"written to {path.relative_to(files.ROOT)}")
    return fine


def _shown(claim: Claim) -> str:
    return f"{claims.measured(claim)}: {claim.verdict}"


def _differing(mine: dict[str, Any], published: dict[str, Any]) -> list[str]:
    """In what the two runs of a page differ: parameters, yours for the published; else whether the page itself does."""
    own, other = mine["provenance"]["parameters"], published["provenance"]["parameters"]
    found = [
        f"{name} = {own.get(name)} for {other.get(name)}"
        for name in {**own, **other}
        if own.get(name) != other.get(name)
    ]
    same_page = mine["provenance"]["key"] == published["provenance"]["key"]
    return found if found or same_page else ["the page's cells, what they use, or versions"]
