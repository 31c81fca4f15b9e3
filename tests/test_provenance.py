import pytest

from lab import provenance

SOURCE = "from lab.training import train\n\n\ndef f():\n    '''Says.'''\n    return train\n"


def test_comments_and_docstrings_do_not_count():
    changed = SOURCE.replace("Says", "Says more").replace("return", "# why\n    return")
    assert provenance.code_version(changed) == provenance.code_version(SOURCE)
    assert provenance.code_version(SOURCE.replace("return train", "return 1")) != provenance.code_version(SOURCE)


def test_imports_count_all_the_way(tmp_path, monkeypatch):
    for name, text in {
        "kadam/__init__.py": "", "kadam/update.py": "x = 1\n", "kadam/other.py": "", "lab/__init__.py": "",
        "lab/training.py": "from kadam import update\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    before = provenance.module_version("lab.training"), provenance.code_version(SOURCE)
    (tmp_path / "kadam/other.py").write_text("y = 2\n")
    assert (provenance.module_version("lab.training"), provenance.code_version(SOURCE)) == before
    (tmp_path / "kadam/update.py").write_text("x = 2\n")
    after = provenance.module_version("lab.training"), provenance.code_version(SOURCE)
    assert before[0] != after[0] and before[1] != after[1]


def test_only_this_projects_modules_have_a_version():
    with pytest.raises(ValueError, match="module: 'numpy'"):
        provenance.module_version("numpy")


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
