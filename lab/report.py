"""What the finished pages claim: into results/ and the README."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab import claims, pages
from lab.claims import Claim
from lab.files import ROOT, write, write_json

PAPER = "paper.csv"  # in notebooks/claims/: the paper's own claims, and which of ours test them


def collect(profile: str) -> dict[str, Any]:
    """The claims of all pages by name: of those in the profile's ``pages/``, else as last recorded.

    What is recorded stays also where it is up to date and the folder is not, as after a merge. A page whose notebook
    is gone is dropped.
    """
    recorded = recorded_claims(profile)
    gathered = {}
    for page in pages.names():
        folder = pages.kept(page, profile)
        if page in recorded:
            gathered[page] = recorded[page]
        if pages.is_whole(folder):
            found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("provenance", "claims")}
            same = page in recorded and found["provenance"] == recorded[page]["provenance"]
            if same or not is_current(page, profile, recorded):
                gathered[page] = found
    return gathered


def recorded_claims(profile: str) -> dict[str, Any]:
    """What results/ of the profile holds already."""
    path = pages.results_of(profile) / "claims.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def claims_of(entry: dict[str, Any]) -> list[Claim]:
    pairs = ("accept", "interval", "corrected")
    return [
        Claim(**{**claim, **{name: claim[name] and tuple(claim[name]) for name in pairs}}) for claim in entry["claims"]
    ]


def report(profile: str, asked: Iterable[str] | None = None) -> bool:
    """Write what a profile's pages claim (``write_results``) and print the verdicts.

    Returns whether every claim that must hold does, and every page ``asked`` for (all of them, if None) is up to date.
    """
    gathered = write_results(profile)
    everything = [claim for entry in gathered.values() for claim in claims_of(entry)]
    print("\n".join(f"{claim.name:<26} {claims.measured(claim):<36} {claim.verdict}" for claim in everything))
    broken = [claim.name for claim in everything if claim.broken]
    if broken:
        print(f"MUST HOLD, AND DOES NOT: {', '.join(broken)}")
    old = [page for page in asked or pages.names() if not is_current(page, profile, gathered)]
    if old:
        print(f"OUT OF DATE (failed, or not run since a change): {', '.join(old)}")
    where = pages.results_of(profile).relative_to(ROOT)
    print(f"{len(everything)} claims of {len(gathered)} pages, written to {where}/")
    return not broken and not old


def write_results(profile: str) -> dict[str, Any]:
    """Write claims.json, CLAIMS.md, figures/ and tables/ of a profile, and of ``full`` the README's blocks.

    Of ``recorded``, only claims.json: it is the shorter profile, kept to compare verdicts. Returns what ``collect``
    gives.
    """
    gathered = collect(profile)
    folder = pages.results_of(profile)
    write_json(folder / "claims.json", gathered)
    if profile == pages.RECORDED:
        return gathered
    write(folder / "CLAIMS.md", markdown(gathered, profile))
    for page, entry in gathered.items():
        kept = pages.kept(page, profile)
        if pages.is_whole(kept) and json.loads((kept / "provenance.json").read_text()) == entry["provenance"]:
            for figure in sorted((kept / "figures").glob("*.png")):
                write(folder / "figures" / figure.name, figure.read_bytes())
            write(folder / "tables" / f"{page}.txt", printed(kept / "executed.ipynb"))
    wanted = {name for entry in gathered.values() for name in entry["provenance"]["figures"]}
    wanted |= {f"{page}.txt" for page in gathered}
    for path in [*(folder / "figures").glob("*.png"), *(folder / "tables").glob("*.txt")]:
        if path.name not in wanted:
            path.unlink()
    if profile == "full":
        update_readme(ROOT / "README.md", gathered)
    return gathered


def is_current(page: str, profile: str, gathered: dict[str, Any]) -> bool:
    """Whether the gathered results of a page are those of its present cells, parameters, code and runs."""
    return page in gathered and pages.is_current(page, profile, gathered[page]["provenance"])


def markdown(gathered: dict[str, Any], profile: str) -> str:
    """CLAIMS.md: every claim with prediction, measurement and verdict, and the provenance of every page."""
    parts = [
        f"# Claims and verdicts, profile `{profile}`\n",
        f"{_made_by(profile)}; do not edit. Intervals are 95 %. *All together*: the verdict when 95 % is to hold for "
        "all experiments of a page at once. *Limits set*: when the accepted values were fixed.\n",
        f"{counts(gathered)}\n",
    ]
    header = ("claim", "whose", "kind", "limits set", "predicted", "accepted", "measured", "from", "verdict",
              "all together")  # fmt: skip
    recorded = recorded_claims(pages.RECORDED) if profile == "full" else {}
    for page, entry in gathered.items():
        judged = claims_of(entry)
        rows = [
            (f"**{claim.name}**: {claim.statement}", f"{claims.whose(claim)} ({claim.source})", claim.kind,
             claims.KNOWN[claim.known], _or_dash(claim.predicted), claims.accepted(claim), claims.measured(claim),
             claims.how(claim), claims.said(claim), claim.corrected_verdict or "–")
            for claim in judged
        ]  # fmt: skip
        origin = entry["provenance"]
        parameters = ", ".join(f"{name} = {value}" for name, value in origin["parameters"].items())
        up = "../" if profile == "full" else "../../"
        shorter = {claim.name: claim.verdict or "" for claim in claims_of(recorded.get(page, {"claims": []}))}
        other = claims.differing(judged, shorter)
        parts += [
            f"## [{page}]({up}notebooks/{page}.ipynb)\n",
            table(header, rows) + "\n",
            *([other + "\n"] if other else []),
            f"Parameters: {parameters}.\n",
            f"{_runs(origin)}.\n",
        ]
    return "\n".join(parts)


def counts(gathered: dict[str, Any]) -> str:
    """A sentence: how many claims of each kind there are, and what came of them."""
    everything = [claim for entry in gathered.values() for claim in claims_of(entry)]
    predictions = [claim for claim in everything if claim.is_prediction and not claim.must_hold]
    parts = []
    owners = {"paper": "Of the paper's claims", "harder": "Under harder tests of ours", "ours": "Of our own"}
    for whose, words in owners.items():
        tested = [claim for claim in predictions if claim.whose == whose]
        found = Counter(claim.verdict or "" for claim in tested)
        said = ", ".join(f"{number} {verdict}" for verdict, number in found.most_common())
        parts += [f"{words}, {len(tested)}: {said}."] if tested else []
    kinds = Counter(claim.kind for claim in everything if claim.has_held)
    parts.append(f"Theorems checked: {kinds['theorem']}, pairs of implementations that agree: {kinds['parity']}, "
                 f"controls that fail, as they must: {kinds['control']}.")  # fmt: skip
    broken = [f"{claim.name} ({claim.verdict})" for claim in everything if claim.broken]
    parts += [f"**These must hold, and do not: {', '.join(broken)}.**"] if broken else []
    later = [claim.name for claim in everything if claim.known == "post hoc"]
    return " ".join([*parts, *([f"Formed after the runs, and no predictions: {', '.join(later)}."] if later else [])])


def _made_by(profile: str) -> str:
    if profile == "full":
        return "What is published, from the records in `results/records/`. Written by `make pages`"
    return "Written by `make reproduce`"


def _runs(origin: dict[str, Any]) -> str:
    """How many runs a page rests on, of which kinds, and with which versions."""
    if not origin["runs"]:
        return "From no runs"
    kinds = ", ".join(f"`{name}`" for name in origin["rests_on"])
    versions = {
        json.dumps(made["versions"]): made["versions"] for found in origin["rests_on"].values() for made in found
    }
    named = {f"{name} {version}" for found in versions.values() for name, version in found.items()}
    return f"From {origin['runs']} runs: {kinds} ({', '.join(sorted(named))})"


def printed(executed: Path) -> str:
    """The text of all that an executed notebook shows, each piece under the last heading before it."""
    parts, heading = [], ""
    for cell in pages.read(executed).cells:
        if cell.cell_type == "markdown":
            heading = next((line for line in reversed(cell.source.splitlines()) if line.startswith("#")), heading)
        else:
            text = "\n".join(filter(None, map(_text, cell.outputs)))
            parts += [f"{heading}\n\n{text}\n"] if text else []
    return "\n".join(parts)


def _text(output: Any) -> str:
    data = output.get("data", {})
    if "text/markdown" in data:
        return str(data["text/markdown"])
    if "text/html" in data and "<table" in data["text/html"]:
        return str(data["text/plain"])
    return str(output.text).strip("\n") if output.get("name") == "stdout" else ""


def readme_table(gathered: dict[str, Any], folder: Path) -> str:
    """The paper's own claims, a row for each: its setting, ours, what came of it, and of harder tests."""
    known = {(page[:2], claim.name): claim for page, entry in gathered.items() for claim in claims_of(entry)}
    rows = []
    path = folder / PAPER
    for row in claims.read(path) if path.is_file() else []:
        names = [tuple(word.split(":")) for word in row["claims"].split()]
        tested = [known[name] for name in names if name in known]
        links = ", ".join(f"[{page[:2]}](notebooks/{page}.ipynb)" for page in gathered if page[:2] in row["claims"])
        own, harder = ([claim for claim in tested if claim.whose == whose] for whose in ("paper", "harder"))
        rows.append((links, row["claim"], row["paper"], row["ours"], verdicts_of(own), verdicts_of(harder)))
    header = ("page", "the paper's claim", "there", "here", "verdict", "under harder tests")
    note = "*–*: the paper's own test was not repeated, only harder ones. *Shown, not judged*: decides nothing."
    return f"{table(header, rows)}\n\n{note} {counts(gathered)}"


def verdicts_of(tested: Sequence[Claim]) -> str:
    """The verdicts of a few claims in a few words."""
    found = Counter(claim.verdict or "" for claim in tested)
    if len(found) == 1 or not tested:
        return next(iter(found), "–")
    return ", ".join(f"{number} {verdict}" for verdict, number in found.most_common())


def findings(gathered: dict[str, Any], path: Path) -> str:
    """The README's findings, from a text in which ``{02:rate}`` stands for a claim's measured value.

    Raises:
        ClaimError: a name is no claim's.
    """
    known = {f"{page[:2]}:{claim.name}": claim for page, entry in gathered.items() for claim in claims_of(entry)}
    return claims.filled(path.read_text(encoding="utf-8").strip(), known) if path.is_file() else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def marks(block: str) -> tuple[str, str]:
    """The lines between which the README holds a block."""
    return f"<!-- {block}: written by `make pages` -->", f"<!-- end of {block} -->"


def update_readme(path: Path, gathered: dict[str, Any]) -> None:
    """Write anew what stands between the README's marks.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    folder, text = path.parent / "notebooks" / "claims", path.read_text(encoding="utf-8")
    blocks = {"findings": findings(gathered, folder / "findings.md"), "verdicts": readme_table(gathered, folder)}
    for block, written in blocks.items():
        start, end = marks(block)
        before, found, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        if not (found and found_end):
            raise ValueError(f"{path.name}: must hold the lines {start} and {end}")
        text = f"{before}{start}\n{written}\n{end}{after}"
    write(path, text)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
