import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from conftest import write_page

from lab import claims, files, pages, records, report, sweep


def provenance_of(folder):
    return json.loads((folder / "provenance.json").read_text())


def test_a_page_is_run_with_its_profile_and_kept_whole(house):
    assert pages.run("tiny", "standard")
    folder = house / "results" / "standard" / "pages" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["claims.json", "executed.ipynb", "provenance.json"]
    assert json.loads((folder / "claims.json").read_text())[0]["measured"] == 1.25
    parameters = {"x": 1.25, "count": 2, "rates": [0.1, 0.2]}
    assert provenance_of(folder) == {
        "page": "tiny", "profile": "standard", "key": pages.key_of("tiny", parameters), "parameters": parameters,
        "runs": 0, "rests_on": {}, "figures": [],
    }  # fmt: skip


def test_what_is_published_is_what_the_parameters_cell_says_and_lies_in_results_itself(house):
    assert pages.run("tiny", "full")
    folder = house / "results" / "pages" / "tiny"
    assert json.loads((folder / "claims.json").read_text())[0]["measured"] == 1.0
    # nothing was put into it: it is the committed notebook with its outputs
    sources = [cell.source for cell in pages.read(folder / "executed.ipynb").cells]
    assert sources == [cell.source for cell in pages.read(house / "notebooks" / "tiny.ipynb").cells]


def test_a_pages_runs_are_in_its_provenance(swept):
    assert pages.run("tiny", "standard")
    folder = swept / "results" / "standard" / "pages" / "tiny"
    origin, run = provenance_of(folder), "stable_region.quadratic"
    assert origin["runs"] == 2
    assert origin["rests_on"] == {run: [records.rests_on(run)]}
    assert {entry["id"] for entry in pages.used_runs(folder)} == {
        record.id for record in map(records.unpack, (path.read_bytes() for path in files.RUNS.glob("*.run")))
    }


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
    monkeypatch.setattr(pages.provenance, "versions", lambda packages: {"torch": "changed"})
    assert pages.run("tiny", "standard")
    assert not pages.run("tiny", "standard")


def key_with(house, **changed):
    write_page(house / "notebooks", **changed)
    return pages.key_of("tiny", {"x": 1.0})


def test_a_page_whose_prose_alone_changes_stays_up_to_date(house):
    assert pages.run("tiny", "standard")
    path = house / "notebooks" / "tiny.ipynb"
    notebook = pages.read(path)
    notebook.cells[3].source = "# why\n\npage.judge( 'c',  x )  # so"
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# Prose", id="prose"))
    nbformat.write(notebook, path)
    assert not pages.run("tiny", "standard")


def test_a_page_whose_code_changes_does_not_stay_up_to_date(house):
    same = key_with(house)
    for last in (
        "page.judge('c', x + 0)",
        "print('c')\npage.judge('c', x)",
        "%time 1\npage.judge('c', 1.0)",  # what follows a magic counts
    ):
        assert key_with(house, last=last) != same, last
    assert key_with(house) == same


def test_the_order_of_a_pages_statements_counts(house):
    first = key_with(house, last="y = x\nx = 2.0\npage.judge('c', y)")
    assert key_with(house, last="x = 2.0\ny = x\npage.judge('c', y)") != first
    assert key_with(house, last="y = x\n\nx = 2.0\n%time 1\npage.judge('c', y)") == first


def test_what_a_page_uses_counts_and_how_it_looks_does_not(house, monkeypatch, tmp_path):
    for folder in ("lab", "kadam"):
        shutil.copytree(files.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    last = "from lab import figures\nfrom lab.statistics import mean_interval\nfigures.save(1, mean_interval([x]))"

    def key():
        monkeypatch.setattr(pages.fingerprint, "here", lambda: pages.fingerprint.Code(tmp_path))
        return key_with(house, last=last)

    before = key()
    with (tmp_path / "lab" / "figures.py").open("a") as file:
        file.write("\nPALETTE = ['black']\n")
    with (tmp_path / "lab" / "hostile.py").open("a") as file:
        file.write("\ncounter = 1\n")
    assert key() == before
    path = tmp_path / "lab" / "statistics.py"
    text = path.read_text()
    assert "0.95" in text
    path.write_text(text.replace("0.95", "0.99"))
    assert key() != before


def test_a_page_whose_runs_no_longer_stand_is_run_again(swept, monkeypatch):
    assert pages.run("tiny", "standard")
    assert not pages.run("tiny", "standard")
    monkeypatch.setattr(records, "stands", lambda made, name: False)
    assert pages.run("tiny", "standard")


def test_a_page_whose_run_is_no_longer_declared_is_not_up_to_date(swept):
    pages.run("tiny", "standard")
    origin = provenance_of(swept / "results" / "standard" / "pages" / "tiny")
    assert pages.is_current("tiny", "standard", origin)
    (made,) = origin["rests_on"].values()
    assert not pages.is_current("tiny", "standard", {**origin, "rests_on": {"stable_region.gone": made}})


def test_a_page_with_a_cut_off_file_is_run_again(swept):
    pages.run("tiny", "standard")
    folder = swept / "results" / "standard" / "pages" / "tiny"
    assert pages.is_whole(folder)
    for name in ("claims.json", "executed.ipynb", "runs.jsonl", "provenance.json"):
        whole = (folder / name).read_bytes()
        for length in (len(whole) // 2, 0):
            (folder / name).write_bytes(whole[:length])
            # a page that sweeps over nothing leaves no runs.jsonl
            assert not pages.is_whole(folder) or (name, length) == ("runs.jsonl", 0)
        if name != "provenance.json":
            (folder / name).write_bytes(whole)
    assert pages.run("tiny", "standard")
    assert pages.is_whole(folder) and (folder / "provenance.json").read_bytes() == whole


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
    (claim,) = json.loads((house / "results" / "standard" / "pages" / "tiny" / "claims.json").read_text())
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
    folder = house / "results" / "standard" / "pages"
    with pytest.raises(pages.PageError, match=f"tiny: .*{message}.*kept in results/standard/pages/tiny.failed/"):
        pages.run("tiny", "standard")
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.failed", "tiny.lock"]
    assert json.loads((folder / "tiny" / "claims.json").read_text())[0]["measured"] == 1.25
    assert (folder / "tiny.failed" / "executed.ipynb").exists()
    write_page(house / "notebooks", last="page.judge('c', x + 0.0)")
    pages.run("tiny", "standard")
    assert sorted(path.name for path in folder.iterdir()) == ["tiny", "tiny.lock"]


def test_a_prediction_without_judgement_fails_the_page(house):
    judge_one = "page.judge('c', x)\npage.verdicts = list"
    write_page(house / "notebooks", last=judge_one, rows=({}, {"name": "d"}))
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
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(files.ROOT / "pyproject.toml")]
    return subprocess.run(
        [*command, "--rootdir", str(files.ROOT), str(path)], cwd=files.ROOT, capture_output=True, text=True
    )


CLOCK = "# NBVAL_IGNORE_OUTPUT\n# the clock decides\nimport time\n"


def test_nbval_compares_every_cell_but_those_that_say_why_not(house):
    write_page(house / "notebooks", parameters="x = 1.0", last="print('printed', x)\npage.judge('c', x)")
    path = house / "notebooks" / "tiny.ipynb"
    notebook = pages.read(path)
    clock = nbformat.v4.new_code_cell(f"{CLOCK}print(time.time_ns())", id="clock")
    notebook.cells.insert(3, clock)
    nbformat.write(notebook, path)
    pages.execute_in_place("tiny")
    assert pages.faults(path) == []
    result = nbval(path)
    assert result.returncode == 0, result.stdout
    whole = path.read_text()
    for shown in ("printed 1.0", "<td>1.000</td>", "x is one"):  # a print, a verdict, a prediction
        assert shown in whole
        path.write_text(whole.replace(shown, shown.replace("1", "2").replace("one", "two")))
        result = nbval(path)
        assert result.returncode == 1 and "1 failed" in result.stdout, shown


def test_a_stripped_or_unchecked_notebook_is_found(house):
    pages.execute_in_place("tiny")
    path = house / "notebooks" / "tiny.ipynb"
    whole = pages.read(path)

    def faults_with(change):
        notebook = nbformat.from_dict(json.loads(json.dumps(whole)))
        change(notebook)
        nbformat.write(notebook, path)
        return " ".join(pages.faults(path))

    def saying(source, cell=1):
        return lambda nb: nb.cells[cell].update(source=source)

    assert "verdicts are not shown" in faults_with(lambda nb: nb.cells[-1].update(outputs=[]))
    assert "verdicts are not shown" in faults_with(saying("verdicts = page", -1))
    assert faults_with(saying(f"{CLOCK}print(1)")) == ""
    assert "verdicts are not compared" in faults_with(saying(f"{CLOCK}page.verdicts()", -1))
    for unheard in ("# NBVAL_IGNORE_OUTPUT\nprint(1)", "# NBVAL_IGNORE_OUTPUT: the clock\nprint(1)", f"x = 1\n{CLOCK}"):
        assert "does not say why" in faults_with(saying(unheard))
    for word in ("NBVAL_SKIP", "NBVAL_CHECK_OUTPUT", "NBVAL_RAISES_EXCEPTION", "PYTEST_VALIDATE_IGNORE_OUTPUT"):
        assert "tells nbval something else" in faults_with(saying(f"# {word}\nx = 1"))
    for tag in ("nbval-skip", "nbval-ignore-output", "raises-exception"):
        assert "tells nbval something else" in faults_with(lambda nb, tag=tag: nb.cells[1].metadata.update(tags=[tag]))
    assert "top to bottom" in faults_with(lambda nb: nb.cells[1].update(execution_count=7))
    assert "0 cells tagged" in faults_with(lambda nb: nb.cells[0].metadata.clear())
    assert "must hold does not" in faults_with(
        lambda nb: nb.cells[-1].outputs[0]["data"].update({"text/html": "VIOLATED"})
    )
    image = nbformat.v4.new_output("display_data", {"image/png": "abc"})
    assert "no alt text" in faults_with(lambda nb: nb.cells[1].update(outputs=[image]))
    told = nbformat.v4.new_output("display_data", {"image/png": "abc"}, metadata={"image/png": {"alt": "A line."}})
    assert faults_with(lambda nb: nb.cells[1].update(outputs=[told])) == ""
    commented = nbformat.v4.new_markdown_cell("# One\n#\n# Two")
    assert "comment signs" in faults_with(lambda nb: nb.cells.append(commented))
    assert faults_with(lambda nb: None) == ""


# What is published.


def test_a_page_is_published_and_then_executed_from_its_records_alone(swept, monkeypatch):
    with pytest.raises(pages.PageError, match=r"RecordError: KADAM_RECORDS=only, and 2 records are missing"):
        pages.execute_in_place("tiny")
    for name in ("KADAM_CACHE", "KADAM_RECORDS"):
        monkeypatch.delenv(name)
    assert pages.publish("tiny") == 4  # two of the published parameters, two of the shorter ones
    assert records.folders() == ["tiny"] and len(records.published("tiny").ids()) == 4
    shutil.rmtree(files.RUNS)
    written = {path.name: path.read_bytes() for path in (records.PUBLISHED / "tiny").iterdir()}
    pages.execute_in_place("tiny")
    committed = swept / "notebooks" / "tiny.ipynb"
    assert pages.faults(committed) == []
    assert committed.read_bytes() == (swept / "results" / "pages" / "tiny" / "executed.ipynb").read_bytes()
    assert not files.RUNS.exists()
    assert {path.name: path.read_bytes() for path in (records.PUBLISHED / "tiny").iterdir()} == written


def test_records_that_are_not_kept_are_not_published(swept, monkeypatch):
    pages.publish("tiny")
    for place in (swept / "results" / "pages", swept / "results" / "recorded", files.RUNS):
        shutil.rmtree(place)
    before = records.published("tiny").ids()
    write_page_again = (swept / "notebooks" / "tiny.ipynb").read_text().replace("steps = 8", "steps = 7")
    (swept / "notebooks" / "tiny.ipynb").write_text(write_page_again)
    monkeypatch.setenv("KADAM_CACHE", "off")
    with pytest.raises(pages.PageError, match="tiny: 2 of its 4 runs have no record here, so nothing is published"):
        pages.publish("tiny")
    assert records.published("tiny").ids() == before


def test_what_is_finished_so_far_is_published_beside_what_was(swept):
    with pytest.raises(pages.PageError, match="tiny: has asked for no runs yet"):
        pages.publish("tiny", partial=True)
    pages.run("tiny", "smoke")  # of which no run is among those that are published
    finished = swept / "results" / "smoke" / "pages" / "tiny" / sweep.USED
    running = swept / "results" / "pages" / ".tiny.partial" / sweep.USED
    pages.publish("tiny")
    before = set(records.published("tiny").ids())
    running.parent.mkdir()
    running.write_text(finished.read_text() + '{"run": "stable_region.quad')  # it is being written
    assert pages.publish("tiny", partial=True) == 6
    ids = set(records.published("tiny").ids())
    assert before < ids and all(records.published("tiny").record(id) is not None for id in ids)


@pytest.mark.parametrize("page", pages.names())
def test_committed_notebooks_are_whole(page):
    assert pages.faults(files.NOTEBOOKS / f"{page}.ipynb") == []


@pytest.mark.parametrize("page", pages.names())
def test_committed_notebooks_have_the_shape_of_a_page(page):
    assert pages.shape_faults(files.NOTEBOOKS / f"{page}.ipynb") == []


@pytest.mark.parametrize("page", pages.names())
def test_the_first_screen_shows_what_the_last_cells_found(page):
    # nbval cannot compare the first screen: it is filled when the page has run
    code = [cell for cell in pages.read(files.NOTEBOOKS / f"{page}.ipynb").cells if cell.cell_type == "code"]
    (first,) = [cell for cell in code if "page.answer(" in cell.source]
    calls = [node for node in ast.walk(ast.parse(first.source)) if isinstance(node, ast.Call)]
    (text,) = [ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "page.answer"]
    judged = report.claims_of(report.recorded_claims("full")[page])
    answer, image, caption, verdicts = first.outputs
    assert answer["data"]["text/markdown"] == claims.filled(text, {claim.name: claim for claim in judged})
    assert verdicts["data"]["text/html"] == claims.summary(judged)._repr_html_()
    assert "image/png" in image["data"] and caption["data"]["text/markdown"]


def shaped(tmp_path, *cells):
    notebook = nbformat.v4.new_notebook()
    for kind, source in cells:
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(make(source))
    nbformat.write(notebook, tmp_path / "page.ipynb")
    return " ".join(pages.shape_faults(tmp_path / "page.ipynb"))


def test_the_shape_of_a_page_can_be_missed(tmp_path):
    sections = [("text", f"## {section}") for section in pages.SECTIONS]
    answer = ("code", "page.answer('x')")
    assert shaped(tmp_path, answer, *sections) == ""
    assert "no answer" in shaped(tmp_path, *sections)
    assert "a code cell has 16 lines" in shaped(tmp_path, answer, *sections, ("code", "x = 1\n" * 16))
    assert shaped(tmp_path, answer, *sections, ("code", "x = 1\n\n" * 15)) == ""
    assert "251 lines of code" in shaped(tmp_path, answer, *sections, *[("code", "x = 1\n" * 10)] * 25)
    assert "longer than 120" in shaped(tmp_path, answer, *sections, ("code", "x" * 121))
    assert "sections" in shaped(tmp_path, answer, *sections[1:])
    assert "sections" in shaped(tmp_path, answer, *reversed(sections))
    assert "301 words on its limits" in shaped(tmp_path, answer, *sections, ("text", "word " * 301))
    assert "words of prose" in shaped(tmp_path, answer, ("text", "word " * 3500), *sections)


@pytest.mark.parametrize("profile", pages.PROFILES)
@pytest.mark.parametrize("page", pages.names())
def test_committed_profiles_fit_the_notebooks(page, profile):
    assert pages.parameters_of(page, profile)
