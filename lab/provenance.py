"""Where a result was computed: versions, commit, machine."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lab import fingerprint
from lab.files import ROOT

ALWAYS = ("torch", "numpy")
NO_ARITHMETIC = ("triton",)  # compiles for GPUs what no page runs there


def digest(value: Any) -> str:
    """SHA-256 of ``value`` written as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of torch, numpy and the named top-level modules, local suffixes such as +cpu left out."""
    wanted = sorted({*ALWAYS, *packages} - set(NO_ARITHMETIC))
    return {name: importlib.metadata.version(_distribution(name)).split("+")[0] for name in wanted}


@cache
def _distribution(module: str) -> str:
    if module in ALWAYS:
        return module
    return importlib.metadata.packages_distributions().get(module, [module])[0]


@cache
def machine() -> dict[str, Any]:
    """The kind of machine: what decides in which order a sum is taken, hence the last bit of a result."""
    import torch

    return {"system": platform.system(), "machine": platform.machine(), "processor": _processor(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "blas": os.environ.get("OPENBLAS_CORETYPE", "")}  # fmt: skip


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(named, platform.processor())


def python() -> str:
    """Python's version. No record depends on it; it is written down all the same."""
    return platform.python_version()


@cache
def commit(root: Path = ROOT) -> str:
    """The checked-out commit, with ``+changes`` when tracked files of code, data and versions differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown (not a git checkout)"  # unpacked inside another repository
        code = ("kadam", "lab", "data", "requirements.lock")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def project_version() -> str:
    """SHA-256 over all code of this project; comments and docstrings of Python do not count.

    Two processes that agree in it compute the same, whatever they are asked.
    """
    found = {}
    for folder in fingerprint.PROJECT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[str(path.relative_to(ROOT))] = ast.dump(_without_docstrings(tree))
        for suffix in fingerprint.KERNELS:
            for path in sorted((ROOT / folder).rglob(f"*{suffix}")):
                found[str(path.relative_to(ROOT))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest(found)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[1:] if documented else node.body
    return tree
