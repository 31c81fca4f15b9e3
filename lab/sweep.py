"""Many runs, in parallel processes, each on disk as soon as it is finished.

A run is a function of plain arguments, from one of the modules of ``lab.experiments``. Its record is keyed by the
code that it uses, its arguments, the checksum of its data and the versions of Python and the numerical packages, so a
changed formula recomputes what rests on it and nothing else. An interrupted sweep loses the runs in flight.
``KADAM_CACHE=off`` computes everything afresh and keeps nothing (so does ``make test``: a check that reads old records
checks nothing); ``KADAM_WORKERS`` sets the number of processes.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from lab import data, files, progress, provenance

Result = dict[str, Any]
ARGUMENTS = "__arguments__"  # in a record, for whoever opens it


def sweep(run: Callable[..., Result], arguments: Sequence[dict[str, Any]], label: str) -> list[Result]:
    """``run(**a)`` for every a in ``arguments``, in their order; arrays come back as NumPy arrays.

    Args:
        run: a function marked with ``lab.experiments.uses``, which returns numbers, strings and arrays by name.
        arguments: one dict of plain values for each run; missing ones take the function's defaults.
        label: what the progress line calls the sweep.

    Raises:
        TypeError: an argument that ``run`` does not have, before anything is computed.
        Exception: whatever a run raises; the finished runs are kept.
    """
    complete = [_complete(run, given) for given in arguments]
    common = {
        "run": f"{run.__module__}.{run.__qualname__}",
        "code": provenance.module_version(run.__module__),
        "data": data.checksum(run.data),  # type: ignore[attr-defined]
        "versions": provenance.versions(),
    }
    paths = [_path({**common, "arguments": full}) for full in complete]
    results: list[Result | None] = [_load(path) for path in paths]
    missing = [index for index, result in enumerate(results) if result is None]
    # the machine's threads belong to the processes: one each, or they fight for the cores
    found = len(paths) - len(missing)
    with (
        joblib.parallel_config(backend="loky", inner_max_num_threads=1),
        progress.Meter(label, len(paths), found) as meter,
    ):
        pool = joblib.Parallel(n_jobs=_workers(), return_as="generator_unordered", batch_size=1)
        tasks = (joblib.delayed(_compute)(index, run, complete[index], paths[index]) for index in missing)
        for index, result in pool(tasks):
            results[index] = result
            meter.advance(1)
    return [result for result in results if result is not None]


def _workers() -> int:
    return int(os.environ.get("KADAM_WORKERS", joblib.cpu_count()))


def _complete(run: Callable[..., Result], given: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(run).bind(**given)
    bound.apply_defaults()
    return dict(bound.arguments)


def _path(key: dict[str, Any]) -> Path | None:
    if os.environ.get("KADAM_CACHE") == "off":
        return None
    return files.RUNS / f"{provenance.digest(key)}.run"


def _compute(
    index: int, run: Callable[..., Result], arguments: dict[str, Any], path: Path | None
) -> tuple[int, Result]:
    import torch

    torch.set_num_threads(1)
    arrays = {name: np.asarray(value) for name, value in run(**arguments).items()}
    if path is not None:
        buffer = io.BytesIO()
        record: dict[str, Any] = {ARGUMENTS: np.asarray(json.dumps(arguments)), **arrays}
        np.savez_compressed(buffer, **record)
        content = buffer.getvalue()
        files.write(path, hashlib.sha256(content).digest() + content)
    return index, _plain(arrays)


def _load(path: Path | None) -> Result | None:
    """A finished record (the SHA-256 of an npz file, then that file), or None if there is none or it is damaged."""
    if path is None or not path.is_file():
        return None
    record = path.read_bytes()
    if hashlib.sha256(record[32:]).digest() != record[:32]:
        return None
    with np.load(io.BytesIO(record[32:]), allow_pickle=False) as arrays:
        return _plain({name: arrays[name] for name in arrays.files if name != ARGUMENTS})


def _plain(arrays: dict[str, np.ndarray]) -> Result:
    return {name: array if array.ndim else array.item() for name, array in arrays.items()}
