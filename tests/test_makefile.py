"""`make reproduce` and `make pages` themselves, on a small project in a path with a space, without a home directory."""

import os
import shutil
import subprocess

import pytest
from conftest import write_page

from lab import report
from lab.files import ROOT

README = "".join(f"{start}\n{end}\n" for start, end in map(report.marks, ("findings", "verdicts")))


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "a project"
    root.mkdir()
    for name in ("lab", "kadam", "data"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", root / "Makefile")
    # of the environment as it is: whatever the lock says by now, a test installs nothing
    made = ROOT / ".venv" / "complete"
    shutil.copy(made if made.exists() else ROOT / "requirements.lock", root / "requirements.lock")
    (root / "README.md").write_text(README)
    (root / "notebooks" / "parameters").mkdir(parents=True)
    for profile in ("smoke", "standard"):
        (root / "notebooks" / "parameters" / f"{profile}.yaml").write_text("{}\n")
    (root / ".venv").symlink_to(ROOT / ".venv")
    return root


def make(root, *words):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "/nowhere"}
    return subprocess.run(["make", *words], cwd=root, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not (ROOT / ".venv" / "complete").exists(), reason="the environment was not made by `make`")
def test_make_reproduce_runs_judges_and_fails_as_it_should(project):
    for name in ("one", "two"):
        write_page(project / "notebooks", name)
    first = make(project, "reproduce", "-j2")
    assert first.returncode == 0, first.stderr
    assert "2 claims of 2 pages, written to results/standard/" in first.stdout
    assert first.stderr.count("finished in") == 2
    assert first.stdout.count("Not compared: it has no finished claims in recorded/claims.json") == 2
    readme = (project / "README.md").read_text()
    again = make(project)
    assert again.returncode == 0 and again.stderr.count("up to date") == 2
    assert readme == README  # what is published stays as it is

    published = make(project, "pages")
    assert published.returncode == 0, published.stderr
    assert "2 claims of 2 pages, written to results/" in published.stdout
    assert "Theorems checked: 2" in (project / "README.md").read_text()
    assert "holds" in (project / "notebooks" / "one.ipynb").read_text().partition('"outputs"')[2]
    compared = make(project)
    assert compared.returncode == 0 and "2 of 2 verdicts are the same." in compared.stdout
    assert (project / "results" / "standard" / "COMPARISON.md").is_file()

    readme = (project / "README.md").read_text()
    write_page(project / "notebooks", "one", last="page.judge('c', 5.0)")
    violated = make(project, "reproduce")
    assert violated.returncode != 0 and "MUST HOLD, AND DOES NOT: c" in violated.stdout
    assert "This claim must hold: something is wrong." in violated.stdout
    assert (project / "README.md").read_text() == readme
    assert make(project, "pages").returncode != 0
    assert "VIOLATED" in (project / "README.md").read_text()

    write_page(project / "notebooks", "one", last="page.judge('c', nothing)")
    failed = make(project, "reproduce")
    assert failed.returncode != 0 and "NameError" in failed.stderr
    assert "OUT OF DATE (failed, or not run since a change): one" in failed.stdout


def test_the_tests_compute_nothing_in_place_of_a_record_and_end_with_the_audit(project):
    said = make(project, "--dry-run", "test").stdout
    assert "KADAM_CACHE=off KADAM_RECORDS=only KADAM_PROGRESS=off .venv/bin/python -m pytest" in said
    assert ".venv/bin/python -m lab audit --budget 60s" in said
    assert "audit" not in make(project, "--dry-run", "test", "TESTS=tests/test_x.py").stdout
    said = make(project, "--dry-run", "audit", "BUDGET=5m", "BASE=HEAD~1").stdout
    assert "-m lab audit --budget 5m --base HEAD~1" in said


def test_records_are_computed_page_by_page_and_then_the_audits_short_runs(project):
    said = make(project, "--dry-run", "records", "PAGES=one two").stdout
    order = ["-m lab publish one", "-m lab publish two", "-m lab audit --publish"]
    assert [said.count(words) for words in order] == [1, 1, 1]
    assert sorted(order, key=said.index) == order


def test_what_is_computed_by_reproduce_does_not_come_from_what_is_published(project):
    (project / "show.mk").write_text("include Makefile\nreproduce:\n\t@echo records are $$KADAM_RECORDS\n")
    lines = (project / "Makefile").read_text().split("\n")
    start = lines.index("reproduce: environment")
    del lines[start : next(i for i in range(start + 1, len(lines)) if not lines[i].startswith("\t"))]
    (project / "Makefile").write_text("\n".join(lines))
    assert "records are off" in make(project, "-f", "show.mk", "reproduce").stdout


def test_an_unknown_profile_or_page_is_refused(project):
    assert "PROFILE=fast: must be smoke, standard or full" in make(project, "PROFILE=fast").stderr
    if (ROOT / ".venv" / "complete").exists():
        assert "page: 'three'" in make(project, "reproduce", "PAGES=three").stderr
