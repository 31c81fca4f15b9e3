import json
import re
from dataclasses import asdict

import nbformat
import pytest
from conftest import CLAIM, write_page

from lab import claims, files, pages, records, report
from lab.statistics import mean

README = (
    "# x\n" + "".join(f"{start}\nold\n{end}\n" for start, end in map(report.marks, ("findings", "verdicts"))) + "rest\n"
)


def test_the_readme_shows_the_committed_results():
    readme, gathered = (files.ROOT / "README.md").read_text(), report.recorded_claims("full")
    folder = files.NOTEBOOKS / "claims"

    def shown(block):
        start, end = report.marks(block)
        return readme.partition(start)[2].partition(end)[0].strip()

    assert shown("verdicts") == report.readme_table(gathered, folder)
    assert shown("findings") == report.findings(gathered, folder / "findings.md")


def test_the_readme_names_twelve_claims_of_the_paper_and_every_claim_of_the_paper_is_in_one():
    gathered = report.recorded_claims("full")
    rows = claims.read(files.NOTEBOOKS / "claims" / report.PAPER)
    named = {word for row in rows for word in row["claims"].split()}
    judged = {
        f"{page[:2]}:{claim.name}": claim for page, entry in gathered.items() for claim in report.claims_of(entry)
    }
    assert 10 <= len(rows) <= 14 and named <= judged.keys()
    papers = {name for name, claim in judged.items() if claim.whose != "ours" and claim.kind == "experiment"}
    assert papers <= named


def test_the_readme_can_be_read_in_five_minutes():
    assert len((files.ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_claims_page_shows_the_committed_results():
    page = (files.RESULTS / "CLAIMS.md").read_text()
    assert page == report.markdown(report.recorded_claims("full"), "full")


def test_the_readmes_figures_exist():
    readme = (files.ROOT / "README.md").read_text()
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", readme)
    assert images and all((files.ROOT / image).is_file() for image in images)


@pytest.mark.parametrize("page", pages.names())
def test_the_committed_results_are_those_of_this_code(page):
    origin = report.recorded_claims("full")[page]["provenance"]
    assert pages.is_current(page, "full", origin), "notebook, code or records changed since: run `make pages`"


def test_every_committed_claim_that_must_hold_does():
    for entry in report.recorded_claims("full").values():
        assert [claim.name for claim in report.claims_of(entry) if claim.must_hold and claim.broken] == []


@pytest.fixture
def reported(house, monkeypatch):
    monkeypatch.setattr(report, "ROOT", house)
    (house / "README.md").write_text(README)
    pages.run("tiny", "standard")
    return house


@pytest.fixture
def published(house, monkeypatch):
    monkeypatch.setattr(report, "ROOT", house)
    write_page(house / "notebooks", parameters="x = 1.25")
    (house / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 0.75\n")
    (house / "README.md").write_text(README)
    (house / "notebooks" / "claims" / "paper.csv").write_text("claim,paper,ours,claims\nit is one,big,tiny,ti:c\n")
    (house / "notebooks" / "claims" / "findings.md").write_text("- It is {ti:c.value}.\n")
    pages.run("tiny", "full")
    return house


def test_report_writes_the_table_everywhere(published, capsys):
    assert report.report("full")
    readme = (published / "README.md").read_text()
    assert readme.startswith("# x\n<!-- findings") and readme.endswith("<!-- end of verdicts -->\nrest\n")
    assert "\n- It is 1.25.\n" in readme and "| it is one | big | tiny | holds | – |" in readme
    assert "\nold\n" not in readme and "Theorems checked: 1," in readme
    text = (published / "results" / "CLAIMS.md").read_text()
    assert "x is one" in text and "| 1.25 | – | holds | – |" in text and "the paper's claim (test)" in text
    assert "(../notebooks/tiny.ipynb)" in text and "From no runs." in text and "`make pages`" in text
    assert "1 claims of 1 pages, written to results/" in capsys.readouterr().out


def test_what_is_not_published_stays_out_of_the_readme(published):
    assert report.report("full")
    before = {path: path.read_bytes() for path in (published / "README.md", published / "results" / "claims.json")}
    pages.run("tiny", "standard")
    assert report.report("standard")
    assert {path: path.read_bytes() for path in before} == before
    text = (published / "results" / "standard" / "CLAIMS.md").read_text()
    assert "| 0.75 | – | holds | – |" in text and "(../../notebooks/tiny.ipynb)" in text and "`make reproduce`" in text


def test_the_claims_page_names_runs_and_versions(reported):
    made = {"code": "c", "data": None, "versions": {"torch": "2.0", "numpy": "1.0"}}
    entry = report.collect("standard")["tiny"]
    origin = {**entry["provenance"], "runs": 3, "rests_on": {"a.b": [made], "a.c": [made, {**made, "code": "d"}]}}
    text = report.markdown({"tiny": {**entry, "provenance": origin}}, "standard")
    assert "From 3 runs: `a.b`, `a.c` (numpy 1.0, torch 2.0)." in text


def test_a_committed_result_whose_runs_no_longer_stand_is_out_of_date(swept, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", swept)
    pages.run("tiny", "standard")
    assert report.report("standard")
    monkeypatch.setattr(records, "stands", lambda made, name: False)
    assert not report.report("standard")
    assert "OUT OF DATE (failed, or not run since a change): tiny" in capsys.readouterr().out


def test_report_fails_when_a_claim_that_must_hold_does_not(published, capsys):
    write_page(published / "notebooks", parameters="x = 2.0")
    pages.run("tiny", "full")
    assert not report.report("full")
    assert "MUST HOLD, AND DOES NOT: c" in capsys.readouterr().out
    readme = (published / "README.md").read_text()
    assert (
        "| VIOLATED |" in readme
        and "must hold, and do not: c (VIOLATED)" in readme
        and "Theorems checked: 0," in readme
    )


def test_report_fails_when_a_page_is_out_of_date(reported, capsys):
    (reported / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 0.75\n")
    assert not report.report("standard")
    assert "OUT OF DATE (failed, or not run since a change): tiny" in capsys.readouterr().out


def test_a_page_that_was_not_asked_for_may_be_old(reported):
    write_page(reported / "notebooks", "other")
    assert report.report("standard", ["tiny"])
    assert not report.report("standard")


def test_what_a_page_printed_is_kept_under_its_headings(reported):
    write_page(reported / "notebooks", last="print('one')\npage.judge('c', x)\nprint('two')")
    path = reported / "notebooks" / "tiny.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(3, nbformat.v4.new_markdown_cell("## Before\ntext\n### Experiment\ntext", id="heading"))
    nbformat.write(notebook, path)
    pages.run("tiny", "standard")
    (reported / "results" / "standard" / "tables").mkdir(parents=True)
    (reported / "results" / "standard" / "tables" / "gone.txt").touch()
    assert report.report("standard")
    assert [path.name for path in (reported / "results" / "standard" / "tables").iterdir()] == ["tiny.txt"]
    text = (reported / "results" / "standard" / "tables" / "tiny.txt").read_text()
    assert "### Experiment\n\none\ntwo\n\n### Experiment\n\nname" in text and "x is one" in text.partition("###")[0]


def test_figures_follow_the_pages(reported):
    write_page(
        reported / "notebooks",
        last="page.judge('c', x)\nimport matplotlib.pyplot as plt\n"
        "from lab import figures\nfigures.save(plt.figure(), 'new', caption='It grows.', alt='A line.')",
    )
    pages.run("tiny", "standard")
    (reported / "results" / "standard" / "figures").mkdir(parents=True)
    (reported / "results" / "standard" / "figures" / "gone.png").touch()
    assert report.report("standard")
    assert [path.name for path in (reported / "results" / "standard" / "figures").iterdir()] == ["new.png"]


def test_a_record_that_is_up_to_date_stays_where_the_folder_is_older(reported):
    report.report("standard")
    parameters = reported / "notebooks" / "parameters" / "standard.yaml"
    before = parameters.read_text()
    parameters.write_text("tiny:\n  x: 0.75\n")
    pages.run("tiny", "standard")
    parameters.write_text(before)
    assert report.report("standard")
    assert report.recorded_claims("standard")["tiny"]["claims"][0]["measured"] == 1.25


def test_results_of_pages_not_run_here_stay_and_those_of_lost_ones_go(reported):
    report.report("standard")
    recorded = reported / "results" / "standard" / "claims.json"
    entry = json.loads(recorded.read_text())["tiny"]
    recorded.write_text(json.dumps({"tiny": entry, "gone": entry}))
    for path in (reported / "results" / "standard" / "pages" / "tiny").iterdir():
        path.unlink()
    assert list(report.collect("standard")) == ["tiny"]


def judged(value=1.0, **row):
    row = {**CLAIM, "kind": "experiment", **row}
    return asdict(claims.claim_of(row).judged(mean([value - 0.01, value, value + 0.01])))


def test_what_came_of_the_papers_claims_is_told_apart_from_harder_tests(tmp_path):
    (tmp_path / report.PAPER).write_text("claim,paper,ours,claims\nit is one,big,tiny,ti:c ti:d ti:e ti:f\n")
    everything = [judged(), judged(9.0, name="d", whose="harder"), judged(name="e"), judged(1.49, name="f")]
    table = report.readme_table({"tiny": {"claims": everything}}, tmp_path)
    assert "| it is one | big | tiny | 2 reproduced at small scale, 1 inconclusive | not reproduced |" in table
    assert "Of the paper's claims, 3: 2 reproduced at small scale, 1 inconclusive." in table
    assert "Under harder tests of ours, 1: 1 not reproduced." in table


def test_what_was_formed_after_its_runs_is_named():
    assert "no predictions: c." in report.counts({"tiny": {"claims": [judged(known="post hoc")]}})
    assert "no predictions" not in report.counts({"tiny": {"claims": [judged()]}})


def test_the_shorter_profile_is_kept_without_its_figures_and_tables(published):
    pages.run("tiny", pages.RECORDED)
    report.write_results(pages.RECORDED)
    assert sorted(path.name for path in (published / "results" / "recorded").iterdir()) == ["claims.json", "pages"]
    assert report.recorded_claims("recorded")["tiny"]["claims"][0]["measured"] == 0.75
    write_page(published / "notebooks", parameters="x = 2.0")
    pages.run("tiny", "full")
    report.write_results("full")
    text = (published / "results" / "CLAIMS.md").read_text()
    assert "(`standard`) another verdict: c (holds, here VIOLATED)." in text


def test_a_readme_without_marks_is_refused(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.update_readme(path, {})
