"""Time of one optimizer step: KAdam's implementations against torch.optim.AdamW(fused=True), in one interleaved run.

    python benchmarks/step.py [--quick] [--device cuda] [--out results/benchmarks]

Beside every timed step of an arm, before or after it in turns, one of fused AdamW is timed; an arm's figure is the
median of the ratios of these pairs, with the range of its middle half. Where the tensors lie in memory makes a
difference of some ten per cent, so both are made anew several times, each first in turns. A second fused AdamW is
the control. The bandwidth is that of an in-place multiplication, measured in the same run: a step of k stages has to
move (3 + 4k) words an element. Every timed step is checked to have moved every parameter, to finite values. Writes
step-<device>.json and step-<device>.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kadam import KAdam, cpu_kernel
from lab.files import ROOT
from lab.provenance import commit

KS = (1, 2, 4, 10)
PLACEMENTS = 4


def transformer(vocabulary: int, context: int, layers: int, width: int) -> list[tuple[int, ...]]:
    """Shapes of a transformer's parameters."""
    layer = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,),
             (4 * width, width), (4 * width,), (width, 4 * width), (width,)]  # fmt: skip
    return [(vocabulary, width), (context, width), *(layer * layers), (width,), (width,)]


SETTINGS: dict[str, dict[str, list[tuple[int, ...]]]] = {
    "cpu": {"one large tensor": [(1 << 24,)], "small transformer": transformer(65, 64, 4, 128)},
    "cuda": {"GPT-2": transformer(50257, 1024, 12, 768), "small transformer": transformer(65, 64, 4, 128)},
}


class Arm:
    """An optimizer over its own tensors; ``step`` times one step and checks it."""

    def __init__(self, make: Callable[[list[Tensor]], torch.optim.Optimizer], shapes: list[Any], device: str) -> None:
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
        self.grads = [torch.randn_like(param) * 1e-2 for param in self.params]
        self.device = device
        self.optimizer = make(self.params)

    def step(self) -> float:
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        before = [param.detach().flatten()[:1].clone() for param in self.params]
        wait(self.device)
        start = time.perf_counter()
        self.optimizer.step()
        wait(self.device)
        seconds = time.perf_counter() - start
        for param, old in zip(self.params, before, strict=True):
            new = param.detach().flatten()[:1]
            assert new.isfinite() and new != old, "a timed step has not moved a parameter, or has spoilt it"
        return seconds


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: str) -> float:
    """Bytes a second of x *= c in place, which reads and writes every element: the best of 20."""
    x = torch.ones(1 << (24 if device == "cpu" else 28), device=device)
    times = []
    for _ in range(20):
        wait(device)
        start = time.perf_counter()
        x.mul_(1.0000001)
        wait(device)
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times)


def built(step: Callable[[], float], yes: bool) -> Callable[[], float]:
    """``step`` with or without the C++ kernel."""

    def run() -> float:
        was, cpu_kernel._built = cpu_kernel._built, yes
        try:
            return step()
        finally:
            cpu_kernel._built = was

    return run


def fused_adamw(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, fused=True)


def compare(shapes: list[Any], device: str, rounds: int, kernel: bool) -> dict[str, Any]:
    """Median seconds of fused AdamW, and per implementation and k its time over that of AdamW."""
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    base: list[float] = []
    rows = []
    kinds: dict[str, dict[str, Any]] = {
        "fused": {"fused": True},
        "foreach": {"foreach": True},
        "loop": {"foreach": False},
    }
    if device == "cpu":
        kinds = {"default": {}, **({"built": {}} if kernel else {}), **{n: kinds[n] for n in ("foreach", "loop")}}
    makers: dict[tuple[int, str], Callable[[list[Tensor]], torch.optim.Optimizer]]
    makers = {(1, "AdamW again"): fused_adamw}
    for k in KS:
        for name, arguments in kinds.items():
            makers[k, name] = functools.partial(KAdam, k=k, **arguments)
    for (k, name), make in makers.items():
        ratios, seconds = [], []
        for placement in range(PLACEMENTS):
            order = [fused_adamw, make][:: -1 if placement % 2 else 1]
            made = [Arm(maker, shapes, device) for maker in order][:: -1 if placement % 2 else 1]
            adamw, arm = made[0].step, made[1].step
            step = built(arm, name == "built") if device == "cpu" else arm
            for i in range(2 + max(2, rounds // (5 if name in ("foreach", "loop") else 1) // PLACEMENTS)):
                # in turns: the second of a pair is slower by some per cent, whatever it is
                if i % 2:
                    reference, own = adamw(), step()
                else:
                    own, reference = step(), adamw()
                if i >= 2:  # states are made and caches filled
                    base.append(reference)
                    seconds.append(own)
                    ratios.append(own / reference)
            del made, adamw, arm, step
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"k": k, "implementation": name, "ratio": middle, "quartiles": [low, high],
                     "seconds": statistics.median(seconds), "rounds": len(ratios),
                     "bytes": 4 * (3 + 4 * k) * elements})  # fmt: skip
        print(f"  k = {k:2d} {name:8s} {middle:7.2f} [{low:.2f}, {high:.2f}]", flush=True)
    return {"tensors": len(shapes), "elements": elements, "adamw_seconds": statistics.median(base), "rows": rows}


def table(title: str, result: dict[str, Any], bytes_a_second: float) -> str:
    """The ratios as Markdown, with the share of the bandwidth in brackets."""
    names = list(dict.fromkeys(row["implementation"] for row in result["rows"]))
    lines = [
        f"**{title}**: {result['tensors']} tensors, {result['elements'] / 1e6:.1f} M parameters, "
        f"fused AdamW {1e3 * result['adamw_seconds']:.3g} ms\n",
        "| | " + " | ".join(f"k = {k}" for k in KS) + " |",
        "|---|" + "---|" * len(KS),
        "| ideal traffic | " + " | ".join(f"{(3 + 4 * k) / 7:.2f}" for k in KS) + " |",
    ]
    for name in names:
        cells = [
            f"{row['ratio']:.2f} [{row['quartiles'][0]:.2f}, {row['quartiles'][1]:.2f}] "
            f"({row['bytes'] / row['seconds'] / bytes_a_second:.0%})"
            for row in result["rows"]
            if row["implementation"] == name
        ]
        cells += ["–"] * (len(KS) - len(cells))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and no C++ kernel")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    device, rounds = options.device, 5 if options.quick else 40
    kernel = device == "cpu" and not options.quick
    build = None
    if kernel:
        start = time.perf_counter()
        cpu_kernel.build()
        build = time.perf_counter() - start
    speed = bandwidth(device)
    results, parts = {}, []
    for name, shapes in SETTINGS[device].items():
        print(name, flush=True)
        results[name] = compare(shapes, device, rounds * (1 if name != "small transformer" else 10), kernel)
        parts.append(table(name, results[name], speed))
    machine = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    about = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit(), "machine": machine,
             "bandwidth": speed, "quick": options.quick, "build_seconds": build}  # fmt: skip
    head = (
        "Time of a step over that of `torch.optim.AdamW(fused=True)`, median [middle half], and in brackets the share "
        f"of the in-place bandwidth, {speed / 1e9:.1f} GB/s. {machine}, torch {about['torch']}, "
        f"commit {about['commit']}. Written by `benchmarks/step.py`."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"step-{device}.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    (options.out / f"step-{device}.md").write_text("\n\n".join([head, *parts]) + "\n")
    print((options.out / f"step-{device}.md").read_text())


if __name__ == "__main__":
    main()
