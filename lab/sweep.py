"""Many runs, in parallel processes, each on disk as soon as it is finished.

A run is a function of plain arguments, from one of the modules of ``lab.experiments``. Its record is keyed by the
code that it uses, its arguments, the checksum of its data and the versions of Python and the numerical packages, so a
changed formula recomputes what rests on it and nothing else. An interrupted sweep loses the runs in flight.
``KADAM_CACHE=off`` computes everything afresh and keeps nothing (so does ``make test``: a check that reads old records
checks nothing); ``KADAM_WORKERS`` sets the number of processes. ``KADAM_CLUSTER=tcp://host:port`` sends the runs to the
workers of a Dask cluster instead (``lab.cluster``), and this process writes their records: no disk need be shared.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from lab import data, files, progress, provenance

Result = dict[str, Any]
Task = tuple[int, Callable[..., Result], dict[str, Any], Path | None]
ARGUMENTS = "__arguments__"  # in a record, for whoever opens it


def sweep(run: Callable[..., Result], arguments: Sequence[dict[str, Any]], label: str) -> list[Result]:
    """``run(**a)`` for every a in ``arguments``, in their order; arrays come back as NumPy arrays.

    Args:
        run: a function which returns numbers, strings and arrays by name, marked with ``lab.experiments.uses`` if it
            reads a data set.
        arguments: one dict of plain values for each run; missing ones take the function's defaults.
        label: what the progress line calls the sweep.

    Raises:
        TypeError: an argument that ``run`` does not have, before anything is computed.
        ClusterError: the cluster of ``KADAM_CLUSTER`` cannot be used, or was lost; the finished runs are kept.
        Exception: whatever a run raises; the finished runs are kept.
    """
    complete = [_complete(run, given) for given in arguments]
    common = {
        "run": f"{run.__module__}.{run.__qualname__}",
        "code": provenance.module_version(run.__module__),
        "data": data.checksum(run.data) if hasattr(run, "data") else None,
        "versions": provenance.versions(),
    }
    paths = [_path({**common, "arguments": full}) for full in complete]
    results: list[Result | None] = [_load(path) for path in paths]
    missing = [index for index, result in enumerate(results) if result is None]
    found = len(paths) - len(missing)
    with progress.Meter(label, len(paths), found) as meter:
        tasks = [(index, run, complete[index], paths[index]) for index in missing]
        for index, record in _on_cluster(tasks) if os.environ.get("KADAM_CLUSTER") else _in_processes(tasks):
            results[index] = _unpack(record)
            meter.advance(1)
    return [result for result in results if result is not None]


def _in_processes(tasks: Sequence[Task]) -> Iterator[tuple[int, bytes]]:
    # the machine's threads belong to the processes: one each, or they fight for the cores
    with joblib.parallel_config(backend="loky", n_jobs=_workers(), inner_max_num_threads=1):
        yield from _parallel(_compute, tasks)


def _on_cluster(tasks: Sequence[Task]) -> Iterator[tuple[int, bytes]]:
    from lab import cluster

    if not tasks:  # what is finished needs no cluster
        return
    paths = {index: path for index, *_, path in tasks}
    with cluster.backend(os.environ["KADAM_CLUSTER"]) as checked:
        for index, record in _parallel(checked(_compute), [(*task[:3], None) for task in tasks]):
            if (path := paths[index]) is not None:
                files.write(path, record)
            yield index, record


def _parallel(function: Callable[..., tuple[int, bytes]], tasks: Sequence[Task]) -> Iterator[tuple[int, bytes]]:
    # all at once: a worker that joins a cluster later gets its share
    pool = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
    outcomes = pool(joblib.delayed(function)(*task) for task in tasks)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):  # of a cluster
            outcomes.throw(outcome)  # joblib then stops the other calls
        yield outcome


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


def _compute(index: int, run: Callable[..., Result], arguments: dict[str, Any], path: Path | None) -> tuple[int, bytes]:
    import torch

    torch.set_num_threads(1)
    record = _pack(arguments, {name: np.asarray(value) for name, value in run(**arguments).items()})
    if path is not None:
        files.write(path, record)
    return index, record


def _pack(arguments: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """A record: the SHA-256 of an npz file, then that file."""
    buffer = io.BytesIO()
    content: dict[str, Any] = {ARGUMENTS: np.asarray(json.dumps(arguments)), **arrays}
    np.savez_compressed(buffer, **content)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def _unpack(record: bytes) -> Result | None:
    """What a record holds, or None if it is damaged."""
    if hashlib.sha256(record[32:]).digest() != record[:32]:
        return None
    with np.load(io.BytesIO(record[32:]), allow_pickle=False) as arrays:
        return _plain({name: arrays[name] for name in arrays.files if name != ARGUMENTS})


def _load(path: Path | None) -> Result | None:
    return _unpack(path.read_bytes()) if path is not None and path.is_file() else None


def _plain(arrays: dict[str, np.ndarray]) -> Result:
    return {name: array if array.ndim else array.item() for name, array in arrays.items()}
