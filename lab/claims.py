"""Claims: predicted before the experiment, judged by a rule that nobody can bend afterwards.

The claims of a page stand in a table beside it, ``notebooks/claims/<page>.csv``, one claim a line; the file's history
says when each was written. A page shows the table before its experiments, and judges every claim by a measured value
and its confidence interval. The verdict follows from the numbers:

=============  ==========================================================================
kind           verdict
=============  ==========================================================================
theorem        ``holds`` if the measured value (its whole interval) is accepted, else ``VIOLATED``
parity         likewise; two implementations of one thing must agree
control        a setting in which the claim must fail: ``fails, as it must`` if the measured value
               is not accepted, else ``CONTROL BROKEN``
experiment     over seeds: the words in ``held`` if the whole interval is accepted, ``not reproduced`` (of a claim
               of ours: ``not as predicted``) if none of it is, ``inconclusive`` if a part is,
               ``too few seeds`` below ``min_seeds``; ``not decidable`` if the claim it presupposes did not hold;
               ``within its limits`` in place of ``as predicted`` where the interval leaves the predicted number out
measurement    one number without seeds, with the same words
(both)         ``fits, formed afterwards`` if the claim was formed after its runs, and holds
illustration   ``shown, not judged``; it counts nowhere
=============  ==========================================================================

Theorems, parities and controls must come out; an experiment may fail, and its failure is a result.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from IPython.display import Markdown, display, update_display

from lab import sweep
from lab.display import Table
from lab.files import write_json
from lab.statistics import Estimate, Interval

KINDS = ("theorem", "parity", "control", "experiment", "measurement", "illustration")
WHOSE = {"paper": "the paper's claim", "harder": "the paper's claim, a harder test of ours", "ours": "our claim"}
KNOWN = {
    "prior": "before any run", "trial": "after trial runs on other seeds", "post hoc": "after its own runs",
}  # fmt: skip
HELD = ("reproduced", "reproduced at small scale", "refined", "as predicted")
LOOSELY, AFTERWARDS = "within its limits", "fits, formed afterwards"  # held, but not as a prediction would
BROKEN = ("VIOLATED", "CONTROL BROKEN")
LEVEL = 0.95
FIRST = ("answer", "figure", "caption", "verdicts")  # what the first screen shows
COLUMNS = ("name", "whose", "kind", "known", "statement", "source", "predicted", "accept", "held", "presupposes",
           "rests_on", "min_seeds", "decimals")  # fmt: skip


class ClaimError(ValueError):
    """A claim is used against the rules: badly written, judged before it was predicted, judged twice, never judged."""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: by which the page judges it.
        statement: what is claimed of the measured number.
        whose: ``paper``, ``harder`` (the paper's claim under a harder test of ours) or ``ours``.
        kind: one of ``KINDS``.
        known: what was known when its limits were set: ``prior``, ``trial`` or ``post hoc``.
        source: where it comes from.
        predicted: the number predicted, or None where only limits are.
        accept: the values that count as success; ``None`` bounds are open.
        held: the word for success of an experiment.
        presupposes: the claim without which this one says nothing, or "".
        rests_on: what else a reader must believe, such as a reconstruction, or "".
        min_seeds: below this no verdict is given.
        decimals: how many of the measured value a page prints where another machine must print the same.
        measured, interval, n, unit, how, shown: the value, its 95 % interval, how many of what it rests on, by which
            statistic, and in words where a number would mislead.
        corrected: the interval at the level that makes all experiments of the page hold together with 95 %.
        verdict, corrected_verdict: by the one interval, and by the other.
        remark: what a reader must know besides.
    """

    name: str
    statement: str
    whose: str
    kind: str
    known: str
    source: str
    predicted: float | None
    accept: tuple[float | None, float | None]
    held: str
    presupposes: str = ""
    rests_on: str = ""
    min_seeds: int = 3
    decimals: int = 3
    measured: float | None = None
    interval: Interval | None = None
    corrected: Interval | None = None
    n: int | None = None
    unit: str = ""
    how: str = ""
    shown: str = ""
    verdict: str | None = None
    corrected_verdict: str | None = None
    remark: str = ""

    @property
    def must_hold(self) -> bool:
        return self.kind in ("theorem", "parity", "control")

    @property
    def broken(self) -> bool:
        return self.verdict in BROKEN

    @property
    def has_held(self) -> bool:
        return self.verdict in (*HELD, LOOSELY, AFTERWARDS, "holds", "fails, as it must")

    @property
    def is_prediction(self) -> bool:
        """Whether it was predicted, and may count as such."""
        return self.known in ("prior", "trial") and self.kind != "illustration"

    def judged(self, estimate: Estimate, family: int = 1, presupposed: Claim | None = None) -> Claim:
        """The claim with its numbers and the verdict that follows from them.

        Args:
            estimate: what was measured.
            family: how many claims share the error probability of the corrected verdict.
            presupposed: the judged claim that this one presupposes.

        Raises:
            ClaimError: an experiment without an interval, or numbers that are not finite or contradict each other.
        """
        measured = estimate.value
        if self.kind == "experiment" and estimate.interval is None:
            raise ClaimError(f"{self.name}: an experiment is judged by its interval, and none was given")
        if not math.isfinite(measured):
            raise ClaimError(f"{self.name}: measured {measured!r} (must be finite)")
        interval = estimate.interval and estimate.interval(LEVEL)
        corrected = estimate.interval and estimate.interval(1 - (1 - LEVEL) / family)
        for found in (interval, corrected):
            if found is not None and not found[0] <= measured <= found[1]:
                raise ClaimError(f"{self.name}: measured {measured!r} lies outside its interval {found!r}")
        known = replace(self, measured=measured, interval=interval, corrected=corrected, n=estimate.n,
                        unit=estimate.unit, how=estimate.how, shown=estimate.shown)  # fmt: skip
        enough = (estimate.n or 0) >= self.min_seeds
        if self.kind == "experiment" and enough and presupposed is not None and not presupposed.has_held:
            remark = f"presupposes {presupposed.name}, which is {presupposed.verdict}"
            return replace(known, verdict="not decidable", corrected_verdict="not decidable", remark=remark)
        verdict = self._verdict(interval or (measured, measured), estimate.n)
        later = self._verdict(corrected, estimate.n) if self.kind == "experiment" and corrected else ""
        if later and enough and presupposed is not None:
            jointly = replace(presupposed, verdict=presupposed.corrected_verdict or presupposed.verdict)
            later = later if jointly.has_held else "not decidable"
        remark = known._not_exactly(verdict)
        if remark and verdict == "as predicted":
            verdict = LOOSELY
        return replace(known, verdict=verdict, corrected_verdict=later, remark=remark)

    def _verdict(self, interval: Interval, n: int | None) -> str:
        low, high = interval
        least, most = _bounds(self.accept)
        inside = least <= low and high <= most
        outside = high < least or low > most
        missed = "not as predicted" if self.whose == "ours" else "not reproduced"
        match self.kind:
            case "illustration":
                return "shown, not judged"
            case "control":
                return "fails, as it must" if outside else "CONTROL BROKEN"
            case "theorem" | "parity":
                return "holds" if inside else "VIOLATED"
        if self.kind == "experiment" and (n or 0) < self.min_seeds:
            return "too few seeds"
        if inside:
            return AFTERWARDS if self.known == "post hoc" else self.held
        return missed if outside or self.kind == "measurement" else "inconclusive"

    def _not_exactly(self, verdict: str) -> str:
        """A word on claims that hold within their limits, and for certain not exactly; a count says it by itself."""
        if self.interval is None or self.predicted is None or verdict not in (*HELD, AFTERWARDS) or self.shown:
            return ""
        low, high = self.interval
        if low <= self.predicted <= high:
            return ""
        off = max(abs(low - self.predicted), abs(high - self.predicted))
        size = f"{100 * off / abs(self.predicted):.2g} %" if self.predicted else f"{off:.2g}"
        jointly = self.corrected is not None and not self.corrected[0] <= self.predicted <= self.corrected[1]
        return f"holds within ±{size}, and {'for certain' if jointly else 'by this interval'} not exactly"


def _bounds(accept: tuple[float | None, float | None]) -> Interval:
    low, high = accept
    return -math.inf if low is None else low, math.inf if high is None else high


def accepts(text: str) -> tuple[float | None, float | None]:
    """The accepted values, from ``≥ a``, ``≤ b``, ``= a``, ``p ± h`` or ``a … b``.

    Raises:
        ValueError: anything else.
    """
    number = r"\s*([-+0-9.eE]+)\s*"
    for pattern, make in (
        (f"≥{number}", lambda a: (a, None)),
        (f"≤{number}", lambda b: (None, b)),
        (f"={number}", lambda a: (a, a)),
        (f"{number}±{number}", lambda p, h: (p - h, p + h)),
        (f"{number}…{number}", lambda a, b: (a, b)),
    ):
        if found := re.fullmatch(pattern, text.strip()):
            return make(*map(float, found.groups()))
    raise ValueError(f"accept: {text!r} (must be '≥ a', '≤ b', '= a', 'p ± h' or 'a … b')")


def claim_of(row: Mapping[str, str], values: Mapping[str, Any] = {}) -> Claim:
    """A claim from a line of the table, with ``values`` put in for names in braces.

    Raises:
        ClaimError: a column or value is missing, a word is not one of the allowed, or the accepted values are empty or
            do not contain the predicted one.
    """
    name = row.get("name") or ""
    if set(row) - set(COLUMNS) or not name:
        raise ClaimError(f"{name or row}: columns {', '.join(map(str, row))} (must be among {', '.join(COLUMNS)})")
    try:
        cells = {column: (row.get(column) or "").format(**values).strip() for column in COLUMNS}
    except (KeyError, IndexError, ValueError) as error:
        raise ClaimError(f"{name}: a value in braces was not given, or not as it is written: {error}") from None
    for column, allowed in (("whose", tuple(WHOSE)), ("kind", KINDS), ("known", tuple(KNOWN))):
        if cells[column] not in allowed:
            raise ClaimError(f"{name}: {column} {cells[column]!r} (must be one of {', '.join(allowed)})")
    if not cells["statement"] or not cells["source"]:
        raise ClaimError(f"{name}: statement and source (must not be empty)")
    held = cells["held"] or ("as predicted" if cells["whose"] == "ours" else "reproduced at small scale")
    if held not in HELD:
        raise ClaimError(f"{name}: held {held!r} (must be one of {', '.join(HELD)})")
    try:
        predicted = float(cells["predicted"]) if cells["predicted"] else None
        illustrates = cells["kind"] == "illustration" and not cells["accept"]
        accept = (None, None) if illustrates else accepts(cells["accept"])
        min_seeds, decimals = (int(cells[column] or 3) for column in ("min_seeds", "decimals"))
    except ValueError as error:
        raise ClaimError(f"{name}: {error}") from None
    low, high = _bounds(accept)
    if not low <= high:
        raise ClaimError(f"{name}: accept {cells['accept']!r} (accepts nothing)")
    if predicted is not None and not low <= predicted <= high:
        raise ClaimError(f"{name}: predicted {predicted!r} is not in accept {cells['accept']!r}")
    return Claim(name, cells["statement"], cells["whose"], cells["kind"], cells["known"], cells["source"], predicted,
                 accept, held, cells["presupposes"], cells["rests_on"], min_seeds, decimals)  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a page's table of claims.

    Raises:
        ClaimError: the file is not there.
    """
    if not path.is_file():
        raise ClaimError(f"{path.name}: the page has no table of claims (claims/{path.name} beside it)")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Page:
    """The claims of one notebook. When the runner set ``KADAM_OUTPUT``, they are written there as they are judged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.claims: dict[str, Claim] = {}
        self.figure: tuple[Any, Any] | None = None  # image and caption of the first screen
        self._answer = ""

    def answer(self, text: str) -> None:
        """Keep the first screen for the page's answer, its figure and its verdicts, which ``verdicts`` puts there.

        ``text`` is Markdown; a claim's name in braces stands for what was measured, as in ``say``.
        """
        self._answer = text
        for part in FIRST:
            display(Markdown("*(the page is being computed)*"), display_id=self._id(part))

    def predict(self, *, without: Sequence[str] = (), **values: Any) -> None:
        """Read the page's claims, before the experiments, and show them.

        Args:
            without: beginnings of names of claims that this run of the page does not test.
            values: what stands for the names in braces in the table, computed by the page.

        Raises:
            ClaimError: predicted twice, or after a sweep; no table; a line of it is against the rules; a claim
                presupposes one that does not stand above it.
        """
        if self.claims:
            raise ClaimError(f"{self.name}: predicted twice")
        asked = Path(os.environ.get("KADAM_OUTPUT", "")) / sweep.USED
        if os.environ.get("KADAM_OUTPUT") and asked.is_file():
            raise ClaimError(f"{self.name}: predicted after an experiment (a sweep has run already)")
        for row in read(Path("claims") / f"{self.name}.csv"):
            if any((row["name"] or "").startswith(start) for start in without):
                continue
            claim = claim_of(row, values)
            if claim.name in self.claims:
                raise ClaimError(f"{claim.name}: stands twice in the table")
            if claim.presupposes and claim.presupposes not in self.claims:
                raise ClaimError(f"{claim.name}: presupposes {claim.presupposes!r} (must stand above it)")
            self.claims[claim.name] = claim
        display(predictions(self.claims.values()))

    @property
    def family(self) -> int:
        """How many experiments share the error probability of the corrected verdicts."""
        return max(1, sum(claim.kind == "experiment" for claim in self.claims.values()))

    def judge(self, name: str, found: Estimate | float, remark: str = "") -> None:
        """Judge a predicted claim, once, by an estimate (``lab.statistics``) or a plain number.

        ``remark`` says what a reader must know besides the verdict.

        Raises:
            ClaimError: the claim was not predicted, is judged already, presupposes one that is not judged yet, or the
                numbers are not finite.
        """
        if name not in self.claims:
            raise ClaimError(f"{name}: judged without a prediction (it must stand in the page's table of claims)")
        claim = self.claims[name]
        if claim.verdict is not None:
            raise ClaimError(f"{name}: judged twice")
        presupposed = self.claims.get(claim.presupposes)
        if presupposed is not None and presupposed.verdict is None:
            raise ClaimError(f"{name}: judged before {presupposed.name}, which it presupposes")
        estimate = found if isinstance(found, Estimate) else Estimate(float(found))
        judged = claim.judged(estimate, self.family, presupposed)
        self.claims[name] = replace(judged, remark="; ".join(filter(None, (judged.remark, remark))))
        output = os.environ.get("KADAM_OUTPUT")
        if output:
            write_json(Path(output) / "claims.json", [asdict(claim) for claim in self.claims.values()])

    def say(self, text: str) -> None:
        """Show a reading: Markdown in which ``{name}`` is a claim's measured value, ``{name.verdict}`` its verdict.

        Raises:
            ClaimError: a name is no claim's, or its claim is not judged.
        """
        display(Markdown(self.filled(text)))

    def filled(self, text: str) -> str:
        """``text`` with the numbers of ``say`` put in."""
        return filled(text, self.claims)

    def verdicts(self) -> None:
        """Show every verdict with its numbers here, and the answer, its figure and the verdicts on the first screen.

        Raises:
            ClaimError: a predicted claim was never judged.
        """
        for claim in self.claims.values():
            if claim.verdict is None:
                raise ClaimError(f"{claim.name}: predicted, never judged")
        judged = list(self.claims.values())
        if self._answer:
            if self.figure is None:
                raise ClaimError(f"{self.name}: no figure for the first screen (figures.save(…, page=page) gives one)")
            contents = (Markdown(self.filled(self._answer)), *self.figure, summary(judged))
            for part, content in zip(FIRST, contents, strict=True):
                update_display(content, display_id=self._id(part))
        display(details(judged, recorded(self.name)))

    def _id(self, part: str) -> str:
        return f"{self.name}-{part}"


def filled(text: str, known: Mapping[str, Claim]) -> str:
    """``text`` with ``{name}``, ``{name.value}`` and ``{name.verdict}`` put in for the claims in ``known``.

    Raises:
        ClaimError: a name is no claim's, or its claim is not judged.
    """

    def put_in(found: re.Match[str]) -> str:
        claim = known.get(found["name"])
        if claim is None or claim.verdict is None:
            raise ClaimError(f"{found['name']}: is no judged claim, and stands in a text")
        words = {"verdict": f"*{claim.verdict}*", "value": f"{claim.measured:.3g}"}
        return words.get(found["what"], brief(claim))

    return re.sub(r"\{(?P<name>[\w:-]*\w)(?:\.(?P<what>verdict|value))?\}", put_in, text)


def predictions(claims: Iterable[Claim]) -> Table:
    """What is claimed, by whom, and which values will count as success."""
    rows = [
        (claim.name, claim.statement, whose(claim), claim.kind, KNOWN[claim.known], accepted(claim)) for claim in claims
    ]
    return Table(("name", "claim", "whose", "kind", "limits set", "accepted"), rows)


def summary(claims: Iterable[Claim]) -> Table:
    """The verdicts a reader wants first: the experiments and measurements; how many of the rest came out as a note."""
    everything = list(claims)
    first = [claim for claim in everything if not claim.must_hold and claim.kind != "illustration"]
    rows = [(claim.statement, whose(claim), shown(claim), said(claim)) for claim in (*first, *_broken(everything))]
    kinds = {kind: [c for c in everything if c.kind == kind] for kind in ("theorem", "parity", "control")}
    words = {"theorem": "theorems checked", "parity": "pairs of implementations that agree",
             "control": "controls that fail, as they must"}  # fmt: skip
    rest = ", ".join(f"{len(found)} {words[kind]}" for kind, found in kinds.items() if found)
    return Table(("claim", "whose", "measured [95 %]", "verdict"), rows, note=rest and f"Besides: {rest}.")


def _broken(claims: Iterable[Claim]) -> list[Claim]:
    return [claim for claim in claims if claim.broken]


def recorded(page: str) -> dict[str, str]:
    """The published verdicts of the shorter profile ``standard``, by claim."""
    path = Path("..") / "results" / "recorded" / "claims.json"
    pages = json.loads(path.read_text()) if path.is_file() else {}
    return {claim["name"]: claim["verdict"] for claim in pages.get(page, {"claims": []})["claims"]}


def differing(claims: Iterable[Claim], shorter: Mapping[str, str]) -> str:
    """A sentence on the claims whose verdict is another in the shorter profile."""
    other = [
        f"{claim.name} ({shorter[claim.name]}, here {claim.verdict})"
        for claim in claims
        if claim.name in shorter and shorter[claim.name] != claim.verdict
    ]
    return f"With fewer seeds, steps and points (`standard`) another verdict: {'; '.join(other)}." if other else ""


def details(claims: Sequence[Claim], shorter: Mapping[str, str] = {}) -> Table:
    """Every claim with its numbers, rounded where another machine must print the same."""
    rows = [
        (claim.name, claim.kind, accepted(claim), shown(claim), how(claim), said(claim), claim.corrected_verdict or "–")
        for claim in claims
    ]
    note = "*All experiments together*: the verdict when 95 % is to hold for all experiments of the page at once."
    note = " ".join(filter(None, (note, differing(claims, shorter))))
    header = ("name", "kind", "accepted", "measured [95 %]", "from", "verdict", "all experiments together")
    return Table(header, rows, note=note)


def how(claim: Claim) -> str:
    """By which statistic, and of how many."""
    return " ".join(part for part in (claim.how, f"of {claim.n} {claim.unit}" if claim.n else "") if part) or "–"


def whose(claim: Claim) -> str:
    """Whose claim it is, and what it rests on."""
    return WHOSE[claim.whose] + (f"; rests on {claim.rests_on}" if claim.rests_on else "")


def said(claim: Claim) -> str:
    """The verdict, and what must be known besides."""
    return f"{claim.verdict}" + (f" ({claim.remark})" if claim.remark else "")


def shown(claim: Claim) -> str:
    """What a page shows as measured: rounded where there is no interval; nothing where seeds are too few."""
    if claim.verdict == "too few seeds":
        return "–"
    if claim.shown or claim.interval is not None:
        return measured(claim)
    return f"{claim.measured:.{claim.decimals}f}"


def accepted(claim: Claim) -> str:
    """The accepted values as a table shows them: ``≥ a``, ``≤ b``, ``p ± h`` about the prediction, or ``a … b``."""
    low, high = claim.accept
    if low is None and high is None:
        return "–"
    if low is None:
        return f"≤ {high:.10g}"
    if high is None:
        return f"≥ {low:.10g}"
    if low == high:
        return f"= {low:g}"
    if claim.predicted is not None and math.isclose(claim.predicted, (low + high) / 2, abs_tol=1e-12):
        return f"{claim.predicted:g} ± {(high - low) / 2:.4g}"
    return f"{low:g} … {high:g}"


def measured(claim: Claim) -> str:
    """Measured value, in words where it has some, with its interval."""
    return _with_interval(claim, 4)


def brief(claim: Claim) -> str:
    """The same, as prose takes it: three digits, or four where three would not tell the numbers apart."""
    ends = [claim.measured, *(claim.interval or ())]
    return _with_interval(claim, 3 if len({f"{end:.3g}" for end in ends}) == len(ends) else 4)


def _with_interval(claim: Claim, digits: int) -> str:
    value = claim.shown or f"{claim.measured:.{digits}g}"
    if claim.interval is None:
        return value
    if claim.how.startswith("share"):  # beside "k of n", per cent of all that could be drawn
        return f"{value} [{claim.interval[0]:.0%}, {claim.interval[1]:.0%}]"
    return f"{value} [{claim.interval[0]:.{digits}g}, {claim.interval[1]:.{digits}g}]"
