"""The audit on a small repository of its own: what it proves, what it refuses, what it writes."""

import ast
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lab import audit, records
from lab.files import ROOT
from lab.fingerprint import Code, Node

RUN = "stable_region.quadratic"
MAKE = f"""
import numpy, torch
from lab import audit, experiments, records
torch.set_num_threads(1)
function = experiments.all_runs()["{RUN}"].function
made = []
for seed in (1, 2):
    given = dict(betas=[0.9, 0.99], gammas=[0.8, 0.9], lrs=[0.1], condition=10.0, steps=60, window=20, seed=seed)
    question = records.asked(function, given)
    arrays = {{name: numpy.asarray(value) for name, value in function(**given).items()}}
    made.append(records.computed(question, arrays, 0.5))
records.publish("page", made)
audit.publish_short()
"""


def run(root, *words):
    environment = {**os.environ, "KADAM_CACHE": "off", "KADAM_WORKERS": "1", "KADAM_PROGRESS": "off"}
    environment |= {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    environment |= {"GIT_COMMITTER_EMAIL": "a@b", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(root)}
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)


def lab(root, *words):
    return run(root, sys.executable, "-m", "lab", *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    for folder in ("kadam", "lab", "data"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "[!r]*.bin"))
    for words in (
        [sys.executable, "-c", MAKE],
        ["git", "init", "-q"],
        ["git", "add", "."],
        ["git", "commit", "-qm", "base"],
    ):
        done = run(root, *words)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def repository(made, tmp_path):
    shutil.copytree(made, tmp_path / "r")
    return tmp_path / "r"


def edit(root, name, *pairs):
    text = (root / name).read_text()
    for before, after in pairs:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (root / name).write_text(text)


def equivalences(root):
    path = root / "results" / "records" / "equivalences.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_records_that_stand_pass(repository):
    done = lab(repository, "audit", "--budget", "5s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 short runs" in done.stdout and "2 real runs" in done.stdout and "all is well" in done.stdout
    done = lab(repository, "audit", "--base", "HEAD")
    assert done.returncode == 0 and "nothing to prove" in done.stdout
    assert equivalences(repository) is None


def test_a_refactoring_is_proved_and_its_records_stand_again(repository):
    text = (repository / "lab" / "experiments" / "quadratic.py").read_text()
    start, end = text.index("def hessian"), text.index("@run(")
    head = "import math\n\nimport torch\nfrom torch import Tensor\n\n\n"
    (repository / "lab" / "moved.py").write_text(head + text[start:end].rstrip() + "\n")
    edit(
        repository,
        "lab/experiments/quadratic.py",
        (text[start:end], ""),
        ("from lab.experiments import run\n", "from lab.experiments import run\nfrom lab.moved import hessian\n"),
        ("    dx = x - x_mean[:, None]\n", "    away = x - x_mean[:, None]\n"),
        ("np.nansum(dx * (y - y_mean[:, None]), 1) / np.nansum(dx**2, 1)",
         "np.nansum(away * (y - y_mean[:, None]), 1) / np.nansum(away**2, 1)"),
    )  # fmt: skip
    edit(repository, "kadam/update.py", ("    return 1 - alpha**n\n", "    rest = alpha**n\n    return 1 - rest\n"))
    why = lab(repository, "why", RUN)
    assert why.returncode == 1 and "changed: kadam.update.bias_correction" in why.stdout
    assert "hessian" not in why.stdout  # it only moved
    done = lab(repository, "audit", "--base", "HEAD")
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = equivalences(repository)
    assert entry["run"] == RUN and entry["old"] != entry["new"] and len(entry["sample"]) == 1
    assert "2 real runs beside" in done.stdout
    assert lab(repository, "why").returncode == 0
    assert run(repository, "git", "worktree", "list").stdout.count("\n") == 1


def refused(root):
    done = lab(root, "audit", "--base", "HEAD")
    assert done.returncode == 1 and "REFUSED" in done.stdout, done.stdout + done.stderr
    assert equivalences(root) is None
    return done.stdout


def published(root):
    paths = sorted(path for path in (root / "results" / "records").rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def test_a_changed_constant_is_refused_and_the_array_named(repository):
    edit(repository, "kadam/update.py", ("return 1 - alpha**n", "return 1 - alpha**n / 2"))
    before = published(repository)
    assert lab(repository, "audit", "--budget", "1s").returncode == 1
    assert f"{RUN} DIFFERS: " in (said := refused(repository)) and "NOT EXECUTED" not in said
    assert any(f"}}: {array} by" in said for array in ("final_loss", "largest_update", "slope", "largest_last"))
    assert published(repository) == before


def line_of(root, name, text):
    return next(i for i, line in enumerate((root / name).read_text().splitlines(), 1) if text in line)


def test_changed_lines_that_no_run_executes_are_refused_and_named(repository):
    """The ensemble gives tensors, so that the other branches of the formula are not taken."""
    update = "kadam/update.py"
    was = line_of(repository, update, "v = (moments.v * beta).addcmul")
    edit(
        repository,
        update,
        ("addcmul(x, x, value=1 - beta)", "addcmul(x, x, value=1 - beta + 0)  # pragma: no cover"),
        ("    if isinstance(size, Tensor):", "    if isinstance(size, Tensor) or True:"),
    )
    now, fork = line_of(repository, update, "no cover"), line_of(repository, update, "or True")
    said = refused(repository).splitlines()
    assert f"  NOT EXECUTED: old {update}:{was}, in kadam.update.advance" in said  # what is gone counts as well
    assert f"  NOT EXECUTED: new {update}:{now}, in kadam.update.advance" in said
    assert f"  NOT EXECUTED: new {update}:{fork}, in kadam.update.apply: one of the two ways on" in said
    assert not any("DIFFERS" in line for line in said)


def test_a_result_that_only_a_real_run_shows_is_refused(repository):
    # it is judged by the last 10 of 40 steps in a short run, by the last 20 of 60 in a real one
    edit(repository, "lab/experiments/quadratic.py", (">= DOUBLING", ">= DOUBLING - 1e9 * (window > 10)"))
    said = refused(repository)
    assert "DIFFERS" not in said and "NOT EXECUTED" not in said
    assert "largest difference" in said and "update_grows" in said


def test_a_real_run_that_fails_is_named(repository):
    check = "    shape = (len(lrs), len(betas), len(gammas))\n"
    edit(repository, "lab/experiments/quadratic.py", (check, f"{check}    assert window == 10\n"))
    done = lab(repository, "audit", "--base", "HEAD")
    assert done.returncode == 2 and f"error: {RUN}" in done.stderr and "AssertionError" in done.stderr
    assert equivalences(repository) is None


def test_an_altered_number_is_found_though_its_checksum_was_altered_too(repository):
    folder = repository / "results" / "records" / "short"
    with np.load(folder / f"{RUN}.npz") as found:
        arrays = {name: found[name] for name in found.files}
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = manifest["records"]
    arrays[f"{entry['id']}/final_loss"] = np.nextafter(arrays[f"{entry['id']}/final_loss"], 1)
    entry["sha256"] = records.content_hash({name.split("/")[1]: array for name, array in arrays.items()})
    (folder / f"{RUN}.npz").write_bytes(records.npz(arrays))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = lab(repository, "audit", "--budget", "1s")
    assert done.returncode == 1 and "SOMETHING IS WRONG" in done.stdout
    assert "largest difference" in done.stdout and "final_loss" in done.stdout


def test_a_damaged_record_and_one_old_among_many_are_found(repository):
    folder = repository / "results" / "records" / "page"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["codes"]["0" * 64] = manifest["codes"][manifest["records"][0]["code"]]
    manifest["records"][0]["code"] = "0" * 64  # the last of the run is as it should be
    manifest["records"][1]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = lab(repository, "audit", "--budget", "1s")
    assert done.returncode == 1
    assert f"page: records of {RUN} are old" in done.stdout
    assert f"page: record {manifest['records'][1]['id']} is damaged" in done.stdout


def test_a_base_that_did_not_make_the_records_makes_none_stand(repository):
    edit(repository, "kadam/update.py", ("return 1 - alpha**n", "return 1 - alpha ** (n + 1)"))
    run(repository, "git", "commit", "-qam", "not what made them")
    edit(repository, "kadam/update.py", ("return 1 - alpha ** (n + 1)", "less = alpha ** (n + 1)\n    return 1 - less"))
    done = lab(repository, "audit", "--base", "HEAD")
    assert done.returncode == 1 and "still old" in done.stdout


@pytest.mark.parametrize("base", ["nothing", "--help"])
def test_a_base_that_is_no_commit_is_named(tmp_path, base):
    with pytest.raises(audit.AuditError, match=f"BASE: '{base}'"), audit._worktree(base, tmp_path / "base"):
        pass


def test_only_a_proof_writes_equivalences():
    writers = []
    for path in sorted((ROOT / "lab").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            text = ast.unparse(node)
            if "EQUIVALENCES" in text or "equivalences.json" in text:
                writers.append(f"{path.stem}.{getattr(node, 'name', 'EQUIVALENCES')}")
    assert writers == ["audit._write_down", "records.EQUIVALENCES", "records._equivalences"]
    callers = [
        node.name
        for node in ast.parse((ROOT / "lab" / "audit.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and "_write_down(" in ast.unparse(ast.Module(node.body, []))
    ]
    assert callers == ["prove"]
    assert "write" not in ast.unparse(next(
        node for node in ast.parse((ROOT / "lab" / "records.py").read_text()).body
        if getattr(node, "name", "") == "_equivalences"
    ))  # fmt: skip


# --- in this process ---


def statements(root, text):
    (root / "kadam").mkdir(parents=True)
    (root / "kadam" / "a.py").write_text(text)
    return Code(root).statements(Node("kadam.a", "f"))[1]


def test_a_statement_knows_its_block(tmp_path):
    inside = statements(tmp_path / "1", "def f(x):\n    if x:\n        a()\n        b()\n")
    outside = statements(tmp_path / "2", "def f(x):\n    if x:\n        a()\n    b()\n")
    assert [one.text for one in inside[:3]] == [one.text for one in outside[:3]]
    assert inside[3].text != outside[3].text


def test_a_lambda_is_looked_at_by_itself_and_a_condition_for_its_two_ways(tmp_path):
    text = "def f(x):\n    if (x or\n        y):\n        return {\n            'a': lambda: 1,\n"
    text += "            'b': lambda: 2}\n"
    found = statements(tmp_path, text + "    if z:\n        raise ValueError\n")
    said = [(one.line, one.is_lambda, one.last) for one in found]
    assert said == [(1, False, 0), (2, False, 3), (4, False, 0), (5, True, 0), (6, True, 0), (7, False, 0)]


def test_a_budget_is_a_time():
    assert [audit.seconds(text) for text in ("60s", "10m", "1h", "5")] == [60, 600, 3600, 5]
    for text in ("", "s", "-1s", "0s", "inf", "nan", "1d"):
        with pytest.raises(audit.AuditError, match="BUDGET"):
            audit.seconds(text)
