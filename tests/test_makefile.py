"""`make reproduce` itself, on a small project in a path with a space, without a home directory."""

import os
import shutil
import subprocess

import pytest
from conftest import write_page

from lab import report
from lab.files import ROOT


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "a project"
    root.mkdir()
    for name in ("lab", "kadam", "data"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, root / name)
    (root / "README.md").write_text(f"{report.START}\n{report.END}\n")
    (root / "notebooks" / "parameters").mkdir(parents=True)
    (root / "notebooks" / "parameters" / "standard.yaml").write_text("{}\n")
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
    assert "2 claims of 2 pages" in first.stdout and first.stderr.count("finished in") == 2
    again = make(project)
    assert again.returncode == 0 and again.stderr.count("up to date") == 2

    write_page(project / "notebooks", "one", last="page.judge('c', 5.0)")
    violated = make(project, "reproduce")
    assert violated.returncode != 0 and "MUST HOLD, AND DOES NOT: c" in violated.stdout
    assert "VIOLATED" in (project / "README.md").read_text()

    write_page(project / "notebooks", "one", last="page.judge('c', nothing)")
    failed = make(project, "reproduce")
    assert failed.returncode != 0 and "NameError" in failed.stderr
    assert "OUT OF DATE (failed, or not run since a change): one" in failed.stdout


def test_an_unknown_profile_or_page_is_refused(project):
    assert "PROFILE=fast: must be smoke, standard or full" in make(project, "PROFILE=fast").stderr
    if (ROOT / ".venv" / "complete").exists():
        assert "page: 'three'" in make(project, "reproduce", "PAGES=three").stderr
