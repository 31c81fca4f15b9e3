"""How busy a sweep of many small runs keeps the cores.

    python benchmarks/sweep.py [--runs 64] [--steps 200] [--out results/benchmarks]

Plain training of a small network, each run a task of its own, with records on disk, one process a core. *Busy* is the
user and system time of the processes over wall time x cores: in a first sweep, which starts the processes and imports
torch in them, and in a second, of other seeds, which finds them ready. The second's runs are also made one after the
other, without a sweep: the time that they take, over that of the sweep, is its gain. Anything else that runs on the
machine falsifies that; on Linux the time for which the processes were ready and others had the core is told beside it,
so that the rest is what the sweep itself lost. Writes sweep.json and sweep.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch

from lab import files, sweep
from lab.experiments.k_adam import convnet_on_mnist1d
from lab.provenance import commit


def cpu_of_children() -> float:
    """User and system time of all processes below this one that are alive, seconds."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def waiting_of_children() -> float:
    """Time for which the main threads of these processes were ready but had no core, s; 0 if the system hides it."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        statistics = Path(f"/proc/{process.pid}/schedstat")
        total += int(statistics.read_text().split()[1]) / 1e9 if statistics.exists() else 0.0
    return total


def timed(runs: list[dict[str, Any]], cores: int) -> dict[str, float]:
    """Wall time of a sweep, CPU time of its processes, and which shares of the cores they used and waited for."""
    cpu, waiting, wall = cpu_of_children(), waiting_of_children(), time.perf_counter()
    sweep.sweep(convnet_on_mnist1d, runs, "benchmark")
    wall = time.perf_counter() - wall
    cpu, waiting = cpu_of_children() - cpu, waiting_of_children() - waiting
    return {"wall": wall, "cpu": cpu, "busy": cpu / (wall * cores), "waiting": waiting / (wall * cores)}


def measure(count: int, steps: int, cores: int) -> dict[str, Any]:
    """Both sweeps, and the second's runs one after the other."""
    member = dict(k=2, lr=1e-3)
    runs = [dict(members=[member], seed=seed, steps=steps, every=steps) for seed in range(2 * count)]
    first, second = runs[:count], runs[count:]
    found: dict[str, Any] = {"with the start of the processes": timed(first, cores)}
    found["processes ready"] = timed(second, cores)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    for run in second:
        convnet_on_mnist1d(**run)
    alone = time.perf_counter() - begin
    return {"sweeps": found, "alone": alone, "gain": alone / found["processes ready"]["wall"]}


def table(count: int, cores: int, result: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {it['wall']:.1f} | {it['cpu']:.1f} | {100 * it['busy']:.0f} % | {100 * it['waiting']:.0f} % |"
        for name, it in result["sweeps"].items()
    ]
    head = [
        f"| sweep of {count} runs | wall time, s | CPU time, s | {cores} cores busy | taken by others |",
        "|---|---|---|---|---|",
    ]
    last = (
        f"\n\nOne after the other, without a sweep, the runs take {result['alone']:.1f} s,"
        f" {1e3 * result['alone'] / count:.0f} ms each: {result['gain']:.2f} times the sweep."
    )
    return "\n".join([*head, *rows]) + last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=files.RESULTS / "benchmarks")
    options = parser.parse_args()
    cores = joblib.cpu_count()
    os.environ.update(KADAM_CACHE="on", KADAM_WORKERS=str(cores), KADAM_PROGRESS="off")
    os.environ.pop("KADAM_CLUSTER", None)
    with tempfile.TemporaryDirectory() as folder:
        files.RUNS = Path(folder)
        result = measure(options.runs, options.steps, cores)
    about = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit(),
             "machine": f"{platform.machine()}, {cores} cores", "runs": options.runs,
             "steps": options.steps}  # fmt: skip
    head = (
        f"How busy a sweep of small runs keeps the cores. {about['machine']}, torch {about['torch']}, commit"
        f" {about['commit']}. Written by `benchmarks/sweep.py`."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sweep.json").write_text(json.dumps({**about, **result}, indent=1) + "\n")
    (options.out / "sweep.md").write_text(f"{head}\n\n{table(options.runs, cores, result)}\n")
    print((options.out / "sweep.md").read_text())


if __name__ == "__main__":
    main()
