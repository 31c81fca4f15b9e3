"""Runs of ``notebooks/05_k_adam.ipynb``: k-Adam and baselines on several tasks, and why they differ."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import schedulefree  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from kadam import ensemble, update
from kadam.flow import Flow
from kadam.optimizer import KAdam, moments_in
from kadam.stages import make_stages
from kadam.update import Stage
from lab import data, problems
from lab.experiments import run
from lab.models import ConvNet, ImageConvNet, Perceptron, Transformer
from lab.together import trained
from lab.training import accuracy, cross_entropy, shuffled_batches, text_parts, train

Array = NDArray[np.float64]
Settings = dict[str, Any]
"""Arguments of ``KAdam`` that make an arm: ``k``, and ``schedule`` or ``betas``."""


# --- the tasks: a group of runs with one k and one seed is trained together ---


def _update_rms(member: ensemble.Member) -> Tensor:
    return torch.cat([u.flatten() for u in member.updates.values()]).square().mean().sqrt()


_trained = partial(trained, on_test={"test_accuracy": accuracy}, observe={"update_rms": _update_rms})


def _slow(members: Sequence[Settings]) -> list[Settings]:
    """Those at small learning rates: at large ones two machines soon part."""
    return [member for member in members if member["lr"] <= 1e-3]


DIVERGED = {"members": [{"k": 1, "lr": 1e30}, {"k": 1, "lr": 1e30}]}  # before the first look


@run("k_adam.convnet", data="mnist1d", short={"steps": 4, "every": 2}, corners=[DIVERGED])
def convnet_on_mnist1d(
    members: Sequence[Settings], seed: int, steps: int, every: int, batch: int = 50, channels: int = 16
) -> dict[str, Any]:
    """k-Adam without weight decay for all ``members`` together, on a convolutional network over MNIST-1D.

    A member is a dict of ``KAdam``'s arguments. All start from the same weights and see the same batches. Returns
    ``validation_loss``, ``test_loss``, ``test_accuracy`` and ``update_rms`` (over all coordinates), each (members,
    evaluations), NaN from where a run diverged; the ``steps`` of the evaluations; ``diverged_at``, (members,).
    """
    return _trained(lambda: ConvNet(channels), data.mnist1d(), members, seed, steps, every, batch)


@run("k_adam.perceptron", data="mnist1d", short={"steps": 4, "every": 2, "members": _slow}, corners=[DIVERGED])
def perceptron_on_mnist1d(
    members: Sequence[Settings], seed: int, steps: int, every: int, batch: int = 50, norm: str = "none"
) -> dict[str, Any]:
    """The same for a perceptron with two hidden layers, without or with LayerNorm."""
    return _trained(lambda: Perceptron(norm=norm), data.mnist1d(), members, seed, steps, every, batch)


@run("k_adam.transformer", data="words", short={"steps": 4, "every": 2}, corners=[DIVERGED])
def transformer_on_words(
    members: Sequence[Settings], seed: int, steps: int, every: int, batch: int = 4, context: int = 32,
    vocabulary: int = 500,
) -> dict[str, Any]:  # fmt: skip
    """The same for page 03's transformer: two layers, on the words, all but ``vocabulary`` - 1 of which are one."""
    parts = text_parts(data.words().tokens.clamp(max=vocabulary - 1), context)
    return _trained(lambda: Transformer(vocabulary, context), parts, members, seed, steps, every, batch)


@run("k_adam.cifar10", data="cifar10", short={"steps": 4, "every": 2})
def convnet_on_cifar10(
    members: Sequence[Settings], seed: int, steps: int, every: int, batch: int = 128, channels: int = 32
) -> dict[str, Any]:
    """The same for the paper's own setting, a convolutional network over CIFAR-10; 2,000 images of each held-out
    part."""
    parts = data.cifar10()
    fewer = data.Labelled(parts.x, parts.y, *(half[:2000] for half in parts[2:]))
    return _trained(lambda: ImageConvNet(channels), fewer, members, seed, steps, every, batch)


def groups(arms: Mapping[str, Settings], lrs: Sequence[float], seeds: Sequence[int], **common: Any) -> list[Settings]:
    """Arguments for a sweep of every arm x lr x seed: one call for each k and seed, since equal k train together."""
    ks = sorted({arm["k"] for arm in arms.values()}, reverse=True)  # the longest first
    return [
        dict(members=[{**arm, "lr": lr} for arm in arms.values() if arm["k"] == k for lr in lrs], seed=seed, **common)
        for k in ks
        for seed in seeds
    ]


def collected(
    results: Sequence[dict[str, Any]], arms: Mapping[str, Settings], lrs: Sequence[float], seeds: Sequence[int],
    name: str,
) -> Array:  # fmt: skip
    """What the calls of ``groups`` returned as ``name``, in the order of the arms: (arms, lrs, seeds, evaluations)."""
    ks = sorted({arm["k"] for arm in arms.values()}, reverse=True)
    values = iter([result[name] for result in results])
    found: dict[str, Array] = {}
    for k in ks:
        of_k = np.stack([next(values) for _ in seeds])  # (seeds, members, evaluations)
        names = [name for name, arm in arms.items() if arm["k"] == k]
        shaped = of_k.reshape(len(seeds), len(names), len(lrs), *of_k.shape[2:])
        found |= {arm: np.moveaxis(shaped[:, i], 0, 1) for i, arm in enumerate(names)}
    return np.stack([found[arm] for arm in arms])


# --- baselines: plain runs of torch's optimizers and of a maintained recent one ---

BASELINES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "NAdam": lambda params, lr: torch.optim.NAdam(params, lr=lr),
    "SGD, momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "schedule-free AdamW": lambda params, lr: schedulefree.AdamWScheduleFree(params, lr=lr),
}


@run("k_adam.baseline", data="mnist1d", short={"steps": 10, "every": 5})
def baseline_on_mnist1d(
    optimizer: str, lr: float, seed: int, steps: int, every: int, batch: int = 50, channels: int = 16
) -> dict[str, Any]:
    """A run of one of ``BASELINES`` on the network, weights and batches of ``convnet_on_mnist1d``, so observed.

    Raises:
        ValueError: ``optimizer`` is none of them.
    """
    if optimizer not in BASELINES:
        raise ValueError(f"optimizer: {optimizer!r} (must be one of {', '.join(BASELINES)})")
    parts = data.mnist1d()
    torch.manual_seed(seed)
    model = ConvNet(channels)
    stepping: Any = BASELINES[optimizer](model.parameters(), lr=lr)
    averages = hasattr(stepping, "eval")  # schedule-free: the weights to judge are an average
    if averages:
        stepping.train()

    def look(measure: Callable[..., Any], x: Tensor, y: Tensor) -> Callable[[], float]:
        def observe() -> float:
            if averages:
                stepping.eval()
            with torch.no_grad():
                value = float(measure(model(x), y))
            if averages:
                stepping.train()
            return value

        return observe

    history = train(
        model,
        stepping,
        shuffled_batches(parts.x, parts.y, batch, steps, seed),
        {
            "validation_loss": look(cross_entropy, parts.x_validation, parts.y_validation),
            "test_loss": look(cross_entropy, parts.x_test, parts.y_test),
            "test_accuracy": look(accuracy, parts.x_test, parts.y_test),
        },
        every,
    )
    evaluations = steps // every
    padded = {
        name: np.append(values, np.full(evaluations - len(values), np.nan)) for name, values in history.observed.items()
    }
    return {**padded, "steps": every * np.arange(1, evaluations + 1), "outcome": history.outcome}


@run("k_adam.step_costs", data="mnist1d", short={"rounds": 1}, timed=True)
def step_costs(rounds: int, ks: Sequence[int] = (1, 2), batch: int = 50, channels: int = 16) -> dict[str, Any]:
    """Time of a training step (loss, gradient, update) over that with ``torch.optim.AdamW(fused=True)``.

    ``names`` of the optimizers and their ``costs``, medians over ``rounds`` in which all take ten steps in turn. They
    vary from run to run: no claim may rest on them.
    """
    parts = data.mnist1d()
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "AdamW, fused": lambda params, lr: torch.optim.AdamW(params, lr=lr, fused=True),
        **{f"k = {k}": lambda params, lr, k=k: KAdam(params, lr=lr, k=k) for k in ks},
        **BASELINES,
    }
    models = {name: ConvNet(channels) for name in makers}
    optimizers: dict[str, Any] = {name: make(models[name].parameters(), lr=1e-4) for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in makers}
    x, y = parts.x[:batch], parts.y[:batch]
    for optimizer in optimizers.values():
        if hasattr(optimizer, "train"):
            optimizer.train()
    for repetition in range(rounds + 1):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            for _ in range(10):
                optimizer.zero_grad()
                cross_entropy(models[name](x), y).backward()
                optimizer.step()
            if repetition:  # the first round makes the states
                times[name].append(time.perf_counter() - start)
    unit = statistics.median(times["AdamW, fused"])
    return {"names": list(times), "costs": [statistics.median(taken) / unit for taken in times.values()]}


def state_bytes(make: Callable[..., torch.optim.Optimizer]) -> float:
    """Bytes of state per float32 parameter after a step; the step count is left out."""
    model = ConvNet()
    optimizer: Any = make(model.parameters(), lr=1e-3)
    if hasattr(optimizer, "train"):
        optimizer.train()
    cross_entropy(model(torch.randn(4, 40)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
    count = sum(param.numel() for param in model.parameters())
    tensors = [
        value
        for param in model.parameters()
        for value in optimizer.state[param].values()
        if isinstance(value, Tensor) and value.shape == param.shape and value.data_ptr() != param.data_ptr()
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / count


def distance_to_adamw(steps: int, lr: float, weight_decay: float) -> float:
    """max |difference| of any parameter after ``steps`` steps of KAdam with k = 1 and of AdamW.

    Each of the three implementations, loop, foreach and fused, against AdamW's of the same name; the largest of all.
    """
    parts = data.mnist1d()

    def trained(make: Callable[..., torch.optim.Optimizer], **arguments: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        model = ConvNet()
        optimizer = make(model.parameters(), lr=lr, weight_decay=weight_decay, **arguments)
        train(model, optimizer, shuffled_batches(parts.x, parts.y, 100, steps, 0))
        return model

    differences = []
    for engine in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        ours, theirs = trained(KAdam, k=1, **engine), trained(torch.optim.AdamW, **engine)
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        differences += [(p - q).abs().max() for p, q in pairs]
    return torch.stack(differences).max().item()


# --- why: what a stage does to noise, and how large a step the chain of first moments bears ---


def in_noise(stages: Sequence[Stage], steps: int, drift: float = 0.05, coordinates: int = 2000) -> dict[str, Array]:
    """k-Adam, eps = 0, on gradients of white noise with standard deviation 1 and mean ``drift``, in float64.

    Returns ``size``, the rms of x of every stage at every step, (steps, k); over the second half of the steps
    ``response``, the mean of x over ``drift``, (k,), and ``agreement``, how often x has the sign of the drift, (k,).
    """
    generator = torch.Generator().manual_seed(0)
    moments = [update.zeros(torch.empty(coordinates, dtype=torch.float64))] * len(stages)
    found: dict[str, list[list[float]]] = {"size": [], "response": [], "agreement": []}
    for n in range(1, steps + 1):
        noise = torch.randn(coordinates, generator=generator, dtype=torch.float64)
        moments = update.cascade(noise + drift, moments, n, stages, 0.0)
        outputs = [update.output(m, n, stage, 0.0) for m, stage in zip(moments, stages, strict=True)]
        found["size"].append([x.square().mean().sqrt().item() for x in outputs])
        found["response"].append([x.mean().item() / drift for x in outputs])
        found["agreement"].append([(x > 0).double().mean().item() for x in outputs])
    half = {name: np.mean(found[name][steps // 2 :], axis=0) for name in ("response", "agreement")}
    return {"size": np.array(found["size"]), **half}


def noise_sizes(gammas: Sequence[float]) -> Array:
    """rms of x of every stage, (k,), when the gradient is white noise and every second moment remembers for ever.

    The chain of first moments is then a linear filter, and every stage divides by the rms of its input.
    """
    response, sizes = np.ones(1), [1.0]
    for gamma in gammas:
        kernel = (1 - gamma) * gamma ** np.arange(np.ceil(40 / -np.log(gamma)) + 1) if gamma else np.ones(1)
        response = np.convolve(response, kernel)
        sizes.append(float(np.sqrt((response**2).sum())))
    return np.array(sizes[1:]) / np.array(sizes[:-1])


def gain(gammas: Sequence[float]) -> float:
    """By how much k-Adam amplifies what Adam does over long times, in noise: 1 over the sizes before the last."""
    return float(1 / np.prod(noise_sizes(gammas)[:-1]))


def largest_stable_step(gammas: Sequence[float]) -> float:
    """The largest eta h at which k-Adam with frozen denominators is stable on a loss of (preconditioned) curvature h.

    Where the roots of (z - 1) prod_i (z - gamma_i) + eta h prod_i (1 - gamma_i) z^k all lie inside the unit circle.
    For Adam it is 2 (1 + gamma) / (1 - gamma).
    """
    rates = np.asarray(gammas, dtype=float)
    chain = np.poly([1.0, *rates])

    def radius(step: float) -> float:
        polynomial = chain.copy()
        polynomial[1] += step * np.prod(1 - rates)  # the coefficient of z^k
        return float(np.abs(np.roots(polynomial)).max())

    low, high = 1e-9, float(2 * np.prod((1 + rates) / (1 - rates)))  # there z = -1 is a root
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if radius(middle) < 1 else (low, middle)
    return low


@run("k_adam.edge_of_stability", data="mnist1d", short={"steps": 4, "every": 2})
def edge_of_stability(
    k: int, seed: int, steps: int, every: int, lr: float = 1e-3, schedule: str = "naive",
    betas: Sequence[Any] = (0.9, 0.999),
) -> dict[str, Any]:  # fmt: skip
    """Full-batch k-Adam on a smooth perceptron (``lab.problems.perceptron``, float64, eps = 0).

    Returns ``step``, (evaluations,): eta times the largest eigenvalue of the Hessian, preconditioned by the
    denominators of all stages, after each of ``steps``. What it may be is ``largest_stable_step``.
    """
    problem = problems.perceptron(seed, width=16)
    stages = make_stages(betas, k, schedule)
    measured, at = [], []
    for n, (theta, moments) in enumerate(problems.walk(Flow(stages, lr), problem, steps)):
        if n and n % every == 0:
            pairs = zip(moments, stages, strict=True)
            scale = torch.stack([update.denominator(m.v, n, stage.beta, 0.0) for m, stage in pairs]).prod(0)
            measured.append(lr * problems.sharpness(problem, theta, scale))
            at.append(n)
    return {"step": np.array(measured), "steps": np.array(at)}


@run("k_adam.stages", data="mnist1d", short={"steps": 10, "every": 5})
def stages_in_training(
    k: int, lr: float, seed: int, steps: int, every: int, schedule: str = "naive",
    betas: Sequence[Any] = (0.9, 0.999), batch: int = 50, channels: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """What every stage passes on while ``convnet_on_mnist1d``'s network is trained.

    Returns, each (evaluations, k): ``size``, the rms of x over all coordinates; ``agreement``, the share of coordinates
    at which x has the sign of the step's gradient; ``steps``.
    """
    parts = data.mnist1d()
    torch.manual_seed(seed)
    model = ConvNet(channels)
    optimizer = KAdam(model.parameters(), lr=lr, betas=betas, k=k, schedule=schedule, weight_decay=0.0, foreach=False)
    stages = make_stages(betas, k, schedule)

    def look(i: int, measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], float]:
        def observe() -> float:
            gradients, outputs = [], []
            for param in model.parameters():
                state = optimizer.state[param]
                moments = moments_in(state, k)[i]
                assert param.grad is not None
                gradients.append(param.grad.flatten())
                outputs.append(update.output(moments, state["step"].item(), stages[i], 1e-8).flatten())
            return measure(torch.cat(outputs), torch.cat(gradients)).item()

        return observe

    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "size": lambda x, _: x.square().mean().sqrt(),
        "agreement": lambda x, gradient: (x.sign() == gradient.sign()).float().mean(),
    }
    observers = {f"{name} {i}": look(i, measure) for name, measure in measures.items() for i in range(k)}
    history = train(model, optimizer, shuffled_batches(parts.x, parts.y, batch, steps, seed), observers, every)
    found = {name: np.stack([history.observed[f"{name} {i}"] for i in range(k)], axis=1) for name in measures}
    return {**found, "steps": history.observed_at}
