import json
import re
from dataclasses import asdict

import nbformat
import pytest
from conftest import write_page

from lab import claims, files, pages, provenance, report


def test_the_readme_shows_the_committed_results():
    readme = (files.ROOT / "README.md").read_text()
    shown = readme.partition(report.START)[2].partition(report.END)[0].strip()
    assert shown == report.readme_table(report.recorded_claims("standard"))


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_the_claims_page_shows_the_committed_results(profile):
    recorded = report.recorded_claims(profile)
    if profile == "standard" or recorded:
        page = (pages.results_of(profile) / "CLAIMS.md").read_text()
        assert page == report.markdown(recorded, profile)


def test_the_readmes_figures_exist():
    readme = (files.ROOT / "README.md").read_text()
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", readme)
    assert images and all((files.ROOT / image).is_file() for image in images)


@pytest.mark.parametrize("page", pages.names())
def test_the_committed_results_are_those_of_this_code(page):
    recorded = report.recorded_claims("standard")[page]["provenance"]
    if recorded["versions"] != provenance.versions():
        pytest.skip(f"the results were computed with {recorded['versions']}, this is {provenance.versions()}")
    current = pages.key_of(page, pages.parameters_of(page, "standard"))
    assert recorded["key"] == current, "notebook, parameters or code changed since: run `make reproduce`"


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_every_committed_claim_that_must_hold_does(profile):
    for entry in report.recorded_claims(profile).values():
        assert [claim.name for claim in report.claims_of(entry) if claim.must_hold and claim.broken] == []


@pytest.fixture
def reported(house, monkeypatch):
    monkeypatch.setattr(report, "ROOT", house)
    (house / "README.md").write_text(f"# x\n{report.START}\nold\n{report.END}\nrest\n")
    pages.run("tiny", "standard")
    return house


def test_report_writes_the_table_everywhere(reported, capsys):
    assert report.report("standard")
    readme = (reported / "README.md").read_text()
    assert readme.startswith(f"# x\n{report.START}\n| page |") and readme.endswith(f"{report.END}\nrest\n")
    assert "Theorems checked: 1," in readme
    assert "x is one" in (text := (reported / "results" / "CLAIMS.md").read_text()) and "| 1.25 | – | holds |" in text
    assert "1 claims of 1 pages" in capsys.readouterr().out


def test_report_fails_when_a_claim_that_must_hold_does_not(reported, capsys):
    (reported / "notebooks" / "parameters" / "standard.yaml").write_text("tiny:\n  x: 2.0\n")
    pages.run("tiny", "standard")
    assert not report.report("standard")
    assert "MUST HOLD, AND DOES NOT: c" in capsys.readouterr().out
    readme = (reported / "README.md").read_text()
    assert "| 1 | 2 | VIOLATED |" in readme and "Theorems checked: 0," in readme


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
    (reported / "results" / "tables").mkdir()
    (reported / "results" / "tables" / "gone.txt").touch()
    assert report.report("standard")
    assert [path.name for path in (reported / "results" / "tables").iterdir()] == ["tiny.txt"]
    text = (reported / "results" / "tables" / "tiny.txt").read_text()
    assert text.startswith("### Experiment\n\none\ntwo\n\n### Experiment\n\nc  ")


def test_figures_follow_the_pages(reported):
    write_page(
        reported / "notebooks",
        last="page.judge('c', x)\nimport matplotlib.pyplot as plt\n"
        "from lab import figures\nfigures.save(plt.figure(), 'new')",
    )
    pages.run("tiny", "standard")
    (reported / "results" / "figures").mkdir()
    (reported / "results" / "figures" / "gone.png").touch()
    assert report.report("standard")
    assert [path.name for path in (reported / "results" / "figures").iterdir()] == ["new.png"]


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
    recorded = reported / "results" / "claims.json"
    entry = json.loads(recorded.read_text())["tiny"]
    recorded.write_text(json.dumps({"tiny": entry, "gone": entry}))
    for path in (reported / "results" / "pages" / "tiny").iterdir():
        path.unlink()
    assert list(report.collect("standard")) == ["tiny"]


@pytest.mark.parametrize(
    "source, value, shown",
    [("paper, figure 1", 1.0, True), ("paper, figure 1", 9.0, True), ("ours", 1.0, False), ("ours", 9.0, True)],
)
def test_the_readme_names_the_papers_claims_and_of_ours_those_that_failed(source, value, shown):
    page = claims.Page("tiny")
    page.predict("c", "x is one", source=source, accept=(0.0, 2.0), held="refined")
    page.judge("c", value, (value, value), seeds=3)
    table = report.readme_table({"tiny": {"claims": [asdict(claim) for claim in page.claims.values()]}})
    assert ("x is one" in table) == shown
    assert f"came out as predicted: {int(not shown)}." in table


def test_a_readme_without_marks_is_refused(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="must hold the lines"):
        report.update_readme(path, {})
