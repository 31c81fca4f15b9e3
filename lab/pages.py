"""The notebooks as pages: what they are, which parameters they take, how they are run, kept and checked.

A committed notebook holds the parameters of the profile ``full`` and the outputs that follow from the published records
(``make pages``). The other profiles change parameters (``notebooks/parameters/``) and compute from nothing. What
``standard`` gives is published too, as ``recorded``: its parameters, from the published records.

A page is run into a folder of its own, which takes its final name only when everything went well. Its record names
what it was computed from, so a finished page is not run again unless its cells, its parameters, the code that they use
or a run's results changed; prose and the look of figures do not count.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from lab import experiments, fingerprint, provenance, records, sweep
from lab.claims import BROKEN
from lab.files import CACHE, NOTEBOOKS, RESULTS, locked, write_json

PROFILES = ("smoke", "standard", "full")
RECORDED = "recorded"  # what ``standard`` gives from the published records
IGNORE = "# NBVAL_IGNORE_OUTPUT"  # a line of its own, or nbval overlooks it: the machine or the clock decides
LOOKS = ("lab.figures", "lab.display", "lab.sweep", "lab.progress")  # modules that change no number of a page
STRIPPED = ("metadata.papermill", "cell.metadata.papermill", "cell.metadata.execution",
            "metadata.language_info.version")  # fmt: skip


class PageError(RuntimeError):
    """A page cannot be run, or what it left is not whole."""


def names() -> list[str]:
    """All pages, in reading order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[!.]*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def results_of(profile: str) -> Path:
    """The folder of a profile's results: that of ``full``, which is published, is results/ itself."""
    return RESULTS if profile == "full" else RESULTS / profile


def kept(page: str, profile: str) -> Path:
    """The folder in which a finished page lies: executed.ipynb, claims.json, figures/, provenance.json."""
    return results_of(profile) / "pages" / page


def parameters_of(page: str, profile: str) -> dict[str, Any]:
    """The page's parameters under ``profile``: the values in its parameters cell, which are those of ``full``; for
    another profile overridden by its file.

    Raises:
        PageError: the profile's file names a parameter that the page does not have, or of another type.
    """
    defaults = default_parameters(NOTEBOOKS / f"{page}.ipynb")
    if profile == "full":
        return defaults
    profile = "standard" if profile == RECORDED else profile
    file = NOTEBOOKS / "parameters" / f"{profile}.yaml"
    values = yaml.safe_load(file.read_text()) or {}
    unknown = set(values) - set(names())
    if unknown:
        raise PageError(f"{file.name}: no notebook is called {', '.join(sorted(unknown))}")
    return {**defaults, **checked_parameters(values.get(page) or {}, defaults, f"{file.name}, {page}")}


def checked_parameters(values: dict[str, Any], defaults: dict[str, Any], where: str) -> dict[str, Any]:
    """``values``, if every name is among ``defaults`` and has its type there (an int will do for a float).

    Raises:
        PageError: names the parameter. (papermill only warns about an unknown one.)
    """
    for name, value in values.items():
        if name not in defaults:
            raise PageError(f"{where}: unknown parameter {name!r} (known: {', '.join(defaults)})")
        pairs = [(value, defaults[name])]
        if type(value) is type(defaults[name]) is list:
            pairs = [(element, defaults[name][0]) for element in value]
        for given, default in pairs:
            wanted = type(default)
            if type(given) is not wanted and not (wanted is float and type(given) is int):
                raise PageError(f"{where}: parameter {name} = {value!r} ({given!r} must be of type {wanted.__name__})")
    return values


def default_parameters(path: Path) -> dict[str, Any]:
    """The assignments of the cell tagged ``parameters``, which must be literals.

    Raises:
        PageError: there is not exactly one such cell, or it holds something else.
    """
    cells = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise PageError(f"{path.name}: {len(cells)} cells tagged 'parameters' (must be one)")
    found = {}
    for node in ast.parse(cells[0].source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_literal(value):
                found[name] = ast.literal_eval(value)
            case _:
                raise PageError(f"{path.name}: parameters cell, line {node.lineno}: must be 'name = literal'")
    return found


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def key_of(page: str, parameters: dict[str, Any]) -> str:
    """What a page's numbers depend on besides its runs: code cells, parameters, what they use, claims, versions."""
    cells = [cell for cell in read(NOTEBOOKS / f"{page}.ipynb").cells if cell.cell_type == "code"]
    code = [cell.source for cell in cells if "parameters" not in cell.metadata.get("tags", [])]
    source = "\n".join(line for text in code for line in text.split("\n") if not line.startswith("%"))
    runs = [run.function for run in experiments.all_runs().values()]  # their results count, not their code
    stop = [*LOOKS, *(f"{run.__module__}.{run.__qualname__}" for run in runs)]
    closure = fingerprint.here().of_source(source, stop)
    # the closure knows no order, which a page depends on
    order = [fingerprint.here().of_source(ast.unparse(part)).fingerprint for part in ast.parse(source).body]
    versions = provenance.versions(closure.packages & {"scipy", "sympy"})
    table = NOTEBOOKS / "claims" / f"{page}.csv"
    claimed = table.read_text(encoding="utf-8") if table.is_file() else ""
    return provenance.digest(
        {"code": closure.fingerprint, "order": order, "parameters": parameters, "claims": claimed, "versions": versions}
    )


def is_current(page: str, profile: str, origin: dict[str, Any]) -> bool:
    """Whether results of this ``provenance`` are those of the page's present cells, parameters, code and runs."""
    known = experiments.all_runs()
    return origin["key"] == key_of(page, parameters_of(page, profile)) and all(
        name in known and records.stands(made, name) for name, found in origin["rests_on"].items() for made in found
    )


def run(page: str, profile: str, overrides: dict[str, Any] | None = None) -> bool:
    """Run a page headlessly unless it is up to date. Returns whether it ran.

    With ``overrides`` of its parameters it is kept under results/custom/ and never enters the verdict table.

    Raises:
        PageError: an unknown page, profile or parameter; the page failed; it did not judge what it predicted.
    """
    source = _source(page)
    parameters = parameters_of(page, profile)
    if overrides:
        parameters = {**parameters, **checked_parameters(overrides, parameters, page)}
        profile = "custom"
    target = kept(page, profile)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f"{page}.lock", lambda: say(page, "is being run by another process; waits for it")):
        if not overrides and is_whole(target) and is_current(page, profile, origin_of(target)):
            say(page, "up to date")
            return False
        for stale in target.parent.glob(f".{page}.*"):
            shutil.rmtree(stale)
        partial, failed = target.parent / f".{page}.partial", target.parent / f"{page}.failed"
        partial.mkdir()
        say(page, f"starts ({profile})")
        start = time.monotonic()
        try:
            _execute(source, partial, parameters if profile != "full" else {})
            _require_verdicts(page, partial / "claims.json")
        except PageError as error:
            shutil.rmtree(failed, ignore_errors=True)
            partial.replace(failed)
            raise PageError(f"{error} (what it left is kept in {failed.relative_to(RESULTS.parent)}/)") from None
        seconds = round(time.monotonic() - start)
        write_json(partial / "provenance.json", _origin(page, profile, parameters, partial))
        if target.exists():
            target.replace(target.parent / f".{page}.old")
        partial.replace(target)
        for gone in (target.parent / f".{page}.old", failed):
            shutil.rmtree(gone, ignore_errors=True)
    say(page, f"finished in {seconds // 60} min {seconds % 60} s")
    return True


def _origin(page: str, profile: str, parameters: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a finished page was computed from."""
    used = used_runs(folder)
    rests_on: dict[str, list[dict[str, Any]]] = {}
    for entry in used:
        made = {name: entry[name] for name in ("code", "data", "versions")}
        if made not in rests_on.setdefault(entry["run"], []):
            rests_on[entry["run"]].append(made)
    return {
        "page": page, "profile": profile, "key": key_of(page, parameters), "parameters": parameters,
        "runs": len({entry["id"] for entry in used}), "rests_on": rests_on,
        "figures": sorted(path.name for path in folder.glob("figures/*.png")),
    }  # fmt: skip


def used_runs(folder: Path) -> list[dict[str, Any]]:
    """What a page asked for while it ran, with what the answers were made from; nothing where it swept nothing."""
    path = folder / sweep.USED
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [entry for entry in map(json.loads, lines) if "sha256" in entry]


def origin_of(folder: Path) -> dict[str, Any]:
    """The ``provenance.json`` of a finished page."""
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def _require_verdicts(page: str, path: Path) -> None:
    judged = json.loads(path.read_text()) if path.is_file() else []
    open_claims = [claim["name"] for claim in judged if claim["verdict"] is None]
    if open_claims or not judged:
        raise PageError(f"{page}: finished without judging {', '.join(open_claims) or 'a claim'}")


def _source(page: str) -> Path:
    if page not in names():
        raise PageError(f"page: {page!r} (must be one of {', '.join(names())})")
    return NOTEBOOKS / f"{page}.ipynb"


def is_whole(folder: Path) -> bool:
    """Whether a page's folder holds all that a finished page leaves, and it can be read."""
    try:
        read(folder / "executed.ipynb")
        used_runs(folder)
        return all(json.loads((folder / f"{name}.json").read_text()) for name in ("claims", "provenance"))
    except (OSError, ValueError):  # missing or cut off: the page is run again
        return False


def _execute(source: Path, folder: Path, parameters: dict[str, Any]) -> None:
    progress = folder / "progress"
    os.environ["KADAM_OUTPUT"], os.environ["KADAM_PROGRESS"] = str(folder), str(progress)
    stop = threading.Event()
    watcher = threading.Thread(target=_tell, args=(source.stem, progress, stop), daemon=True)
    watcher.start()
    try:
        _papermill(source, folder / "executed.ipynb", parameters)
    finally:
        stop.set()
        watcher.join()
        progress.unlink(missing_ok=True)
    normalise(folder / "executed.ipynb")


def _papermill(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    # the kernel's own warnings (it speaks plain TCP on this machine) are not the reader's concern
    try:
        # one print after the other is one output, however slow they come
        papermill.execute_notebook(source, target, parameters, cwd=NOTEBOOKS, kernel_name="python3", progress_bar=False,
                                   coalesce_streams=True, extra_arguments=["--log-level=CRITICAL"])  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise PageError(f"{source.stem}: cell {error.exec_count} raised {error.ename}: {error.evalue}") from None
    except (DeadKernelError, CellTimeoutError) as error:
        raise PageError(f"{source.stem}: {error} (out of memory?)") from None


def _tell(page: str, progress: Path, stop: threading.Event) -> None:
    """Print the page's progress when it changed, at most every five seconds."""
    last = ""
    while not stop.wait(5):
        line = progress.read_text() if progress.exists() else ""
        if line and line != last:
            say(page, line)
            last = line


def say(page: str, text: str) -> None:
    print(f"{page:<22} {text}", file=sys.stderr, flush=True)


def normalise(path: Path) -> None:
    """Take from an executed notebook what differs between two identical runs; outputs and counts stay."""
    subprocess.run(
        [sys.executable, "-m", "nbstripout", "--keep-output", "--keep-count", "--extra-keys", " ".join(STRIPPED), path],
        check=True,
    )


def from_records(page: str, profile: str) -> Path:
    """Run a page anew from the published records alone; returns the folder in which it then lies.

    Raises:
        PageError: a record is missing or no longer stands; the page failed.
    """
    os.environ["KADAM_CACHE"], os.environ["KADAM_RECORDS"] = "off", "only"
    shutil.rmtree(kept(page, profile), ignore_errors=True)  # also where nothing changed: this is what is to be shown
    run(page, profile)
    return kept(page, profile)


def execute_in_place(page: str) -> None:
    """Execute a committed notebook from the published records alone; keep its outputs, normalised, and its claims.

    Raises:
        PageError: a record is missing or no longer stands; the page failed.
    """
    path = _source(page)
    executed = from_records(page, "full") / "executed.ipynb"
    CACHE.mkdir(exist_ok=True)
    temporary = CACHE / f"{page}.ipynb"
    shutil.copyfile(executed, temporary)
    temporary.replace(path)


def publish(page: str, partial: bool = False) -> int:
    """Compute what the published page lacks, and publish its records; returns how many.

    Args:
        partial: compute nothing; publish those that are on this machine already, beside those that are published.

    Raises:
        PageError: the page failed; or a run that it used has no record, so that it cannot be published.
    """
    folder = kept(page, "full")
    os.environ["KADAM_RECORDS"] = "use"
    if not partial:
        run(page, RECORDED)
        run(page, "full")
        entries = [*used_runs(kept(page, RECORDED)), *used_runs(folder)]
    else:
        running = [folder.parent / f".{page}.partial", folder.parent / f"{page}.failed", folder]
        asked_in = next((place / sweep.USED for place in running if (place / sweep.USED).is_file()), None)
        if asked_in is None:
            raise PageError(f"{page}: has asked for no runs yet (make records PAGES={page} starts it)")
        lines = asked_in.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines[:-1]]  # what follows the last end of line is being written
    names = experiments.all_runs()
    asked = {entry["id"]: entry for entry in entries if entry["run"] in names}
    found = {}
    for id, entry in asked.items():
        record = records.find(records.Asked(names[entry["run"]], records.unplain(entry["arguments"])))
        if record is not None:
            found[id] = record
    if partial:
        before = records.published(page)
        readable = {id: before.record(id) for id in before.ids() if id not in found}
        found |= {id: record for id, record in readable.items() if record is not None}
    elif len(found) < len(asked):
        raise PageError(
            f"{page}: {len(asked) - len(found)} of its {len(asked)} runs have no record here, so nothing is published "
            f"(KADAM_CACHE=off keeps none; else remove {folder.relative_to(RESULTS.parent)}/)"
        )
    records.publish(page, found.values())
    return len(found)


def _switches_nbval(text: str) -> bool:
    return bool(re.search(r"NBVAL_(?!IGNORE_OUTPUT)|PYTEST_VALIDATE|^nbval-|^raises-exception$", text))


def faults(path: Path) -> list[str]:
    """What is wrong with a committed notebook as nbval would let it pass: nothing, when the list is empty."""
    cells = read(path).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    found = []
    verdicts = [cell for cell in code if "page.verdicts()" in cell.source]
    if not any(cell.outputs for cell in verdicts):
        found.append("the verdicts are not shown, so nbval would accept any")
    for cell in code:
        first, second = [*cell.source.split("\n"), ""][:2]
        if IGNORE in cell.source and not (first == IGNORE and second.startswith("# ")):
            found.append(f"a cell is not compared and does not say why (must start with '{IGNORE}', then '# reason')")
    if any(IGNORE in cell.source for cell in verdicts):
        found.append("the verdicts are not compared")
    others = [word for cell in code for word in (cell.source, *cell.metadata.get("tags", [])) if _switches_nbval(word)]
    if others:
        found.append(f"a cell tells nbval something else than {IGNORE}")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed from top to bottom in one go")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append("an error is stored in the outputs")
    if any(word in json.dumps(output) for cell in verdicts for output in cell.outputs for word in BROKEN):
        found.append("a claim that must hold does not")
    if any("#" in cell.source.split("\n") for cell in cells if cell.cell_type == "markdown"):
        found.append("prose stands behind comment signs")
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    if any(not image.metadata.get("image/png", {}).get("alt") for image in images):
        found.append("a figure has no alt text (figures.save gives it one)")
    try:
        default_parameters(path)
    except PageError as error:
        found.append(str(error))
    return [f"{path.name}: {fault}" for fault in found]


CELL_LINES, PAGE_LINES, LINE, LIMITS_WORDS, PROSE_WORDS = 15, 250, 120, 300, 3500
SECTIONS = ("What is claimed", "Derivation", "Predictions, before the experiment", "Controls", "Verdicts", "Limits")


def shape_faults(path: Path) -> list[str]:
    """Where a page departs from the shape that ``docs/pages.md`` gives it: nothing, when the list is empty."""
    cells = read(path).cells
    parameters = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]  # as long as they are many
    code = [cell.source for cell in cells if cell.cell_type == "code" and cell not in parameters]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    found = [f"a code cell has {n} lines" for n in map(_lines, code) if n > CELL_LINES]
    if sum(map(_lines, code)) > PAGE_LINES:
        found.append(f"{sum(map(_lines, code))} lines of code (at most {PAGE_LINES})")
    if any(len(line) > LINE for text in code for line in text.split("\n")):
        found.append(f"a line of code is longer than {LINE}")
    headings = [line[3:].strip() for text in prose for line in text.split("\n") if line.startswith("## ")]
    if [heading for heading in headings if heading in SECTIONS] != list(SECTIONS):
        found.append(f"sections {headings} (must be {', '.join(SECTIONS)}, with the questions before Controls)")
    words = sum(len(text.split()) for text in prose)
    if words > PROSE_WORDS:
        found.append(f"{words} words of prose (at most {PROSE_WORDS}: twenty minutes)")
    limits = "\n".join(prose).partition("## Limits")[2]
    if len(limits.split()) > LIMITS_WORDS:
        found.append(f"{len(limits.split())} words on its limits (at most {LIMITS_WORDS})")
    if not any("page.answer(" in text for text in code[:3]):
        found.append("the first screen has no answer (page.answer among the first cells)")
    return [f"{path.name}: {fault}" for fault in found]


def _lines(source: str) -> int:
    return len([line for line in source.split("\n") if line.strip()])
