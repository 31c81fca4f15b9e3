"""Calls on the workers of a Dask cluster; imported only when ``KADAM_CLUSTER`` names one.

    PYTHONPATH=. dask scheduler
    PYTHONPATH=. dask worker tcp://host:8786 --nworkers 8 --nthreads 1

Every worker is a process of one thread, started in this same version of the code, with the same versions of Python and
the numerical packages; another one is refused. The calls of a worker that dies go to the others.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from distributed import Client, Future, get_worker, wait
from distributed.client import FuturesCancelledError

from lab import provenance

AHEAD = 2  # calls that a worker holds: one under way, one to go on with
START = "start it in this checkout: PYTHONPATH=. dask"
WORKER = "worker ADDRESS --nthreads 1"
LOST = "KADAM_CLUSTER: the connection to the scheduler was lost; the finished runs are kept"
ANSWER = 10.0  # seconds in which a scheduler must answer
PATIENCE = 60.0  # seconds until a cluster without workers is given up


class ClusterError(RuntimeError):
    """A cluster cannot be used, or was lost."""


def results(address: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """``function(*call)`` for every call, as they finish.

    Raises:
        ClusterError: no cluster at the address, no worker, one that is not like this process; lost in mid-sweep.
        Exception: the first that a call raises.
    """
    if not calls:
        return
    with _connect(address) as client:
        expected = _like_here()
        _check(client, address, expected)
        waiting, running = deque(calls), set[Future[Any]]()
        while waiting or running:
            while waiting and len(running) < AHEAD * max(1, _workers(client)):
                running.add(client.submit(_call, expected, function, waiting.popleft(), pure=False))
            for future in _finished(client, running):
                running.remove(future)
                yield future.result()


def _connect(address: str) -> Client:
    if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", address):
        raise ClusterError(f"KADAM_CLUSTER: {address!r} (must be the address of a Dask scheduler, tcp://host:port)")
    try:
        return Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"KADAM_CLUSTER: no Dask scheduler answers at {address} ({error})") from None


def _finished(client: Client, running: set[Future[Any]]) -> list[Future[Any]]:
    """The calls that are done, at least one; those that failed come last, so that no result is lost to an error."""
    while True:
        try:
            with client.as_current():
                done = wait(running, timeout=PATIENCE, return_when="FIRST_COMPLETED").done
            return sorted(done, key=lambda future: future.status != "finished")
        except FuturesCancelledError:
            raise ClusterError(LOST) from None
        except TimeoutError:
            if not _workers(client):
                raise ClusterError("KADAM_CLUSTER: no worker is left; the finished runs are kept") from None


def _workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError:
        raise ClusterError(LOST) from None


def _like_here() -> dict[str, Any]:
    """What every worker must be."""
    code = {"version of the code": provenance.project_version(), **provenance.versions()}
    # threads would share one torch, with one random generator
    return {**code, "number of threads": 1, "OMP_NUM_THREADS": "1"}


@cache
def _met() -> dict[str, Any]:
    # once a process, when it first meets this project: what it imported does not follow a later change on its disk
    return _like_here()


def _worker(dask_worker: Any) -> dict[str, Any]:
    """What this worker is; ``Client.run`` fills in the argument of that name."""
    own = {"number of threads": dask_worker.state.nthreads, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    return {**_met(), **own}


def _check(client: Client, address: str, expected: dict[str, Any]) -> None:
    """Refuse a cluster any of whose workers would not compute as this process does."""
    try:  # it unpickles the calls
        client.run_on_scheduler(provenance.digest, "anything")
    except OSError:
        raise ClusterError(LOST) from None
    except Exception as error:
        message = f"KADAM_CLUSTER: the scheduler cannot import this project ({error}); {START} scheduler"
        raise ClusterError(message) from None
    if not _workers(client):
        raise ClusterError(f"KADAM_CLUSTER: {address} has no workers; {START.replace('it', 'some')} {WORKER}")
    for worker, found in client.run(_worker, on_error="return").items():
        if isinstance(found, OSError):  # it died just now
            continue
        if isinstance(found, Exception):
            raise ClusterError(f"KADAM_CLUSTER: worker {worker} cannot import this project ({found}); {START} {WORKER}")
        _compare(worker, found, expected)


def _compare(worker: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if found[name] != value:
            raise ClusterError(
                f"KADAM_CLUSTER: worker {worker}: {name} is {found[name]} (must be {value}); {START} {WORKER}"
            )


def _call(expected: dict[str, Any], function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    # also here, for a worker that came in mid-sweep
    _compare("that joined late", _worker(get_worker()), expected)
    return function(*call)
