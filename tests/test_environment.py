"""Three files describe one environment; the wheel holds the library alone; the bootstrap says what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lab.files import ROOT


def disagreements(pyproject, lock, conda):
    """What the three files say differently."""
    project = tomllib.loads(pyproject)["project"]
    found, pinned = [], {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(?:; platform_system == \"Linux\")?", line)
            if match:
                pinned[canonicalize_name(match[1])] = match[2]
            else:
                found.append(f"lock: {line!r} is no exact pin of a public version")
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    for requirement in map(Requirement, wanted):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"lock: {requirement.name} is missing")
        elif version not in requirement.specifier:
            found.append(f"lock: {requirement.name} {version} does not satisfy {requirement}")
    dependencies = yaml.safe_load(conda)["dependencies"]
    if f"python{project['requires-python']}" not in dependencies:
        found.append(f"environment.yml: python is not {project['requires-python']}")
    if {"pip": ["-r requirements.lock"]} not in dependencies or "pip" not in dependencies:
        found.append("environment.yml: does not install requirements.lock by pip")
    extra = [d for d in dependencies if isinstance(d, str) and not d.startswith("python") and d != "pip"]
    return found + [f"environment.yml: {name} is not in pyproject.toml" for name in extra]


@pytest.fixture(scope="module")
def three():
    return [(ROOT / name).read_text() for name in ("pyproject.toml", "requirements.lock", "environment.yml")]


def test_the_three_agree(three):
    assert disagreements(*three) == []


@pytest.mark.parametrize(
    ("which", "old", "new"),
    [
        (0, 'requires-python = ">=3.11"', 'requires-python = ">=3.12"'),
        (0, '"torch>=2.6"', '"torch>=2.99"'),
        (0, '"scipy>=1.11"', '"scipy>=1.11", "jax"'),
        (1, "torch==2.13.0", "torch==2.13.0+cpu"),
        (1, "torch==2.13.0\n", ""),
        (1, "torch==", "torch>="),
        (2, "-r requirements.lock", "numpy"),
        (2, "  - pip\n", "  - pip\n  - jax\n"),
    ],
)
def test_a_disagreement_is_found(three, which, old, new):
    changed = list(three)
    assert old in changed[which]
    changed[which] = changed[which].replace(old, new, 1)
    assert disagreements(*changed) != []


def test_the_library_needs_torch_numpy_and_scipy_only(three):
    names = [Requirement(text).name for text in tomllib.loads(three[0])["project"]["dependencies"]]
    assert names == ["torch", "numpy", "scipy"]
    imports = set()
    for path in (ROOT / "kadam").glob("*.py"):
        if path.name == "gpu.py":  # imported where a CUDA device is asked for; torch for CUDA brings Triton
            continue
        imports |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.M))
    assert imports - set(sys.stdlib_module_names) <= {"torch", "numpy", "scipy", "kadam"}


def test_the_wheel_holds_the_library_alone(tmp_path):
    for name in ("kadam", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "out").glob("kadam-0.1.0-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"kadam/{path.name}" for path in (ROOT / "kadam").iterdir() if path.is_file()}
    assert "kadam/py.typed" in names


def bootstrap(folder, python, path=os.environ["PATH"]):
    shutil.copytree(ROOT / "lab", folder / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "requirements.lock").write_text("torch==0.0.0\n")
    environment = {
        "PATH": path,
        "PYTHON": python,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    result = subprocess.run(
        ["/bin/sh", "lab/bootstrap.sh"], cwd=folder, env=environment, capture_output=True, text=True
    )
    return result.returncode, result.stderr.strip().splitlines()[-1]


def test_the_bootstrap_installs_the_pinned_packages_and_then_the_project_as_it_lies(tmp_path):
    python = standing_in(tmp_path)
    code, _ = bootstrap(tmp_path / "with space", python)
    assert code == 0
    called = [line for line in (tmp_path / "called").read_text().splitlines() if "pip install" in line]
    assert len(called) == 2 and called[0].endswith("-r requirements.lock") and called[1].endswith("-e .")
    # nothing but the pins decides what is installed, and of an editable wheel "lab" would not be part
    assert all(option in called[1] for option in ("--no-deps", "--no-build-isolation", "editable_mode=compat"))
    assert (tmp_path / "with space" / ".venv" / "complete").read_text() == "torch==0.0.0\n"


def test_a_project_that_cannot_be_installed_is_said_in_one_sentence(tmp_path):
    code, last = bootstrap(tmp_path / "with space", standing_in(tmp_path, refuses="-e ."))
    assert code == 1 and "kadam itself could not be installed into .venv" in last
    assert not (tmp_path / "with space" / ".venv" / "complete").exists()


def test_the_environment_imports_this_project_from_anywhere(tmp_path):
    program = "import kadam, lab; print(kadam.__file__, lab.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and "lab" in result.stdout, result.stderr


def standing_in(folder, refuses="nothing"):
    """A python that writes down what it is asked for; the environments that it makes hold itself."""
    path = folder / "python"
    path.write_text(
        "#!/bin/sh\n"
        f"echo \"$@\" >>'{folder / 'called'}'\n"
        f'case "$*" in *"{refuses}") exit 1;; esac\n'
        f'case "$2" in venv) mkdir -p "$3/bin"; cp \'{path}\' "$3/bin/python";; esac\n'
    )
    path.chmod(0o755)
    return str(path)


def fake_python(folder, old):
    """A python that is too old, or one without venv."""
    script = folder / "fake python"
    lie = f"""case "$2" in *version_info*) exit {int(old)};; *venv*) exit 1;; esac; echo Python 3.9.2"""
    script.write_text(f"#!/bin/sh\n{lie}\n")
    script.chmod(0o755)
    return str(script)


def test_the_bootstrap_says_in_one_sentence_what_is_missing(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    assert bootstrap(folder / "1", "no-such-python")[0] == 1
    assert "Python is missing: no 'no-such-python'" in bootstrap(folder / "2", "no-such-python")[1]
    assert "Python is too old" in bootstrap(folder / "3", fake_python(folder, old=True))[1]
    assert "venv module is missing" in bootstrap(folder / "4", fake_python(folder, old=False))[1]


def test_the_bootstrap_without_an_index_says_so_and_leaves_no_finished_environment(tmp_path):
    code, last = bootstrap(tmp_path / "with space", sys.executable)
    assert code == 1 and "package index could not be reached" in last
    assert not (tmp_path / "with space" / ".venv" / "complete").exists()


def test_every_dependency_has_its_reason_in_the_docs(three):
    project = tomllib.loads(three[0])["project"]
    direct = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    table = (ROOT / "docs" / "reproduce.md").read_text().partition("| dependency | reason |")[2]
    named = {
        name.strip() for line in table.splitlines() if line.count("|") == 3 for name in line.split("|")[1].split(",")
    }
    assert {Requirement(text).name for text in direct} <= named


def test_the_librarys_examples_print_what_they_say():
    import doctest

    assert doctest.testfile(str(ROOT / "docs" / "library.md"), module_relative=False) == (0, 31)
