import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import write_page

from lab import files, pages


def provenance_of(folder):
    return json.loads((folder / "provenance.json").read_text())


def test_a_page_is_run_with_its_profile_and_kept_whole(house):
    assert pages.run("tiny", "standard")
    folder = house / "results" / "pages" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["claims.json", "executed.ipynb", "provenance.json"]
    assert json.loads((folder / "claims.json").read_text())[0]["measured"] == 1.25
    record = provenance_of(folder)
    assert record["parameters"] == {"x": 1.25, "count": 2} and record["versions"]["torch"] and record["commit"]


def test_two_runs_leave_the_same_notebook(house):
    pages.run("tiny", "smoke")
    executed = house / "results" / "smoke" / "pages" / "tiny" / "executed.ipynb"
    first = executed.read_bytes()
    executed.unlink()
    assert pages.run("tiny", "smoke")
    assert executed.read_bytes() == first


def test_a_finished_page_is_not_run_again_until_something_changes(house, monkeypatch):
    assert pages.run("tiny", "standard")
    assert not pages.run("tiny", "standard")
    (house / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 0.75\n")
    assert pages.run("tiny", "standard")
    write_page(house / "notebooks", last="page.judge('c', 1.0)")
    assert pages.run("tiny", "standard")
    original = pages.provenance.code_version
    monkeypatch.setattr(pages.provenance, "code_version", lambda *given: original(*given) + "changed")
    assert pages.run("tiny", "standard")
    assert not pages.run("tiny", "standard")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("tiny:\n  xx: 1.0\n", "standard.yaml, tiny: unknown parameter 'xx' .known: x, count"),
        ("tiny:\n  count: 2.5\n", "parameter count = 2.5 .must be of type int"),
        ("tiny:\n  x: 1e-3\n", "parameter x = '1e-3' .must be of type float"),
        ("tinny:\n  x: 1.0\n", "no notebook is called tinny"),
    ],
)
def test_wrong_parameters_in_a_profile_are_refused(house, yaml, message):
    (house / "notebooks" / "parameters" / "standard.yaml").write_text(yaml)
    with pytest.raises(pages.PageError, match=message):
        pages.run("tiny", "standard")
    assert not (house / "results").exists()


def test_wrong_overrides_are_refused_and_right_ones_kept_apart(house):
    with pytest.raises(pages.PageError, match="unknown parameter 'lr'"):
        pages.run("tiny", "smoke", {"lr": 1.0})
    assert pages.run("tiny", "smoke", {"x": 1})
    assert provenance_of(house / "results" / "custom" / "pages" / "tiny")["parameters"]["x"] == 1
    with pytest.raises(pages.PageError, match="page: 'small'"):
        pages.run("small", "smoke")


@pytest.mark.parametrize("parameters", ["x = 2.0 * 3", "import os", "x[0] = 1"])
def test_a_parameters_cell_holds_literals_only(house, parameters):
    write_page(house / "notebooks", parameters=parameters)
    with pytest.raises(pages.PageError, match="parameters cell, line 1"):
        pages.run("tiny", "smoke")
    write_page(house / "notebooks", tags=())
    with pytest.raises(pages.PageError, match="0 cells tagged 'parameters'"):
        pages.run("tiny", "smoke")


def test_a_false_theorem_fails_the_page_and_leaves_the_old_result(house):
    pages.run("tiny", "standard")
    (house / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 2.0\n")
    with pytest.raises(
        pages.PageError, match="ClaimError: must hold, and does not: c .kept as results/pages/tiny.failed"
    ):
        pages.run("tiny", "standard")
    folder = house / "results" / "pages"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.failed.ipynb"]
    assert json.loads((folder / "tiny" / "claims.json").read_text())[0]["measured"] == 1.25


def test_a_page_without_a_verdict_fails(house):
    write_page(house / "notebooks", last="page.claims.clear()")
    with pytest.raises(pages.PageError, match="without judging a claim"):
        pages.run("tiny", "smoke")


def test_killed_in_flight_it_starts_again_and_nothing_half_done_is_taken(house):
    write_page(house / "notebooks", last="import time; page.judge('c', x); time.sleep(60)")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(files.ROOT)!r}); from lab import pages;"
        f"pages.NOTEBOOKS = pathlib.Path({str(house / 'notebooks')!r});"
        f"pages.RESULTS = pathlib.Path({str(house / 'results')!r});"
        "pages.run('tiny', 'smoke')"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=files.ROOT, stderr=subprocess.DEVNULL)
    folder = house / "results" / "smoke" / "pages"
    deadline = time.monotonic() + 60
    while not list(folder.glob(".tiny.*/claims.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(folder.glob(".tiny.*/claims.json")) and not (folder / "tiny").exists()
    write_page(house / "notebooks")
    assert pages.run("tiny", "smoke")
    assert [path.name for path in folder.iterdir()] == ["tiny"]


# What the committed notebooks are checked by must itself be able to fail.


def nbval(path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(files.ROOT / "pyproject.toml"),
        "--rootdir",
        str(files.ROOT),
    ]
    return subprocess.run([*command, str(path)], cwd=files.ROOT, capture_output=True, text=True)


def test_nbval_accepts_an_executed_page_and_rejects_a_tampered_output(house):
    pages.execute_in_place("tiny")
    path = house / "notebooks" / "tiny.ipynb"
    assert pages.faults(path) == []
    result = nbval(path)
    assert result.returncode == 0, result.stdout
    notebook = pages.read(path)
    notebook.cells[-1].outputs[0].text = notebook.cells[-1].outputs[0].text.replace("1.000", "1.001")
    nbformat.write(notebook, path)
    result = nbval(path)
    assert result.returncode == 1 and "1 failed" in result.stdout


def test_a_stripped_or_unmarked_notebook_is_found(house):
    pages.execute_in_place("tiny")
    path = house / "notebooks" / "tiny.ipynb"
    whole = pages.read(path)

    def faults_with(change):
        notebook = nbformat.from_dict(json.loads(json.dumps(whole)))
        change(notebook)
        nbformat.write(notebook, path)
        return " ".join(pages.faults(path))

    assert "a marked cell has no output" in faults_with(lambda nb: nb.cells[-1].update(outputs=[]))
    assert "nothing is checked" in faults_with(lambda nb: nb.cells[-1].update(source="page.verdicts()"))
    assert "top to bottom" in faults_with(lambda nb: nb.cells[1].update(execution_count=7))
    assert "0 cells tagged" in faults_with(lambda nb: nb.cells[0].metadata.clear())
    assert faults_with(lambda nb: None) == ""


@pytest.mark.parametrize("page", pages.names())
def test_committed_notebooks_are_whole(page):
    assert pages.faults(files.NOTEBOOKS / f"{page}.ipynb") == []


@pytest.mark.parametrize("profile", pages.PROFILES)
@pytest.mark.parametrize("page", pages.names())
def test_committed_profiles_fit_the_notebooks(page, profile):
    assert pages.parameters_of(page, profile)
