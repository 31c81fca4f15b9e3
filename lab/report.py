"""The verdict table: from the finished pages into results/ and the README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab import claims, pages
from lab.claims import Claim
from lab.files import ROOT, write, write_json

START, END = "<!-- verdicts: written by `make pages` -->", "<!-- end of verdicts -->"


def collect(profile: str) -> dict[str, Any]:
    """The claims of all pages by name: of those in ``results/<profile>/pages``, else as last recorded.

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
    return [
        Claim(**{**claim, "accept": tuple(claim["accept"]), "interval": claim["interval"] and tuple(claim["interval"])})
        for claim in entry["claims"]
    ]


def report(profile: str, asked: Iterable[str] | None = None) -> bool:
    """Write claims.json, CLAIMS.md, figures/ and tables/ of a profile (of ``full``, the README's table); print the
    verdicts.

    Returns whether every claim that must hold does, and every page ``asked`` for (all of them, if None) is up to date.
    """
    gathered = collect(profile)
    folder = pages.results_of(profile)
    write_json(folder / "claims.json", gathered)
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
    everything = [claim for entry in gathered.values() for claim in claims_of(entry)]
    print("\n".join(f"{claim.name:<26} {claims.measured(claim):<36} {claim.verdict}" for claim in everything))
    broken = [claim.name for claim in everything if claim.broken]
    if broken:
        print(f"MUST HOLD, AND DOES NOT: {', '.join(broken)}")
    old = [page for page in asked or pages.names() if not is_current(page, profile, gathered)]
    if old:
        print(f"OUT OF DATE (failed, or not run since a change): {', '.join(old)}")
    print(f"{len(everything)} claims of {len(gathered)} pages, written to {folder.relative_to(ROOT)}/")
    return not broken and not old


def is_current(page: str, profile: str, gathered: dict[str, Any]) -> bool:
    """Whether the gathered results of a page are those of its present cells, parameters, code and runs."""
    return page in gathered and pages.is_current(page, profile, gathered[page]["provenance"])


def markdown(gathered: dict[str, Any], profile: str) -> str:
    """CLAIMS.md: every claim with prediction, measurement and verdict, and the provenance of every page."""
    parts = [
        f"# Claims and verdicts, profile `{profile}`\n",
        f"{_made_by(profile)}; do not edit. Intervals are 95 %.\n",
    ]
    header = ("claim", "source", "kind", "predicted", "accepted", "measured", "seeds or points", "verdict")
    for page, entry in gathered.items():
        rows = [
            (f"**{claim.name}**: {claim.statement}", claim.source, claim.kind, _or_dash(claim.predicted),
             claims.accepted(claim), claims.measured(claim), _or_dash(claim.seeds), claim.verdict)
            for claim in claims_of(entry)
        ]  # fmt: skip
        origin = entry["provenance"]
        parameters = ", ".join(f"{name} = {value}" for name, value in origin["parameters"].items())
        up = "../" if profile == "full" else "../../"
        parts += [
            f"## [{page}]({up}notebooks/{page}.ipynb)\n",
            table(header, rows) + "\n",
            f"Parameters: {parameters}.\n",
            f"{_runs(origin)}.\n",
        ]
    return "\n".join(parts)


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
    """All that an executed notebook printed, each piece under the last heading before it."""
    parts, heading = [], ""
    for cell in pages.read(executed).cells:
        if cell.cell_type == "markdown":
            heading = next((line for line in reversed(cell.source.splitlines()) if line.startswith("#")), heading)
        else:
            text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout").strip("\n")
            parts += [f"{heading}\n\n{text}\n"] if text else []
    return "\n".join(parts)


def readme_table(gathered: dict[str, Any]) -> str:
    """The README's table: the paper's claims, and of ours, so marked, what did not come out; of the rest, how many."""
    everything = [(page, claim) for page, entry in gathered.items() for claim in claims_of(entry)]
    rows = [
        (f"[{page[:2]}](notebooks/{page}.ipynb)", f"{'*ours:* ' * _is_ours(claim)}{claim.statement}",
         _or_dash(claim.predicted), claims.measured(claim), claim.verdict)
        for page, claim in everything
        if claim.broken or (claim.kind == "replication" and not _ours_and_held(claim))
    ]  # fmt: skip
    held = sum(_ours_and_held(claim) for _, claim in everything)
    kinds = [claim.kind for _, claim in everything if not claim.broken]
    rest = (
        f"Not from the paper, and came out as predicted: {held}. Theorems checked: {kinds.count('theorem')}, pairs of "
        f"implementations that must agree: {kinds.count('parity')}, negative controls that fail, as they must: "
        f"{kinds.count('control')}."
    )
    return table(("page", "claim", "predicted", "measured [95 % interval]", "verdict"), rows) + f"\n\n{rest}"


def _is_ours(claim: Claim) -> bool:
    return not claim.source.startswith("paper")


def _ours_and_held(claim: Claim) -> bool:
    return claim.kind == "replication" and claim.verdict in claims.HELD and _is_ours(claim)


def table(header: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def update_readme(path: Path, gathered: dict[str, Any]) -> None:
    """Replace what stands between the README's two marks by the table.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    text = path.read_text()
    before, found, rest = text.partition(START)
    _, found_end, after = rest.partition(END)
    if not (found and found_end):
        raise ValueError(f"{path.name}: must hold the lines {START} and {END}")
    write(path, f"{before}{START}\n{readme_table(gathered)}\n{END}{after}")


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
