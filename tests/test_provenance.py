import importlib.metadata
import os
import platform
import subprocess

import pytest
import torch

from lab import provenance


def git(folder, *words):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path):
    """A repository with one committed module, in which ``commit`` is asked anew every time."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "training.py").write_text("x = 1\n")
    (tmp_path / "notes.md").write_text("one\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


commit = provenance.commit.__wrapped__  # without its memory


def test_the_commit_is_named_and_changed_code_marked(checkout):
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert commit(checkout) == head and len(head) == 40
    (checkout / "notes.md").write_text("prose and results do not count\n")
    (checkout / "lab" / "new.py").write_text("neither does what is not tracked\n")
    assert commit(checkout) == head
    (checkout / "lab" / "training.py").write_text("x = 2\n")
    assert commit(checkout) == f"{head}+changes"


def test_a_tree_inside_another_repository_has_no_commit_of_its_own(checkout):
    inner = checkout / "unpacked"
    (inner / "lab").mkdir(parents=True)
    assert commit(inner) == "unknown (not a git checkout)"


def test_a_tree_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == "unknown (not a git checkout)"
    monkeypatch.setenv("PATH", str(tmp_path))  # git itself is missing
    assert commit(tmp_path) == "unknown (not a git checkout)"


def test_the_machine_is_described_by_what_decides_the_last_bit(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    found = provenance.machine.__wrapped__()
    assert found == {
        "system": platform.system(), "machine": platform.machine(), "processor": found["processor"],
        "vectors": torch.backends.cpu.get_cpu_capability(), "blas": "Haswell",
    }  # fmt: skip
    assert all(isinstance(value, str) for value in found.values())


def test_the_processor_is_the_first_one_that_the_system_names(tmp_path, monkeypatch):
    listed = tmp_path / "cpuinfo"
    listed.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: another\n")
    monkeypatch.setattr(provenance, "Path", lambda path: listed)
    assert provenance._processor() == "Fast CPU @ 3 GHz"
    listed.unlink()
    assert provenance._processor() == platform.processor()


def test_versions_are_those_of_torch_numpy_and_the_packages_named(monkeypatch):
    public = importlib.metadata.version("torch").split("+")[0]
    assert provenance.versions() == {"numpy": importlib.metadata.version("numpy"), "torch": public}
    more = provenance.versions(["sympy", "yaml", "triton"])  # of yaml the distribution has another name
    assert set(more) == {"numpy", "torch", "sympy", "yaml"}  # triton computes nothing here
    assert more["yaml"] == importlib.metadata.version("PyYAML")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.1+cpu")
    assert provenance.versions(["sympy"]) == dict.fromkeys(("numpy", "sympy", "torch"), "9.9.1")


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(importlib.metadata.PackageNotFoundError, match="no_such_package"):
        provenance.versions(["no_such_package"])


def test_the_digest_knows_no_order_of_names():
    assert provenance.digest({"a": 1, "b": 2}) == provenance.digest({"b": 2, "a": 1})
    assert provenance.digest([1, 2]) != provenance.digest([2, 1])


def test_the_projects_version_is_that_of_all_its_code(tmp_path, monkeypatch):
    for name in ("kadam/update.py", "lab/training.py", "kadam/kernel.cpp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    versions = [provenance.project_version()]
    (tmp_path / "lab/training.py").write_text("'Says.'\nx = 1  # why\n")
    assert provenance.project_version() == versions[0]
    for name in ("kadam/update.py", "lab/training.py", "kadam/kernel.cpp", "lab/new.py"):
        (tmp_path / name).write_text("x = 2\n")
        versions.append(provenance.project_version())
    assert len(set(versions)) == 5
