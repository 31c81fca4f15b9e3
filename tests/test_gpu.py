"""The Triton kernel: on a CUDA device where there is one, else under Triton's interpreter, which shows no speed."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import interpreted

import kadam.optimizer
from kadam import KAdam

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="the kernel needs Triton, which has no wheel for this system")
with interpreted():
    from kadam import gpu

SHAPES = [(3, 5), (2 * gpu.BLOCK + 77,), (gpu.BLOCK,), (1,), (0,), (), (2, 3, 4, 5)]


@pytest.fixture
def kernel(monkeypatch):
    """The kernel takes what ``fused=True`` is asked for, on a CPU too."""
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kadam.optimizer, "fused", gpu.fused)


def stepped(engine, dtype, steps=4, **arguments):
    """Parameters and moments after some steps by ``engine``."""
    torch.manual_seed(0)
    params = [torch.randn(shape, dtype=dtype, device=DEVICE).requires_grad_() for shape in SHAPES]
    optimizer = KAdam(params, **{"lr": 0.01, **arguments}, **engine)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    return params, optimizer


def close(a, b, **tolerance):
    for p, q in zip(a[0], b[0], strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        for name, value in a[1].state[p].items():
            torch.testing.assert_close(value, b[1].state[q][name], **tolerance)


@pytest.mark.parametrize("k", [1, 2, 4, 10])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_is_the_reference(kernel, k, dtype, tolerance):
    tolerance *= k  # every stage adds its roundings
    reference = stepped({"foreach": False}, dtype, k=k)
    close(stepped({"fused": True}, dtype, k=k), reference, rtol=tolerance, atol=tolerance)
    with pytest.raises(AssertionError):  # the comparison sees a wrong rate
        close(stepped({"fused": True}, dtype, k=k, betas=(0.9, 0.9989)), reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_half_precision_is_computed_in_float32(kernel, k, dtype):
    """After one step: Triton's interpreter cuts bfloat16 off where a GPU rounds, so one unit in the last place."""
    torch.manual_seed(0)
    params = [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in SHAPES]
    wide = [param.detach().float().requires_grad_() for param in params]
    for optimizer in (KAdam(params, k=k, lr=0.01, fused=True), KAdam(wide, k=k, lr=0.01, foreach=False)):
        torch.manual_seed(1)
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.randn(param.shape, device=DEVICE).to(dtype).to(param.dtype)
        optimizer.step()
    unit = torch.finfo(dtype).eps
    for param, expected in zip(params, wide, strict=True):
        torch.testing.assert_close(param.float(), expected.detach(), rtol=unit, atol=unit / 100)


@pytest.mark.parametrize(
    "arguments",
    [{"maximize": True}, {"eps": 0.0}, {"weight_decay": 0.3}, {"lr": torch.tensor(0.02)}, {"schedule": "exp"},
     {"betas": (0.0, 0.0), "eps": 0.0}, {"state_dtype": torch.float64}],
    ids=str,
)  # fmt: skip
def test_arguments(kernel, arguments):
    close(
        stepped({"fused": True}, torch.float32, **arguments),
        stepped({"foreach": False}, torch.float32, **arguments),
        rtol=2e-6, atol=2e-6,
    )  # fmt: skip


def test_zero_gradients_and_bad_ones(kernel):
    params, optimizer = stepped({"fused": True}, torch.float32, 0, eps=0.0, weight_decay=0.0)
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    params[1].grad[5] = float("nan")
    optimizer.step()
    assert params[1][5].isnan()
    params[1].data[5] = before[1][5]
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_a_scaler_s_findings(kernel):
    """Scaled gradients are divided and left as they are; with an infinity found, nothing changes, not the count."""
    plain, optimizer = stepped({"fused": True}, torch.float32, 2)
    scaled, other = copy.deepcopy((plain, optimizer))
    gradients = [torch.randn_like(param) for param in plain]
    for param, twin, gradient in zip(plain, scaled, gradients, strict=True):
        param.grad, twin.grad = gradient.clone(), gradient * 8
    optimizer.step()
    other.grad_scale, other.found_inf = torch.tensor(8.0, device=DEVICE), torch.tensor(1.0, device=DEVICE)
    before = copy.deepcopy(scaled)
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(scaled, before, strict=True))
    assert all(other.state[param]["step"] == 2 for param in scaled)
    other.found_inf.zero_()
    other.step()
    for param, twin, gradient in zip(plain, scaled, gradients, strict=True):
        torch.testing.assert_close(param, twin)
        assert torch.equal(twin.grad, gradient * 8)


def test_a_transposed_gradient_takes_the_loop(kernel):
    params = [torch.randn(4, 6, device=DEVICE).requires_grad_() for _ in range(2)]
    other = copy.deepcopy(params)
    for ours, engine in ((params, {"fused": True}), (other, {"foreach": False})):
        torch.manual_seed(2)
        optimizer = KAdam(ours, **engine)
        for param in ours:
            param.grad = torch.randn(6, 4, device=DEVICE).t()
        optimizer.step()
    torch.testing.assert_close(params, other)


def test_tensors_of_another_layout_obey_the_scaler(kernel):
    params = [torch.ones(4, 6, device=DEVICE).requires_grad_() for _ in range(2)]
    optimizer = KAdam(params, fused=True)
    params[0].grad, params[1].grad = torch.ones(6, 4, device=DEVICE).t() * 8, torch.ones(4, 6, device=DEVICE) * 8
    params[0].grad[0, 0] = float("inf")
    optimizer.found_inf, optimizer.grad_scale = torch.tensor(1.0, device=DEVICE), torch.tensor(8.0, device=DEVICE)
    optimizer.step()
    assert all((param == 1).all() for param in params)
    params[0].grad[0, 0] = 8.0
    optimizer.found_inf.zero_()
    optimizer.step()
    torch.testing.assert_close(params[0], params[1])
    assert all(optimizer.state[param]["exp_avg"].max() < 1 for param in params)


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from kadam import KAdam
theta = torch.ones(2, requires_grad=True)
theta.grad = torch.ones(2)
KAdam([theta], k=3).step()
from kadam.optimizer import _gpu_kernel
try:
    _gpu_kernel()
except RuntimeError as error:
    print(theta.max().item() < 1, error)
"""


def test_without_triton_a_cpu_works_and_a_gpu_says_what_is_missing():
    out = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert out.stdout.startswith("True `fused=True` on CUDA requires Triton"), out.stderr


COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kadam import gpu
kernel = gpu._kernel
integers = ("addresses", "sizes", "owners", "starts")
signature = {name: "*i64" for name in integers} | {name: "*fp64" for name in ("numbers", "lr_at")}
signature |= {name: "*fp32" for name in ("scale_at", "found_inf_at")}
for k, param, flag in ((1, "float32", False), (2, "bfloat16", True), (10, "float32", True), (2, "float64", False)):
    dtype = gpu._TYPES[getattr(torch, param)]
    compute = gpu._TYPES[torch.float64 if param == "float64" else torch.float32]
    constants = dict(K=k, PARAM=dtype, GRAD=dtype, STATE=dtype, COMPUTE=compute, MAXIMIZE=flag, SCALED=flag,
                     CHECKED=flag, ALIGNED=True, BLOCK=gpu.BLOCK)
    names = kernel.arg_names
    source = ASTSource(kernel, {n: signature.get(n, "constexpr") for n in names},
                       {(names.index(n),): value for n, value in constants.items()})
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    loads = [line for line in code.splitlines() if "ld.global" in line]
    print(k, param, sum(".v4." in line or ".v2.b64" in line for line in loads))
"""


def test_compiles_for_a_gpu_with_accesses_of_16_bytes(tmp_path):
    """By Triton's real compiler, which needs no GPU."""
    environment = {"PATH": os.environ["PATH"], "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert out.returncode == 0, out.stderr[-2000:]
    wide = {tuple(line.split()[:2]): int(line.split()[2]) for line in out.stdout.splitlines()}
    assert set(wide) == {("1", "float32"), ("2", "bfloat16"), ("10", "float32"), ("2", "float64")}
    assert all(wide.values()), wide
