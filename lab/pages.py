"""The notebooks as pages: what they are, which parameters they take, how they are run, kept and checked.

A page is run into a folder of its own, which takes its final name only when everything went well. Its record names
what it was computed from (``key``), so a finished page is not run again unless its cells, its parameters or the code
that it uses changed.
"""

from __future__ import annotations

import ast
import json
import os
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

from lab import provenance
from lab.claims import BROKEN
from lab.files import CACHE, NOTEBOOKS, RESULTS, ROOT, locked, write_json

PROFILES = ("smoke", "standard", "full")
MARK = "# NBVAL_CHECK_OUTPUT"
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
    """The folder of a profile's results: that of ``standard`` is results/ itself."""
    return RESULTS if profile == "standard" else RESULTS / profile


def kept(page: str, profile: str) -> Path:
    """The folder in which a finished page lies: executed.ipynb, claims.json, figures/, provenance.json."""
    return results_of(profile) / "pages" / page


def parameters_of(page: str, profile: str) -> dict[str, Any]:
    """The page's parameters under ``profile``: the values in its parameters cell, overridden by the profile's file.

    Raises:
        PageError: the profile's file names a parameter that the page does not have, or of another type.
    """
    defaults = default_parameters(NOTEBOOKS / f"{page}.ipynb")
    if profile == "smoke":
        return defaults
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
    """What a page's results depend on: its cells, its parameters, the code it imports, data and versions."""
    cells = [(cell.cell_type, cell.source) for cell in read(NOTEBOOKS / f"{page}.ipynb").cells]
    source = "\n".join(text for kind, text in cells if kind == "code" and not text.startswith("%"))
    return provenance.digest(
        {"cells": cells, "parameters": parameters, "code": provenance.code_version(source, page),
         "data": (ROOT / "data" / "registry.json").read_text(), "versions": provenance.versions()}
    )  # fmt: skip


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
    key, target = key_of(page, parameters), kept(page, profile)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f"{page}.lock", lambda: say(page, "is being run by another process; waits for it")):
        if is_whole(target) and json.loads((target / "provenance.json").read_text())["key"] == key:
            say(page, "up to date")
            return False
        for stale in target.parent.glob(f".{page}.*"):
            shutil.rmtree(stale)
        partial, failed = target.parent / f".{page}.partial", target.parent / f"{page}.failed"
        partial.mkdir()
        say(page, f"starts ({profile})")
        start = time.monotonic()
        try:
            _execute(source, partial, parameters)
            _require_verdicts(page, partial / "claims.json")
        except PageError as error:
            shutil.rmtree(failed, ignore_errors=True)
            partial.replace(failed)
            raise PageError(f"{error} (what it left is kept in {failed.relative_to(RESULTS.parent)}/)") from None
        seconds = round(time.monotonic() - start)
        figures = sorted(path.name for path in partial.glob("figures/*.png"))
        record = {"page": page, "key": key, "profile": profile, "parameters": parameters, "seconds": seconds}
        write_json(partial / "provenance.json", {**record, "figures": figures, **provenance.environment()})
        if target.exists():
            target.replace(target.parent / f".{page}.old")
        partial.replace(target)
        for gone in (target.parent / f".{page}.old", failed):
            shutil.rmtree(gone, ignore_errors=True)
    say(page, f"finished in {seconds // 60} min {seconds % 60} s")
    return True


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
    """Whether a page's folder holds all that a finished page leaves."""
    return all((folder / name).is_file() for name in ("executed.ipynb", "claims.json", "provenance.json"))


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


def execute_in_place(page: str) -> None:
    """Execute a committed notebook with its own (smoke) parameters and keep its outputs, normalised."""
    path, temporary = _source(page), CACHE / f"{page}.ipynb"
    CACHE.mkdir(exist_ok=True)
    os.environ.pop("KADAM_OUTPUT", None)
    os.environ["KADAM_PROGRESS"], os.environ["KADAM_CACHE"] = "off", "off"
    _papermill(path, temporary, {})
    normalise(temporary)
    temporary.replace(path)


def faults(path: Path) -> list[str]:
    """What is wrong with a committed notebook as nbval would let it pass: nothing, when the list is empty."""
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    marked = [cell for cell in code if cell.source.startswith(MARK)]
    found = []
    if not marked:
        found.append(f"no cell starts with {MARK}, so nothing is checked")
    if any(not cell.outputs for cell in marked):
        found.append("a marked cell has no output, so nbval would accept any")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("not executed from top to bottom in one go")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append("an error is stored in the outputs")
    if any(word in output.get("text", "") for cell in marked for output in cell.outputs for word in BROKEN):
        found.append("a claim that must hold does not")
    if any("#" in cell.source.split("\n") for cell in read(path).cells if cell.cell_type == "markdown"):
        found.append("prose stands behind comment signs")
    predicting = [number for number, cell in enumerate(code) if "page.predict(" in cell.source]
    sweeping = [number for number, cell in enumerate(code) if "sweep(" in cell.source]
    if predicting and sweeping and max(predicting) >= min(sweeping):
        found.append("a claim is predicted in or after the cell of the experiment")
    try:
        default_parameters(path)
    except PageError as error:
        found.append(str(error))
    return [f"{path.name}: {fault}" for fault in found]
