"""Sweeps on a real cluster: a scheduler and two workers, each a process of its own, on loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest

from lab import cluster, files, provenance, sweep
from lab.experiments.quadratic import quadratic_map
from lab.records import unpack

RUNS = [
    dict(betas=[0.99], gammas=[0.9], lrs=[0.01], condition=10.0, steps=100, window=50, seed=seed) for seed in range(16)
]


class Cluster:
    """A scheduler and two workers without nannies: a worker that is killed does not come back."""

    def __init__(self, folder):
        self.where = ["--scheduler-file", str(folder / "scheduler.json"), "--no-dashboard"]
        self.scheduler = self.start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        self.workers = [self.start_worker() for _ in range(2)]
        until(lambda: self.written(folder / "scheduler.json"))  # the file is there before its text is
        self.address = json.loads((folder / "scheduler.json").read_text())["address"]

    @staticmethod
    def written(path):
        return path.exists() and path.read_text().endswith("}")

    def start_worker(self):
        return self.start("dask_worker", "--nthreads", "1", "--no-nanny")

    def start(self, command, *words):
        environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *words, *self.where], cwd=files.ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()

    def ask(self, question):
        with cluster.Client(self.address) as client:
            return client.run_on_scheduler(question)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        until(lambda: started.ask(lambda dask_scheduler: len(dask_scheduler.workers)) == 2)
        yield started
    finally:
        started.stop()


@pytest.fixture
def records(tmp_path, monkeypatch, two_workers):
    monkeypatch.setattr(files, "RUNS", tmp_path)
    monkeypatch.setenv("KADAM_CACHE", "on")
    monkeypatch.setenv("KADAM_WORKERS", "1")
    monkeypatch.setenv("KADAM_CLUSTER", two_workers.address)
    return tmp_path


def contents(folder):
    """The results on disk, by file; how long each took differs."""
    return {path.name: unpack(path.read_bytes()).sha256 for path in folder.glob("*.run")}


def refused(words, arguments=RUNS[:1]):
    with pytest.raises(cluster.ClusterError, match=words):
        sweep.sweep(quadratic_map, arguments, "test")


def test_a_worker_that_is_killed_costs_nothing(records, two_workers, monkeypatch):
    victim = two_workers.workers[0]
    left = []

    def kill():
        until(lambda: len(list(records.glob("*.run"))) >= 3)
        left.append(len(RUNS) - len(list(records.glob("*.run"))))
        victim.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    there = sweep.sweep(quadratic_map, RUNS, "test")
    killer.join()
    assert left[0] > 2 and victim.wait() == -signal.SIGKILL

    # every run was finished once, but for those that died with their worker
    finished = two_workers.ask(
        lambda dask_scheduler: [
            key for key, start, end, *_ in dask_scheduler.transition_log if (start, end) == ("processing", "memory")
        ]
    )
    times = Counter(key for key in finished if key.startswith("batch_of__call"))
    assert len(times) == len(RUNS) and sum(times.values()) <= len(RUNS) + 2

    monkeypatch.delenv("KADAM_CLUSTER")
    on_disk = contents(records)
    assert len(on_disk) == len(RUNS)
    monkeypatch.setattr(files, "RUNS", records / "here")
    here = sweep.sweep(quadratic_map, RUNS, "test")
    for a, b in zip(there, here, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a | b)
    assert contents(records / "here") == on_disk


def test_finished_runs_are_not_computed_again_and_survive_a_failing_one(records, monkeypatch):
    with pytest.raises(ValueError, match="window: 1 "):
        sweep.sweep(quadratic_map, [*RUNS[:2], {**RUNS[0], "window": 1}], "test")
    until(lambda: len(list(records.glob("*.run"))) == 2)
    times = {path.name: path.stat().st_mtime_ns for path in records.glob("*.run")}
    sweep.sweep(quadratic_map, RUNS[:3], "test")
    now = {path.name: path.stat().st_mtime_ns for path in records.glob("*.run")}
    assert len(now) == 3 and now | times == now
    monkeypatch.setenv("KADAM_CLUSTER", "tcp://127.0.0.1:9")
    assert len(sweep.sweep(quadratic_map, RUNS[:3], "test")) == 3  # what is finished needs no cluster


def test_a_cluster_of_one_worker_computes_there_and_not_here(records, two_workers, monkeypatch):
    assert two_workers.ask(lambda dask_scheduler: len(dask_scheduler.workers)) == 1
    monkeypatch.setattr(cluster, "get_worker", lambda: pytest.fail("called in this process"))
    assert len(sweep.sweep(quadratic_map, RUNS[:2], "test")) == 2


@pytest.mark.parametrize("name", ["version of the code", "torch", "python", "number of threads", "OMP_NUM_THREADS"])
def test_a_worker_that_is_not_like_this_process_is_refused(records, monkeypatch, name):
    expected = cluster._like_here()
    monkeypatch.setattr(cluster, "_like_here", lambda: {**expected, name: "changed"})
    refused(f"worker tcp://.*: {name} is {expected[name]} \\(must be changed\\)")


def test_a_late_worker_of_another_version_is_refused(records, monkeypatch):
    monkeypatch.setattr(cluster, "_check", lambda *_: None)  # as if it had come after that
    monkeypatch.setattr(provenance, "project_version", lambda: "changed")
    refused("worker that joined late: version of the code is")


@pytest.mark.parametrize("address", ["127.0.0.1:8786", "tcp://", "tcp://127.0.0.1", "http://127.0.0.1:8786", "yes"])
def test_a_bad_address_is_refused(monkeypatch, address):
    monkeypatch.setenv("KADAM_CLUSTER", address)
    refused("KADAM_CLUSTER: .* \\(must be the address of a Dask scheduler, tcp://host:port\\)")


def test_an_address_where_nothing_answers_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.5)
    monkeypatch.setenv("KADAM_CLUSTER", "tcp://127.0.0.1:9")
    refused("no Dask scheduler answers at tcp://127.0.0.1:9")


def when_computing(two_workers, act):
    """Calls ``act`` once a worker has something to do."""

    def watch():
        until(
            lambda: two_workers.ask(lambda dask_scheduler: any(w.processing for w in dask_scheduler.workers.values()))
        )
        act()

    threading.Thread(target=watch, daemon=True).start()


ENDLESS = [{**RUNS[0], "steps": 10**6}]


def test_a_scheduler_that_cannot_import_the_project_is_refused(records, tmp_path, monkeypatch):
    # the environment of this checkout can import it from everywhere: start one without that
    elsewhere = (
        f"import sys; sys.path.remove({str(files.ROOT)!r}); from distributed.cli.dask_scheduler import main; main()"
    )
    command = [sys.executable, "-c", elsewhere, "--host", "127.0.0.1", "--port", "0"]
    where = tmp_path / "scheduler.json"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", where], cwd=tmp_path, **silent) as process:
        until(lambda: Cluster.written(where))
        monkeypatch.setenv("KADAM_CLUSTER", json.loads(where.read_text())["address"])
        refused("the scheduler cannot import this project .*lab.*; start it in this checkout: .venv/bin/dask scheduler")
        process.kill()


def test_a_run_that_kills_its_workers_is_given_up(records, two_workers):
    def allow(failures):
        two_workers.ask(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", failures))

    allow(0)
    when_computing(two_workers, two_workers.workers[-1].kill)
    refused("all those workers died while running it.*The finished runs are kept", ENDLESS)
    allow(3)
    two_workers.workers.append(two_workers.start_worker())
    until(lambda: two_workers.ask(lambda dask_scheduler: len(dask_scheduler.workers)) == 1)


def test_a_cluster_whose_last_worker_dies_is_given_up(records, two_workers, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    when_computing(two_workers, two_workers.workers[-1].kill)
    refused("no worker is left; the finished runs are kept", ENDLESS)
    refused("has no workers; start some")


def test_a_cluster_whose_scheduler_dies_is_given_up(records, two_workers):
    two_workers.workers.append(two_workers.start_worker())
    until(lambda: two_workers.ask(lambda dask_scheduler: len(dask_scheduler.workers)) == 1)
    when_computing(two_workers, two_workers.scheduler.kill)
    refused("connection to the scheduler was lost; the finished runs are kept", ENDLESS)
