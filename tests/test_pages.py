import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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
    assert (
        record["parameters"] == {"x": 1.25, "count": 2, "rates": [0.1, 0.2]}
        and record["versions"]["torch"]
        and record["commit"]
    )


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
        ("tiny:\n  xx: 1.0\n", "standard.yaml, tiny: unknown parameter 'xx' .known: x, count, rates"),
        ("tiny:\n  count: 2.5\n", "parameter count = 2.5 .2.5 must be of type int"),
        ("tiny:\n  x: 1e-3\n", "parameter x = '1e-3' .'1e-3' must be of type float"),
        ("tiny:\n  rates: [1e-3]\n", "parameter rates = .'1e-3'.* must be of type float"),
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


def test_a_false_theorem_is_a_result_and_said(house):
    (house / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 2.0\n")
    assert pages.run("tiny", "standard")
    (claim,) = json.loads((house / "results" / "pages" / "tiny" / "claims.json").read_text())
    assert (claim["measured"], claim["verdict"]) == (2.0, "VIOLATED")


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("page.judge('c', x / 0)", "cell 5 raised ZeroDivisionError: float division by zero"),
        ("page.claims.clear()", "finished without judging a claim"),
        ("import os; os._exit(1)", "Kernel died"),
    ],
)
def test_a_failed_page_leaves_the_old_result_and_what_it_has(house, last, message):
    pages.run("tiny", "standard")
    write_page(house / "notebooks", last=last)
    folder = house / "results" / "pages"
    with pytest.raises(pages.PageError, match=f"tiny: .*{message}.*kept in results/pages/tiny.failed/"):
        pages.run("tiny", "standard")
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.failed", "tiny.lock"]
    assert json.loads((folder / "tiny" / "claims.json").read_text())[0]["measured"] == 1.25
    assert (folder / "tiny.failed" / "executed.ipynb").exists()
    write_page(house / "notebooks", last="page.judge('c', x + 0.0)")
    pages.run("tiny", "standard")
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.lock"]


def test_a_prediction_without_judgement_fails_the_page(house):
    judge_one = "page.predict('d', 'never judged', source='t', accept=(0, 1)); page.judge('c', x)\npage.verdicts = list"
    write_page(house / "notebooks", last=judge_one)
    with pytest.raises(pages.PageError, match="finished without judging d"):
        pages.run("tiny", "smoke")


def test_a_second_process_waits_and_finds_the_page_done(house, capsys):
    write_page(house / "notebooks", last="import time; page.judge('c', x); time.sleep(3)")
    with ThreadPoolExecutor() as pool:  # flock tells open files apart, in one process too
        ran = sorted(pool.map(pages.run, ["tiny", "tiny"], ["smoke", "smoke"]))
    said = capsys.readouterr().err
    assert ran == [False, True] and said.count("starts") == said.count("waits") == said.count("up to date") == 1


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
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.lock"]


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
    assert "must hold does not" in faults_with(lambda nb: nb.cells[-1].outputs[0].update(text="c theorem VIOLATED"))
    assert "predicted in or after" in faults_with(lambda nb: nb.cells[1].update(source="sweep(run, [], 'x')"))
    commented = nbformat.v4.new_markdown_cell("# One\n#\n# Two")
    assert "comment signs" in faults_with(lambda nb: nb.cells.append(commented))
    assert faults_with(lambda nb: None) == ""


@pytest.mark.parametrize("page", pages.names())
def test_committed_notebooks_are_whole(page):
    assert pages.faults(files.NOTEBOOKS / f"{page}.ipynb") == []


@pytest.mark.parametrize("profile", pages.PROFILES)
@pytest.mark.parametrize("page", pages.names())
def test_committed_profiles_fit_the_notebooks(page, profile):
    assert pages.parameters_of(page, profile)
