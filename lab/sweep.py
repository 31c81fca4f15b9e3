"""Many runs, in parallel processes, each on disk as soon as it is finished.

A run is a declared function of plain arguments (``lab.experiments``). One that has a record which stands
(``lab.records``) is not computed again; an interrupted sweep loses the runs in flight. ``KADAM_CACHE=off`` keeps
nothing on this machine, ``KADAM_RECORDS=off`` leaves the published records alone, ``KADAM_RECORDS=only`` computes
nothing; ``KADAM_WORKERS`` sets the number of processes. ``KADAM_CLUSTER=tcp://host:port`` sends the runs to the workers
of a Dask cluster instead (``lab.cluster``), and this process writes their records: no disk need be shared.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np

from lab import files, progress, records
from lab.records import Asked, Record, Result

Outcome = TypeVar("Outcome")
Task = tuple[int, Asked, str, Path | None]
USED = "runs.jsonl"  # in the folder KADAM_OUTPUT: what a page asked for, a line a run


def sweep(run: Callable[..., Result], arguments: Sequence[dict[str, Any]], label: str) -> list[Result]:
    """``run(**a)`` for every a in ``arguments``, in their order; arrays come back as NumPy arrays.

    Args:
        run: a function declared by ``lab.experiments.run``, which returns numbers, texts and arrays by name.
        arguments: one dict of plain values for each run; missing ones take the function's defaults.
        label: what the progress line calls the sweep.

    Raises:
        TypeError: an argument that ``run`` does not have, or that is no plain value, before anything is computed.
        RecordError: ``KADAM_RECORDS=only``, and a record is missing; names it, and why.
        ClusterError: the cluster of ``KADAM_CLUSTER`` cannot be used, or was lost; the finished runs are kept.
        Exception: whatever a run raises; the finished runs are kept.
    """
    questions = [records.asked(run, given) for given in arguments]
    _note(questions)
    found = [records.find(question) for question in questions]
    missing = [index for index, record in enumerate(found) if record is None]
    if missing and records.mode() == "only":
        raise records.missing([questions[index] for index in missing])
    with progress.Meter(label, len(questions), len(questions) - len(missing)) as meter:
        keep = records.cache_is_on()
        tasks = [
            (index, question := questions[index], question.key(), records.path_of(question) if keep else None)
            for index in missing
        ]
        cluster = bool(os.environ.get("KADAM_CLUSTER"))
        for index, packed in _on_cluster(tasks) if cluster else in_processes(compute, tasks):
            found[index] = records.unpack(packed)
            meter.advance(1)
    whole = [_whole(record, question) for record, question in zip(found, questions, strict=True)]
    _note(questions, whole)
    return [record.result for record in whole]


def _whole(record: Record | None, question: Asked) -> Record:
    if record is None:
        raise records.RecordError(f"{question.run.name} {question.arguments}: its record was damaged on the way")
    return record


def _note(questions: Sequence[Asked], answers: Sequence[Record] = ()) -> None:
    """Tell the page's runner what is asked for; and then what the answers are and were made from."""
    output = os.environ.get("KADAM_OUTPUT")
    if not output:
        return
    lines: list[dict[str, Any]] = [
        {"run": question.run.name, "arguments": records.plain(question.arguments), "id": question.id}
        for question in questions
    ]
    for line, record in zip(lines, answers, strict=False):
        line |= {name: record.made[name] for name in ("code", "data", "versions")} | {"sha256": record.sha256}
    with (Path(output) / USED).open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def in_processes(function: Callable[..., Outcome], calls: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
    """``function(*call)`` for every call, in parallel processes, as they finish."""
    # the machine's threads belong to the processes: one each, or they fight for the cores
    with joblib.parallel_config(backend="loky", n_jobs=workers(), inner_max_num_threads=1):
        yield from _parallel(function, calls)


def _on_cluster(tasks: Sequence[Task]) -> Iterator[tuple[int, bytes]]:
    from lab import cluster

    if not tasks:  # what is finished needs no cluster
        return
    paths = {index: path for index, *_, path in tasks}
    with cluster.backend(os.environ["KADAM_CLUSTER"]) as checked:
        for index, record in _parallel(checked(compute), [(*task[:3], None) for task in tasks]):
            if (path := paths[index]) is not None:
                files.write(path, record)
            yield index, record


def _parallel(function: Callable[..., Outcome], calls: Iterable[tuple[Any, ...]]) -> Iterator[Outcome]:
    # all at once: a worker that joins a cluster later gets its share
    pool = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
    outcomes = pool(joblib.delayed(function)(*call) for call in calls)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):  # of a cluster
            outcomes.throw(outcome)  # joblib then stops the other calls
        yield outcome


def workers() -> int:
    """How many processes share the runs."""
    return int(os.environ.get("KADAM_WORKERS", joblib.cpu_count()))


def compute(index: int, question: Asked, key: str, path: Path | None) -> tuple[int, bytes]:
    """Compute a run in one thread; its packed record, which is also written to ``path``.

    Raises:
        RecordError: this process has other code than the one that asked, which had the ``key``.
    """
    import torch

    if question.key() != key:
        raise records.RecordError(f"{question.run.name}: its code, data or a package changed while the sweep ran")
    torch.set_num_threads(1)
    start = time.perf_counter()
    arrays = {name: np.asarray(value) for name, value in question.run.function(**question.arguments).items()}
    packed = records.pack(records.computed(question, arrays, time.perf_counter() - start))
    if path is not None:
        files.write(path, packed)
    return index, packed
