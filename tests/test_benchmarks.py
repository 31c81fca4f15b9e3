"""The benchmarks' bookkeeping, on tiny tensors; their figures are taken by `make bench`."""

import importlib.util
import subprocess
import sys
import time

import pytest
import torch

from lab.files import ROOT


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def step():
    return loaded("step")


@pytest.fixture(scope="module")
def ensemble():
    return loaded("ensemble")


@pytest.fixture(scope="module")
def sweep():
    return loaded("sweep")


def test_every_k_and_implementation_is_compared(step):
    result = step.compare([(8,), (3, 4)], "cpu", 3, False)
    assert (result["tensors"], result["elements"]) == (2, 20)
    control, *rows = result["rows"]
    assert (control["k"], control["implementation"]) == (1, "AdamW again")
    assert [(row["k"], row["implementation"]) for row in rows] == [
        (k, name) for k in (1, 2, 4, 10) for name in ("default", "foreach", "loop")
    ]
    assert [row["bytes"] for row in rows[::3]] == [4 * 20 * words for words in (7, 11, 19, 43)]
    text = step.table("tiny", result, 1e9)
    assert "| ideal traffic | 1.00 | 1.57 | 2.71 | 6.14 |" in text


def test_a_step_that_moves_nothing_is_found(step):
    class Lazy(torch.optim.SGD):
        def step(self):
            pass

    with pytest.raises(AssertionError, match="has not moved a parameter"):
        step.Arm(lambda params: Lazy(params, lr=1.0), [(4,)], "cpu").step()


def test_the_settings_have_the_sizes_they_claim(step):
    sizes = {
        (device, name): (len(shapes), round(sum(torch.Size(shape).numel() for shape in shapes) / 1e6, 1))
        for device, settings in step.SETTINGS.items()
        for name, shapes in settings.items()
    }
    assert sizes[("cpu", "one large tensor")] == (1, 16.8)
    assert sizes[("cpu", "small transformer")] == (52, 0.8)
    assert sizes[("cuda", "GPT-2")] == (148, 124.4)


def test_ensembles_are_compared_with_every_implementation(ensemble):
    for problem, count, size in ((ensemble.Quadratic(2, 5), 12, 10), (ensemble.Perceptron(3, 4), 3, 2698)):
        result = ensemble.compare(problem, rounds=2, singles=2)
        assert (result["members"], result["parameters"], result["steps"]) == (count, size, problem.steps)
        assert set(result["times faster"]) == {"default", "foreach", "fused"}
        text = ensemble.table("tiny", result)
        assert text.startswith(f"**tiny**: {count} members, {size:,} parameters") and text.count("|") == 5 * 5


def test_an_ensemble_that_does_something_else_is_found(ensemble):
    problem = ensemble.Quadratic(2, 5)
    problem.check(11, 5)
    problem.alone = lambda i, adam: (0.0, [torch.nn.Parameter(problem.first + 1)])
    with pytest.raises(AssertionError, match="not the same run"):
        problem.check(11, 5)


def test_the_time_of_child_processes_is_counted(sweep, monkeypatch):
    before = sweep.cpu_of_children()
    burning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        end = time.monotonic() + 20
        while sweep.cpu_of_children() < before + 0.3:
            assert time.monotonic() < end
        monkeypatch.setattr(sweep.sweep, "sweep", lambda *_: time.sleep(0.5))
        burning.kill(), burning.wait()
        assert sweep.timed([], 1)["busy"] < 0.2
    finally:
        burning.kill(), idle.kill(), burning.wait(), idle.wait()


def test_the_sweep_is_told_in_a_table(sweep, monkeypatch):
    monkeypatch.setattr(sweep, "timed", lambda runs, cores: {"wall": 2.0, "cpu": 3.6, "busy": 0.9, "waiting": 0.05})
    monkeypatch.setattr(sweep, "convnet_on_mnist1d", lambda **run: time.sleep(0.01))
    text = sweep.table(4, 2, sweep.measure(4, 1, 2))
    assert text.count("| 2.0 | 3.6 | 90 % | 5 % |") == 2 and "ms each" in text
