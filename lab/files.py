"""Where things lie, how files are written (whole or not at all), and a lock between processes."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
CACHE = ROOT / ".cache"


def write(path: Path, content: bytes | str) -> None:
    """Write ``content`` to a temporary file beside ``path``, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as an npz file behind a SHA-256 of the file's name and that content."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write(path, _seal(path, buffer.getvalue()) + buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What ``write_arrays`` wrote under this name; None if the file is missing, damaged or another one."""
    content = path.read_bytes() if path.is_file() else b""
    if content[:32] != _seal(path, content[32:]):
        return None
    with np.load(io.BytesIO(content[32:]), allow_pickle=False) as arrays:
        return dict(arrays)


def _seal(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\n" + content).digest()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of the file ``path``, which is made for it; wait while another process (or thread) has it.

    ``waiting`` is called once before such a wait. The system frees the lock however the process ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
