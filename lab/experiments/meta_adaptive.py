"""Runs of ``notebooks/04_meta_adaptive.ipynb``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from kadam import ensemble, invariance, update
from kadam.ensemble import Member, Params
from kadam.update import Moments, Stage
from lab import data, together
from lab.experiments import run
from lab.models import BranchNormTransformer, ConvNet, Perceptron
from lab.training import cross_entropy, shuffled_batches, text_parts

Array = NDArray[np.float64]
Settings = Sequence[Sequence[float]]
BETA, EPS = 0.999, 1e-8
VOCABULARY, CONTEXT = 500, 32


@run("meta_adaptive.norms_of_perceptron", data="mnist1d", short={"steps": 12, "times": 3})
def norms_of_perceptron(
    settings: Settings, gammas: Sequence[float], seed: int, steps: int, times: int = 30, batch: int = 100,
    width: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Norms of the weights of a perceptron with LayerNorm on MNIST-1D, measured and by every law.

    ``settings`` are pairs (eta, lambda); AdamW runs at each of them with each of ``gammas``, all together, with the
    same first weights and batches. Returns, with units last: ``squared_norm`` and one array a law, (settings, gammas,
    times, units), at the steps ``at``; ``fitted``, the factor c of N' = (1 - lambda eta)^2 N + c eta^2 |u|^2 that
    gives the final norm, and ``fitted_lag``, the same for what the lag law predicts; ``inner`` and ``inner_lag``,
    2 <W, u> / (eta |u|^2) over the second half of the run, measured and by the lag law; ``alike``, the cosine
    between the update and the coarse-grained one, in which v is its average, over the same half (settings, gammas,
    units); ``names`` of the units; ``readout`` is the one that is not invariant.
    """
    parts = data.mnist1d()
    units = {"first.weight": 1, "second.weight": 1, "readout.weight": 1}
    return _norms(lambda: Perceptron(width), parts, units, settings, gammas, seed, steps, times, batch)


@run("meta_adaptive.norms_of_transformer", data="words", short={"steps": 6, "times": 3})
def norms_of_transformer(
    settings: Settings, gammas: Sequence[float], seed: int, steps: int, times: int = 30, batch: int = 8,
    width: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """The same for a one-block transformer on the words, with a query-key norm and a norm at the end of each branch."""
    units = {f"blocks.0.{name}.weight": count for name, count in
             {"query": 2, "key": 2, "value": 1, "mix": 1, "narrow": 1}.items()}  # fmt: skip

    def make() -> nn.Module:
        return BranchNormTransformer(VOCABULARY, CONTEXT, width, layers=1)

    return _norms(make, _text(), {**units, "readout.weight": 1}, settings, gammas, seed, steps, times, batch)


def _text() -> data.Labelled:
    return text_parts(data.words().tokens.clamp(max=VOCABULARY - 1), CONTEXT)


def _norms(
    make: Callable[[], nn.Module], parts: data.Labelled, units: dict[str, int], settings: Settings,
    gammas: Sequence[float], seed: int, steps: int, times: int, batch: int,
) -> dict[str, Any]:  # fmt: skip
    loss, init = ensemble.from_module(make, cross_entropy)
    members = [
        dict(lr=lr, weight_decay=weight_decay, betas=(gamma, BETA), eps=EPS, k=1, seed=seed)
        for lr, weight_decay in settings
        for gamma in gammas
    ]

    def numbers(member: Member) -> Tensor:
        """(units, 7): |W'|^2, <W', u>, |u|^2, mean v, |g|^2/v, |m|^2, <m, u>."""
        (moments,) = member.moments
        found = []
        for name, count in units.items():
            w, u, g, m, v = (
                tensor[name].reshape(count, -1) for tensor in (member.params, member.updates, member.grads, *moments)
            )
            v = v.clamp(min=torch.finfo(v.dtype).tiny)
            found.append(torch.stack([w * w, w * u, u * u, v / v.shape[1], g * g / v, m * m, m * u]).sum(-1).T)
        return torch.cat(found)

    runs = together.runs(loss, init, parts, members, seed, steps, 1, batch, {"numbers": numbers})
    if runs.diverged_at.any():
        raise RuntimeError(f"settings: members {np.flatnonzero(runs.diverged_at).tolist()} diverged (lower eta)")
    first = init(seed)
    start = torch.cat([first[name].reshape(count, -1).square().sum(1) for name, count in units.items()]).double()
    names = [f"{name} {i}" if count > 1 else name for name, count in units.items() for i in range(count)]
    series = np.moveaxis(runs.observed["numbers"].astype(float), (1, 3), (0, 1))  # (T, 7, members, units)
    lr, weight_decay, gamma = (
        np.array([m[name] if name != "gamma" else m["betas"][0] for m in members])[:, None]  # type: ignore[index]
        for name in ("lr", "weight_decay", "gamma")
    )
    result = _laws(start.numpy(), series, lr, weight_decay, gamma)
    shape = len(settings), len(gammas)
    at = np.unique(np.linspace(0, steps, times + 1).round().astype(int))
    trimmed = {
        name: np.moveaxis(array[at], 0, 1).reshape(*shape, len(at), -1)
        if array.ndim == 3
        else array.reshape(*shape, -1)
        for name, array in result.items()
    }
    return {**trimmed, "at": at, "names": np.array(names)}


def _laws(start: Array, series: Array, lr: Array, weight_decay: Array, gamma: Array) -> dict[str, Array]:
    """The laws of ``kadam.invariance`` on recorded numbers, (T, 7, members, units); the gradient law without eps."""
    after, along, u_squared, v, g_over_v, m_squared, m_u = series.transpose(1, 0, 2, 3)
    correction = (1 - BETA ** np.arange(1, len(series) + 1))[:, None, None]
    norm = np.concatenate([np.broadcast_to(start, after.shape[1:])[None], after])
    steps = torch.arange(1, len(series) + 1, dtype=torch.float64)[:, None, None]
    root = update.root(torch.from_numpy(v), steps, BETA, EPS).numpy()
    lag, inner_lag = invariance.lag_squared_norms(norm[0], u_squared, root, lr, weight_decay, gamma)
    laws = {
        "paper": invariance.squared_norms(norm[0], u_squared, lr, weight_decay),
        "momentum": invariance.squared_norms(norm[0], u_squared, lr, weight_decay, invariance.momentum_factor(gamma)),
        "gradient": invariance.squared_norms(norm[0], g_over_v * correction, lr, weight_decay),
        "lag": lag,
    }
    alone = norm[0] * (1 - lr * weight_decay) ** (2 * len(series))  # the norm if there were no updates
    half = slice(len(series) // 2, None)
    inner = (along - lr * u_squared) / (1 - lr * weight_decay)
    size = (lr * u_squared)[half].mean(0)
    return {
        "squared_norm": norm,
        **laws,
        "fitted": (norm[-1] - alone) / (laws["paper"][-1] - alone),
        "fitted_lag": (lag[-1] - alone) / (laws["paper"][-1] - alone),
        "inner": 2 * inner[half].mean(0) / size,
        "inner_lag": 2 * inner_lag[half].mean(0) / size,
        "alike": (-m_u / np.sqrt(m_squared * u_squared))[half].mean(0),
    }


@run(
    "meta_adaptive.equilibrium",
    data="mnist1d",
    short={"steps": 30, "window": 10, "spans": lambda _: [1, 5], "lags": lambda _: [0, 1, 10]},
)
def equilibrium(
    gammas: Sequence[float], lr: float, weight_decay: float, scale: float, seed: int, steps: int, window: int,
    spans: Sequence[int], lags: Sequence[int], width: int = 32, batch: int = 100,
) -> dict[str, Any]:  # fmt: skip
    """The second weight of the perceptron in equilibrium, under AdamW with each of ``gammas``, (gammas,).

    The hidden weights start ``scale`` times as large as usual. Over the last ``window`` steps: ``squared_norm`` and
    ``u_squared``, means; ``turned``, the root-mean-square angle over each of ``spans`` steps, (gammas, spans);
    ``lagged``, (gammas, lags), - <W_t, g_(t - lag)> / (eta |u|^2 sqrt(v)), v averaged over entries.
    Over all steps: ``path`` of |W|^2, (gammas, steps).
    """
    parts = data.mnist1d()
    loss, make_first = ensemble.from_module(lambda: Perceptron(width), cross_entropy)

    def init(seed: int) -> Params:
        first = make_first(seed)
        return {name: w * scale if name in ("first.weight", "second.weight") else w for name, w in first.items()}

    members = [dict(lr=lr, weight_decay=weight_decay, betas=(g, BETA), eps=EPS, k=1, seed=seed) for g in gammas]
    name = "second.weight"
    observe: dict[str, Callable[[Member], Tensor]] = {
        "w": lambda member: member.params[name].flatten(),
        "g": lambda member: member.grads[name].flatten(),
        "u_squared": lambda member: member.updates[name].square().sum(),
        "v": lambda member: member.moments[0][1][name].mean(),
    }
    runs = together.runs(loss, init, parts, members, seed, steps, 1, batch, observe)
    if runs.diverged_at.any():
        raise RuntimeError(f"lr: {lr} (a member diverged)")
    w, u_squared = runs.observed["w"].astype(float), runs.observed["u_squared"][:, -window:]
    root_v = np.sqrt(runs.observed["v"] / (1 - BETA ** np.arange(1, steps + 1)))
    late = w[:, -window - 1 :]
    found = []
    for lag in lags:
        # w[t] is the weight after step t, g[t + 1] is taken there
        then = runs.observed["g"][:, -window - lag : steps - lag] / root_v[:, -window - lag : steps - lag, None]
        found.append(-(late[:, :-1] * then).sum(-1).mean(1) / (lr * u_squared.mean(1)))

    def turned(apart: int) -> Array:
        direction = late / np.linalg.norm(late, axis=-1, keepdims=True)
        chord = np.linalg.norm(direction[:, apart:] - direction[:, :-apart], axis=-1)
        return np.sqrt(((2 * np.arcsin(chord / 2)) ** 2).mean(1))

    return {
        "path": (w**2).sum(-1), "squared_norm": (late**2).sum(-1).mean(1), "u_squared": u_squared.mean(1),
        "turned": np.stack([turned(span) for span in spans], 1), "lagged": np.stack(found, 1),
    }  # fmt: skip


@run("meta_adaptive.sphere", data="mnist1d", short={"steps": 6})
def sphere(
    laws: Sequence[str], lr: float, weight_decay: float, gamma: float, seed: int, steps: int, width: int = 32,
    batch: int = 100,
) -> dict[str, Any]:  # fmt: skip
    """Directions of the perceptron's hidden weights: AdamW, and the same on the unit sphere with |W| given by a law.

    On the sphere the network holds the directions alone. Their gradients are divided by the |W| that the law
    predicts, go through Adam's moments, and the direction moves by (1 - lambda eta) |W| W^ + eta u, normalised:
    with the law ``paper`` this is Adam whose update is divided by the root of a moving average of its own square,
    2-Adam with gamma_2 = 0. The other laws are ``momentum``, ``lag``, and ``identity``, which knows <W, u>; with
    ``nudged`` the first directions are moreover turned by 0.001, to see what a small difference grows to. All else is
    trained by AdamW, in float64, on the same batches. In radians, (laws, steps, weights): ``apart``, the angle
    between the two directions; ``length``, the sum of the angles of the steps. Of the real ones, (steps, weights):
    ``travelled``, the angle to the first direction, and ``real_length``.
    """
    parts = data.mnist1d()
    model = Perceptron(width).double()
    for layer in (model.norm_first, model.norm_second):
        assert isinstance(layer, nn.LayerNorm)
        layer.eps = 0.0  # so that the loss depends on the directions alone
    _, init = ensemble.from_module(lambda: Perceptron(width).double(), cross_entropy)
    hidden = ("first.weight", "second.weight")
    order = list(shuffled_batches(parts.x.double(), parts.y, batch, steps, seed))
    stage = Stage(gamma, BETA)

    def gradient(theta: Params, batch: tuple[Tensor, Tensor]) -> Params:
        return grad(lambda theta: cross_entropy(functional_call(model, theta, batch[0]), batch[1]))(theta)

    def path(law: str) -> list[list[Tensor]]:
        theta = init(seed)
        moments = {name: update.zeros(w) for name, w in theta.items()}
        states = {name: invariance.State(theta[name].square().sum()) for name in hidden}
        on_sphere = law != "real"
        if on_sphere:
            theta = {name: w / w.norm() if name in hidden else w for name, w in theta.items()}
        if law == "nudged":
            generator = torch.Generator().manual_seed(seed)
            for name in hidden:
                aside = torch.randn(theta[name].shape, generator=generator).double()
                theta[name] = theta[name] + 1e-3 * aside / aside.norm()
                theta[name] = theta[name] / theta[name].norm()
        found = [[theta[name] / theta[name].norm() for name in hidden]]
        for n, batch in enumerate(order, start=1):
            grads = gradient(theta, batch)
            for name, g in grads.items():
                size = states[name].squared_norm.sqrt() if on_sphere and name in hidden else torch.ones(()).double()
                moments[name] = update.advance(g / size, moments[name], stage)
                new = update.apply(theta[name] * size, moments[name], n, stage, lr, weight_decay, EPS)
                if on_sphere and name in hidden:
                    u = update.direction(moments[name], n, stage, EPS)
                    factor = float(invariance.momentum_factor(gamma)) if law == "momentum" else 1.0
                    seen = invariance.Observation(lr, weight_decay, (factor * u.square().sum(),))
                    if law in ("identity", "nudged"):
                        seen = seen._replace(inners=(size * (theta[name] * u).sum(),))
                    if law == "lag":
                        root = update.root(moments[name].v.mean(), n, BETA, EPS)
                        seen = seen._replace(n=n, gammas=(gamma,), roots=(root,))
                    states[name] = invariance.law(states[name], seen)
                    new = new / new.norm()
                theta[name] = new
            found.append([theta[name] / theta[name].norm() for name in hidden])
        return found

    def angle(a: Tensor, b: Tensor) -> float:
        return 2 * float(((a - b).norm() / 2).clamp(max=1).arcsin())

    real = path("real")
    paths = [path(law) for law in laws]

    def angles(one: Sequence[list[Tensor]], other: Sequence[list[Tensor]]) -> Array:
        return np.array([[angle(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(one, other, strict=True)])

    return {
        "apart": np.array([angles(one, real)[1:] for one in paths]),
        "length": np.array([angles(one[1:], one[:-1]).cumsum(axis=0) for one in paths]),
        "travelled": angles(real[1:], [real[0]] * (len(real) - 1)),
        "real_length": angles(real[1:], real[:-1]).cumsum(axis=0),
    }


ARMS = {
    "a": ("norm", "adam"),
    "b": ("none", "coordinate"),
    "c": ("none", "adam"),
    "d": ("norm", "coordinate"),
    "b scalar": ("none", "scalar"),
    "c sized": ("none", "sized"),
}


@run("meta_adaptive.direct_convnet", data="mnist1d", short={"steps": 4, "every": 2})
def direct_convnet(
    arm: str, lrs: Sequence[float], weight_decay: float, seed: int, steps: int, every: int, batch: int = 50,
    channels: int = 16,
) -> dict[str, Any]:  # fmt: skip
    """One of ``ARMS`` on a convolutional network over MNIST-1D, with or without GroupNorm, at all ``lrs`` together.

    Returns ``validation_loss`` and ``test_loss``, (lrs, evaluations), NaN from where a run diverged, their
    ``steps``, and ``rms`` of the update, averaged over the run, (lrs,).
    """
    norm, rule = ARMS[arm]
    make = lambda: ConvNet(channels, "group" if norm == "norm" else "none")  # noqa: E731
    return second_normalisation(make, data.mnist1d(), rule, lrs, weight_decay, seed, steps, every, batch)


@run(  # at large learning rates two machines soon part
    "meta_adaptive.direct_transformer", data="words", short={"steps": 4, "every": 2, "lrs": lambda lrs: lrs[:2]}
)
def direct_transformer(
    arm: str, lrs: Sequence[float], weight_decay: float, seed: int, steps: int, every: int, batch: int = 4
) -> dict[str, Any]:
    """The same for the two-layer transformer of branch norms, or without any norm, on the words."""
    norm, rule = ARMS[arm]
    make = lambda: BranchNormTransformer(VOCABULARY, CONTEXT, norm="layer" if norm == "norm" else "none")  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        return second_normalisation(make, _text(), rule, lrs, weight_decay, seed, steps, every, batch)


def second_normalisation(
    make: Callable[[], nn.Module], parts: data.Labelled, rule: str, lrs: Sequence[float], weight_decay: float,
    seed: int, steps: int, every: int, batch: int, gamma: float = 0.9,
) -> dict[str, Any]:  # fmt: skip
    """Adam whose output x is normalised once more, with beta_2 = e^(-2 lambda eta) and gamma_2 = 0, at all ``lrs``.

    ``rule``: ``adam`` leaves x as it is; ``coordinate`` divides it by the root of the moving average of x^2, which is
    2-Adam; ``scalar`` averages x^2 also over each tensor, as the norm of a scale-invariant weight does; ``sized``
    takes x times one number, so that over all parameters it has the root mean square of ``coordinate``.
    """
    loss, init = ensemble.from_module(make, cross_entropy)
    lr = torch.tensor(lrs)
    first, second = Stage(gamma, BETA), Stage(0.0, torch.exp(-2 * weight_decay * lr.double()))
    theta = {name: torch.stack([w] * len(lrs)) for name, w in init(seed).items()}

    def zeros() -> dict[str, Moments]:
        return {name: update.zeros(w) for name, w in theta.items()}

    def over(tensor: Tensor, like: Tensor) -> Tensor:
        return tensor.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def rms(tensors: Params) -> Tensor:
        count = sum(tensor[0].numel() for tensor in tensors.values())
        return torch.stack([tensor.square().flatten(1).sum(1) for tensor in tensors.values()]).sum(0).div(count).sqrt()

    def again(name: str, x: Tensor, square: Tensor, n: int) -> Tensor:
        """x over the root of the moving average of ``square``, which becomes the state of the second stage."""
        beta = over(second.beta, x)  # type: ignore[arg-type]
        moments[1][name] = Moments(x, update.average(moments[1][name].v, square.expand_as(x), beta))
        return update.output(moments[1][name], n, Stage(0.0, beta), EPS)

    moments, sizes = [zeros(), zeros()], torch.zeros(len(lrs))
    gradient = vmap(grad(loss), (0, None))
    held_out = {"validation_loss": (parts.x_validation, parts.y_validation), "test_loss": (parts.x_test, parts.y_test)}
    evaluate = vmap(lambda theta: {name: loss(theta, part) for name, part in held_out.items()})
    seen: dict[str, list[Tensor]] = {name: [] for name in held_out}
    for n, examples in enumerate(shuffled_batches(parts.x, parts.y, batch, steps, seed), start=1):
        grads = gradient(theta, examples)
        moments[0] = {name: update.advance(g, moments[0][name], first) for name, g in grads.items()}
        x = {name: update.output(moments[0][name], n, first, EPS) for name in theta}
        out = x
        if rule in ("coordinate", "sized"):
            out = {name: again(name, tensor, tensor.square(), n) for name, tensor in x.items()}
        elif rule == "scalar":
            out = {name: again(name, t, over(t.square().flatten(1).mean(1), t), n) for name, t in x.items()}
        elif rule != "adam":
            raise ValueError(f"rule: {rule!r} (must be adam, coordinate, scalar or sized)")
        if rule == "sized":
            ratio = rms(out) / rms(x).clamp(min=torch.finfo(torch.float32).tiny)
            out = {name: tensor * over(ratio, tensor) for name, tensor in x.items()}
        sizes += rms(out) / steps
        theta = {name: w * over(1 - lr * weight_decay, w) - over(lr, w) * out[name] for name, w in theta.items()}
        if n % every == 0:
            for name, value in evaluate(theta).items():
                seen[name].append(torch.where(value.isfinite(), value, torch.nan))
    curves = {name: torch.stack(values, 1).numpy() for name, values in seen.items()}
    return {**curves, "steps": np.arange(every, steps + 1, every), "rms": sizes.numpy()}
