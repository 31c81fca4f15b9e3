import contextlib
import csv
from dataclasses import replace

import nbformat
import pytest
import torch

from lab import claims, files, pages, records


@contextlib.contextmanager
def interpreted():
    """Triton as its interpreter where there is no GPU: it reads the variable when it is imported and when it runs."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
        yield


# before any test makes torch.compile import it otherwise
with interpreted(), contextlib.suppress(ImportError):
    import triton  # noqa: F401

SETUP = f"import sys\nsys.path.insert(0, {str(files.ROOT)!r})\nfrom lab.claims import Page\npage = Page('tiny')"
CLAIM = {"name": "c", "whose": "paper", "kind": "theorem", "known": "prior", "statement": "x is one",
         "source": "test", "predicted": "1.0", "accept": "0.5 … 1.5"}  # fmt: skip


def write_claims(folder, *rows, name="tiny"):
    """A page's table of claims, each ``CLAIM`` but for what a row says."""
    path = folder / "claims" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, claims.COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({**CLAIM, **row} for row in rows or [{}])


def write_page(
    folder,
    name="tiny",
    parameters="x = 1.0\ncount = 2\nrates = [0.1, 0.2]",
    last="page.judge('c', x)",
    tags=("parameters",),
    rows=({},),
):
    """A small notebook with all that a page needs."""
    code = [parameters, SETUP.replace("'tiny'", repr(name)), "page.predict()", last, "page.verdicts()"]
    write_claims(folder, *rows, name=name)
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(code)]
    cells[0].metadata["tags"] = list(tags)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


def judgeable(claim):
    """An illustration is judged nowhere; its measure is tested as that of a measurement."""
    return replace(claim, kind="measurement") if claim.kind == "illustration" else claim


def pytest_collection_modifyitems(items):
    """The longest file comes first, so that no core waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


@pytest.fixture(autouse=True)
def computing(monkeypatch):
    """`make test` lets the pages read published records alone; a test computes what it tests."""
    monkeypatch.setenv("KADAM_RECORDS", "off")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty project with one tiny page, in a folder with a space in its name."""
    root = tmp_path / "a house"
    (root / "notebooks" / "parameters").mkdir(parents=True)
    (root / "notebooks" / "parameters" / "smoke.yaml").write_text("{}\n")
    (root / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 1.25\n")
    write_page(root / "notebooks")
    monkeypatch.setattr(pages, "NOTEBOOKS", root / "notebooks")
    monkeypatch.setattr(pages, "RESULTS", root / "results")
    monkeypatch.setattr(pages, "CACHE", root / ".cache")
    monkeypatch.setattr(files, "RUNS", root / "results" / "runs")
    monkeypatch.setattr(records, "PUBLISHED", root / "results" / "records")
    for name in ("KADAM_OUTPUT", "KADAM_PROGRESS", "KADAM_CACHE", "KADAM_RECORDS", "KADAM_CLUSTER"):
        monkeypatch.setenv(name, "off")  # so that it is as before after the test, also where it was not set
        monkeypatch.delenv(name)
    monkeypatch.setenv("KADAM_WORKERS", "1")
    records.forget()
    yield root
    records.forget()


@pytest.fixture
def swept(house):
    """A page that sweeps over two short runs, in the house; its kernel too keeps its records there."""
    write_page(
        house / "notebooks",
        parameters="x = 1.0\nsteps = 8",
        last="from pathlib import Path\nfrom lab import files, records\n"
        f"files.RUNS, records.PUBLISHED = Path({str(files.RUNS)!r}), Path({str(records.PUBLISHED)!r})\n"
        f"files.ROOT = Path({str(house)!r})\n"
        "from lab.experiments.quadratic import quadratic_map\nfrom lab.sweep import sweep\n"
        "common = dict(betas=[0.99], gammas=[0.9], condition=10.0, steps=steps, window=4)\n"
        "runs = [dict(lrs=[lr], **common) for lr in (0.1, 0.2)]\n"
        "found = sweep(quadratic_map, runs, 'map')\nprint(sorted(found[0]))\npage.judge('c', x)",
    )
    for profile, steps in (("standard", 6), ("smoke", 4)):
        (house / "notebooks" / "parameters" / f"{profile}.yaml").write_text(f"tiny:\n  steps: {steps}\n")
    return house
