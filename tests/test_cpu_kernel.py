"""The C++ kernel that a user may build, against the default. Skipped where there is no compiler."""

import shutil
import subprocess
import sys

import pytest
import torch

from kadam import KAdam, cpu_kernel

needs_compiler = pytest.mark.skipif(
    not (shutil.which("ninja") and (shutil.which("c++") or shutil.which("g++"))) or " " in sys.prefix,
    reason="needs a C++ compiler and ninja, and torch's extension builder a path without a space",
)
SHAPES = [(3, 5), (16384,), (2 * 16384 + 3,), (1,), (0,), ()]  # the kernel's block has 16,384 elements


def stepped(dtype, **arguments):
    torch.manual_seed(0)
    params = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in SHAPES]
    optimizer = KAdam(params, lr=0.01, **arguments)
    for step in range(5):
        for param in params:
            param.grad = torch.zeros_like(param) if step == 0 else torch.randn_like(param)
        optimizer.step()
    return [*params, *(value for state in optimizer.state.values() for value in state.values())]


@pytest.fixture(scope="module")
def built():
    yield cpu_kernel.build()
    cpu_kernel._built = False


@needs_compiler
@pytest.mark.parametrize(
    "arguments", [{}, {"k": 4, "maximize": True}, {"k": 3, "eps": 0.0, "weight_decay": 0.2}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_default_to_rounding(built, dtype, arguments, monkeypatch):
    ours = stepped(dtype, **arguments)
    monkeypatch.setattr(cpu_kernel, "_built", False)
    default = stepped(dtype, **arguments)
    unit = torch.finfo(dtype).eps
    for a, b in zip(ours, default, strict=True):
        torch.testing.assert_close(a, b, rtol=20 * unit, atol=20 * unit)
    assert any(not torch.equal(a, b) for a, b in zip(ours, default, strict=True))  # it is not the default itself


@needs_compiler
def test_one_stage_stays_torch_s_own(built, monkeypatch):
    ours = stepped(torch.float32, k=1)
    monkeypatch.setattr(cpu_kernel, "_built", False)
    assert all(map(torch.equal, ours, stepped(torch.float32, k=1)))


def test_without_a_compiler_the_error_says_what_is_missing(tmp_path):
    code = "from kadam import cpu_kernel\ntry: cpu_kernel.build()\nexcept RuntimeError as error: print(error)"
    environment = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path), "HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "it needs a C++ compiler and ninja" in out.stdout, out.stderr
