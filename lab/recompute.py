"""Compute runs with the code of one checkout, with or without a look at which lines they execute.

    python lab/recompute.py ROOT ORDER.json RESULT

A script of its own, so that one and the same can drive another checkout than the one that it lies in: ``ROOT`` comes
first on the path. ``ORDER.json`` lists runs, ``{"run": name, "arguments": {...}}``. Into the folder ``RESULT`` come
``arrays.npz`` (``0/error`` is of the first run), ``codes.json`` (fingerprint and place of every run named) and
``lines.json`` (by file, the lines of the statements, of those that were not executed, of the lambdas that were called,
and from which line execution went on to which).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any


def main(root: Path, order: Path, result: Path) -> None:
    """Compute what ``order`` lists."""
    import coverage

    sys.path[:] = [str(root), *(part for part in sys.path if Path(part or ".").resolve() != Path(__file__).parent)]
    os.environ["KADAM_CACHE"], os.environ["KADAM_RECORDS"] = "off", "off"
    watch = coverage.Coverage(
        data_file=None, config_file=False, branch=True, source=[str(root / "kadam"), str(root / "lab")]
    )
    watch.clear_exclude()  # a comment excuses nothing
    watch.start()  # before the project is imported: constants are lines too
    import numpy as np
    import torch

    torch.set_num_threads(1)
    from lab import experiments, files, records

    if root != files.ROOT:
        raise SystemExit(f"recompute: imported {files.ROOT} (must be {root})")
    files.CACHE = result / "cache"  # nothing that was computed before
    known = experiments.all_runs()
    arrays: dict[str, Any] = {}
    wanted: list[dict[str, Any]] = json.loads(order.read_text(encoding="utf-8"))
    called: set[tuple[str, int]] = set()
    entered: dict[str, set[tuple[str, int]]] = {}

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            place = frame.f_code.co_filename, frame.f_code.co_firstlineno
            now.add(place)
            if frame.f_code.co_name == "<lambda>":
                called.add(place)

    for i, entry in enumerate(wanted):
        now = entered.setdefault(entry["run"], set())
        sys.setprofile(look)
        found = known[entry["run"]].function(**records.unplain(entry["arguments"]))
        arrays |= {f"{i}/{name}": np.asarray(value) for name, value in found.items()}
        sys.setprofile(None)
    watch.stop()
    codes = {
        name: {
            "code": records.closure(name).fingerprint,
            "module": known[name].function.__module__,
            "function": known[name].function.__qualname__,
        }
        for name in sorted({entry["run"] for entry in wanted})
    }
    lines = {}
    for file in watch.get_data().measured_files():
        _, statements, _, missing, _ = watch.analysis2(file)
        lambdas = sorted(line for place, line in called if place == file)
        lines[str(Path(file).relative_to(root))] = {
            "statements": statements,
            "missing": missing,
            "lambdas": lambdas,
            "entered": {run: sorted(line for place, line in of if place == file) for run, of in entered.items()},
            "steps": watch.get_data().arcs(file) or [],
        }
    np.savez(result / "arrays.npz", **arrays)
    (result / "codes.json").write_text(json.dumps(codes), encoding="utf-8")
    (result / "lines.json").write_text(json.dumps(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(given).resolve() for given in sys.argv[1:4]))
