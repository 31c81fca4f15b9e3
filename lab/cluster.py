"""Calls on the workers of a Dask cluster; imported only when ``KADAM_CLUSTER`` names one.

    .venv/bin/dask scheduler
    .venv/bin/dask worker tcp://host:8786 --nworkers 8 --nthreads 1

Every worker is a process of one thread, started in this same version of the code, with the same versions of Python and
the numerical packages; another one is refused. The calls of a worker that dies go to the others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import joblib
from distributed import Client, get_worker
from distributed.scheduler import KilledWorker, NoWorkerError
from joblib._dask import DaskDistributedBackend

from lab import provenance

Function = Callable[..., Any]
START = "start it in this checkout: .venv/bin/dask"
WORKER = "worker ADDRESS --nthreads 1"
PACKAGES = ("scipy", "mnist1d", "schedulefree")  # that runs compute with, besides torch and numpy
LOST = "KADAM_CLUSTER: the connection to the scheduler was lost; the finished runs are kept"
ANSWER = 10.0  # seconds in which a scheduler must answer
PATIENCE = 60.0  # seconds until a cluster without workers is given up


class ClusterError(RuntimeError):
    """A cluster cannot be used, or was lost."""


class Backend(DaskDistributedBackend):  # type: ignore[misc]
    """joblib's backend for Dask, with three gaps closed, which the comments below name."""

    def effective_n_jobs(self, n_jobs: int) -> int:
        # with one worker, joblib would compute here instead of there
        return max(2, super().effective_n_jobs(n_jobs))

    def submit(self, func: Any, callback: Callable[[Any], None]) -> Any:
        """Submit a batch of one call. If it fails, the exception is its result.

        joblib would never hear of a call that no worker finished, and would drop the results that are there already
        when an exception comes.
        """

        def deliver(outcome: Any) -> None:
            callback([outcome] if isinstance(outcome, BaseException) else outcome)

        def done(future: Future[Any]) -> None:
            if (error := future.exception()) is not None:
                deliver(error)

        future = super().submit(func, deliver)
        future.add_done_callback(done)
        return future


@contextmanager
def backend(address: str) -> Iterator[Callable[[Function], Function]]:
    """Within, joblib's calls go to the cluster at ``address``; exceptions come as results.

    Yields what a function must go through before it is called there: a worker unlike this process, which may also
    come in mid-sweep, then refuses the call.

    Raises:
        ClusterError: no cluster at the address, no worker, one that is not like this process; lost in mid-sweep.
    """
    with _connect(address) as client:
        expected = _like_here()
        _check(client, address, expected)
        with joblib.parallel_config(backend=Backend(client=client)):
            try:
                yield partial(partial, _call, expected)
            except CancelledError:
                raise ClusterError(LOST) from None
            except NoWorkerError:
                raise ClusterError("KADAM_CLUSTER: no worker is left; the finished runs are kept") from None
            except KilledWorker as error:
                raise ClusterError(f"KADAM_CLUSTER: {error} The finished runs are kept.") from None


def _connect(address: str) -> Client:
    if not re.fullmatch(r"(tcp|tls)://[^\s/]+:\d+", address):
        raise ClusterError(f"KADAM_CLUSTER: {address!r} (must be the address of a Dask scheduler, tcp://host:port)")
    try:
        return Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"KADAM_CLUSTER: no Dask scheduler answers at {address} ({error})") from None


def _workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except OSError:
        raise ClusterError(LOST) from None


def _like_here() -> dict[str, Any]:
    """What every worker must be."""
    versions = {"python": provenance.python(), **provenance.versions(PACKAGES)}
    code = {"version of the code": provenance.project_version(), **versions}
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


def _prepare(patience: float, dask_scheduler: Any) -> None:
    # calls that no worker has taken for so long fail; else they would wait for ever
    dask_scheduler.no_workers_timeout = patience


def _check(client: Client, address: str, expected: dict[str, Any]) -> None:
    """Refuse a cluster any of whose workers would not compute as this process does."""
    try:  # it unpickles the calls
        client.run_on_scheduler(_prepare, PATIENCE)
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


def _call(expected: dict[str, Any], function: Function, *call: Any) -> Any:
    _compare("that joined late", _worker(get_worker()), expected)
    return function(*call)
