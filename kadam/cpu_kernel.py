"""A C++ kernel for k >= 2 on a CPU, which has to be built: opt in by ``kadam.cpu_kernel.build()``.

It takes every block of 16,384 elements through all stages while the processor has it in its cache. What it gains over
the default, and what it costs to build, is in ``results/benchmarks/step-cpu.md``.
"""

from __future__ import annotations

import platform
import zlib
from pathlib import Path

import torch

from kadam.engines import Work

DTYPES = (torch.float32, torch.float64)

_built = False


def build() -> None:
    """Compile the kernel, about a minute on the first call on a machine; later ones find it in torch's cache.

    From then on every fused step of this process takes it, on a CPU, for k >= 2, in float32 and float64. The
    results differ from the default's by rounding.

    Raises:
        RuntimeError: there is no C++ compiler or no ninja, or the compilation failed, as it does where torch's own
            path holds a space. The default goes on working.
    """
    global _built
    from torch.utils import cpp_extension

    # no contraction of a * b + c: the result is that of the formula's own roundings, on every machine
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
    flags += ["-fopenmp"]  # not for the linker: torch has loaded its own OpenMP, and two would fight for the cores
    source = Path(__file__).with_suffix(".cpp")
    name = f"kadam_cpu_kernel_{zlib.crc32(_processor().encode()):08x}"  # a shared cache may serve other processors
    try:
        cpp_extension.load(name, [str(source)], extra_cflags=flags, is_python_module=False)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(f"the C++ kernel could not be built (it needs a C++ compiler and ninja): {error}") from error
    _built = True


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def takes(work: Work) -> bool:
    """Whether the kernel is built and fits: two stages or more, and one dtype that it knows."""
    dtypes = {work.params[0].dtype, work.grads[0].dtype, work.firsts[0][0].dtype}
    return _built and len(work.stages) > 1 and len(dtypes) == 1 and work.params[0].dtype in DTYPES


def step(work: Work) -> None:
    """One step for tensors without gaps, whose step counts have been advanced already."""
    columns = work.columns()
    torch.ops.kadam.step(
        columns[0], columns[1], [tensor for column in columns[2:] for tensor in column],
        [float(step) for step in work.steps], [float(gamma) for gamma, _ in work.stages],
        [float(beta) for _, beta in work.stages], float(work.lr), float(work.weight_decay), work.eps, work.maximize,
    )  # fmt: skip
