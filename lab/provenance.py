"""What a result was computed from: the code it used, the versions, the commit, the machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.files import ROOT

PACKAGES = ("torch", "numpy", "scipy", "mnist1d")
PROJECT = ("kadam", "lab")


def digest(value: Any) -> str:
    """SHA-256 of ``value`` written as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose arithmetic the results rest on."""
    found = {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def environment() -> dict[str, Any]:
    """Where a result was computed: commit, versions, machine. For the reader, no part of any key."""
    return {"commit": commit(), "versions": versions(), "system": platform.system(), "machine": platform.machine(),
            "cores": os.cpu_count()}  # fmt: skip


def commit() -> str:
    """The checked-out commit, with ``+changes`` when tracked files other than results differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!README.md")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def code_version(source: str, name: str = "<source>") -> str:
    """SHA-256 over ``source`` and every module of this project that it imports, directly or not.

    Comments and docstrings do not count: what cannot change a number does not make it old.
    """
    seen: dict[str, str] = {}
    queue = [(name, source)]
    while queue:
        name, text = queue.pop()
        if name in seen:
            continue
        tree = ast.parse(text)
        seen[name] = _tree_version(tree)
        queue += [(str(path.relative_to(ROOT)), path.read_text()) for path in _project_imports(tree)]
    return digest(seen)


def module_version(module: str) -> str:
    """``code_version`` of an importable module of this project, such as ``lab.experiments``."""
    path = _module_path(module)
    if path is None:
        raise ValueError(f"module: {module!r} (must be a module of {' or '.join(PROJECT)})")
    return code_version(path.read_text(), str(path.relative_to(ROOT)))


def project_version() -> str:
    """SHA-256 over all code of this project; comments and docstrings of Python do not count."""
    found = {}
    for folder in PROJECT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[str(path.relative_to(ROOT))] = _tree_version(ast.parse(path.read_text()))
        for path in sorted((ROOT / folder).rglob("*.cpp")):
            found[str(path.relative_to(ROOT))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest(found)


def _tree_version(tree: ast.Module) -> str:
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()


def _project_imports(tree: ast.Module) -> Iterable[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # "from a import b" may name a module b, or something that a itself defines
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if _module_path(name) else node.module for name in names]
        else:
            continue
        yield from (path for name in names if (path := _module_path(name)))


def _module_path(name: str) -> Path | None:
    if name.split(".")[0] not in PROJECT:
        return None
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
    return tree
