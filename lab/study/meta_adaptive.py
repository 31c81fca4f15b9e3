"""Page 04, weights before a normalisation layer: the page's runs and checks, and what makes numbers of them.

Runs come as arrays with named axes. ``setting`` is a choice of learning rate and weight decay, ``unit`` a weight or the
part of a weight that a layer normalises on its own, ``law`` a way to predict the norm (``kadam.invariance``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from kadam import invariance
from kadam.invariance import LAWS, Reading, Recorder, momentum_factor, scale_invariant_weights
from lab import data, statistics
from lab.experiments import meta_adaptive as runs
from lab.grid import grid
from lab.measures import judged, on_edge, tuned
from lab.models import BranchNormTransformer, Perceptron
from lab.records import Result
from lab.statistics import Estimate, mean, mean_interval, regression
from lab.training import cross_entropy

Array = NDArray[np.float64]
Rows = list[tuple[str, ...]]
Norm = Callable[[Tensor], Tensor]

LEAST_FACTOR = 0.05  # a fitted factor below it counts as that much, or it would have no logarithm
MARGIN = 0.1  # what "within 10 %" allows
SPHERE_LAWS = ("identity", "paper", "momentum", "lag", "nudged")
ARMS = {
    "layers, AdamW": "a", "no layers, 2-Adam": "b", "no layers, AdamW": "c", "layers, 2-Adam": "d",
    "no layers, 2-Adam by tensor": "b scalar", "no layers, AdamW resized": "c sized",
}  # fmt: skip
DIRECT: dict[str, tuple[Callable[..., Result], int]] = {  # the run and the number of classes
    "convnet": (runs.direct_convnet, 10),
    "text": (runs.direct_transformer, runs.VOCABULARY),
}
NORMS: dict[str, Callable[..., Result]] = {
    "transformer": runs.norms_of_transformer,
    "perceptron": runs.norms_of_perceptron,
}


# --- which weights are scale-invariant ---


def _query_norm(y: Tensor) -> Tensor:
    """Queries of two heads are normalised, then meet fixed keys; y is (64, 12)."""
    heads = y.view(8, 8, 2, 6)
    q = F.layer_norm(heads, (6,), eps=0.0).transpose(1, 2)
    values = torch.randn((8, 2, 8, 6), generator=torch.Generator().manual_seed(1)).double()
    return (q @ values.roll(1, 0).mT).softmax(-1).matmul(values).transpose(1, 2).reshape(64, 12)


LAYERS: dict[str, Norm] = {
    "LayerNorm": lambda y: F.layer_norm(y, (12,), eps=0.0),
    "GroupNorm, 3 groups": lambda y: F.group_norm(y, 3, eps=0.0),
    "BatchNorm": lambda y: F.batch_norm(y, None, None, training=True, eps=1e-30),  # 0 is not allowed
    "RMSNorm": lambda y: F.rms_norm(y, (12,), eps=0.0),
    "query norm": _query_norm,
}
BROKEN = ("a bias, then LayerNorm", "a residual path, then LayerNorm", "no layer")


def layers_tried() -> dict[str, tuple[float, float, float]]:
    """A weight W, (12, 12), before every kind of layer, and where something may break its invariance; in float64.

    Returns:
        by name: |<W, g>| / (|W| |g|); the relative error of g(3 W) = g(W) / 3; |L(3 W) - L(W)| in nats.
    """
    generator = torch.Generator().manual_seed(0)
    x, head, weight = (torch.randn(shape, generator=generator).double() for shape in ((64, 12), (12, 4), (12, 12)))
    target, weight, bias = torch.randint(4, (64,), generator=generator), weight / 4, x[2] / 4

    def tried(norm: Norm, w: Tensor = weight, before: Tensor | float = 0.0) -> tuple[float, float, float]:
        def loss(w: Tensor) -> Tensor:
            return F.cross_entropy(norm(x @ w.T + before) @ head, target)

        def gradient(w: Tensor) -> Tensor:
            w = w.clone().requires_grad_()
            return torch.autograd.grad(loss(w), w)[0]

        return (cosine(w, gradient(w)), inverse_error(gradient(w), gradient(3 * w), 3.0),
                float((loss(3 * w) - loss(w)).detach().abs()))  # fmt: skip

    layer, usual = LAYERS["LayerNorm"], nn.LayerNorm(12).double()
    return {name: tried(norm) for name, norm in LAYERS.items()} | {
        "LayerNorm, then scale and shift": tried(lambda y: F.layer_norm(y, (12,), x[0].abs(), x[1], eps=0.0)),
        "LayerNorm, ε = 1e-5": tried(usual),
        "LayerNorm, ε = 1e-5, W / 100": tried(usual, 0.01 * weight),
        "a bias, then LayerNorm": tried(layer, before=bias),
        "a residual path, then LayerNorm": tried(layer, before=x),
        "no layer": tried(lambda y: y),
    }


def layer_rows(tried: Mapping[str, tuple[float, float, float]]) -> Rows:
    """For a table: what ``layers_tried`` returns; what rounding decides is shown as 0."""
    return [(name, *(f"{x:.0e}" if x > 1e-12 else "0" for x in row)) for name, row in tried.items()]


def cosine(w: Tensor, g: Tensor) -> float:
    """|<w, g>| / (|w| |g|)."""
    return float((w * g).sum().abs() / w.norm() / g.norm())


def inverse_error(g: Tensor, g_scaled: Tensor, scale: float) -> float:
    """Relative error of g(scale W) = g(W) / scale."""
    return float((scale * g_scaled - g).norm() / g.norm())


def finder_errors() -> int:
    """How many weights the library's numerical test gets wrong: two networks with layers, and the same without."""
    parts = data.mnist1d()
    tokens, following = (torch.randint(50, (8, 16), generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    units = dict(query=2, key=2, value=1, mix=1, narrow=1)
    of_transformer = {f"blocks.0.{name}.weight": count for name, count in units.items()}
    of_perceptron = {"first.weight": 1, "second.weight": 1}
    wrong = 0
    for norm in ("layer", "none"):
        torch.manual_seed(0)
        for model, x, y, expected in (
            (Perceptron(norm=norm), parts.x[:100], parts.y[:100], of_perceptron),
            (BranchNormTransformer(50, 16, layers=1, norm=norm), tokens, following, of_transformer),
        ):
            wrong += misfits(_found(model, x, y), expected if norm == "layer" else {})
    return wrong


def _found(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    return scale_invariant_weights(model, lambda: cross_entropy(model(x), y))


def misfits(found: Mapping[str, int], expected: Mapping[str, int]) -> int:
    """How many weights are only in one of them, or have another number of units."""
    return sum(found.get(name) != expected.get(name) for name in found.keys() | expected.keys())


# --- the laws where they must be exact ---


def sgd_readings(gamma: float = 0.9, steps: int = 40) -> dict[str, Reading]:
    """What a recorder says after SGD with momentum on a perceptron with LayerNorm (ε = 0), in float64."""
    torch.manual_seed(0)
    parts, model = data.mnist1d(), Perceptron(32).double()
    for layer in (model.norm_first, model.norm_second):
        assert isinstance(layer, nn.LayerNorm)
        layer.eps = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=gamma)
    with Recorder(model, optimizer, {"first.weight": 1, "second.weight": 1}) as recorder:
        for i in range(steps):
            chosen = slice(100 * i, 100 * i + 100)
            optimizer.zero_grad()
            cross_entropy(model(parts.x[chosen].double()), parts.y[chosen]).backward()
            optimizer.step()
    return recorder.read()


def errors_of(readings: Mapping[str, Reading], law: str) -> Array:
    """|predicted / measured - 1| of |W|^2 by a law, (weights,)."""
    return np.array([float((r.predicted[law] / r.squared_norm - 1).abs().max()) for r in readings.values()])


def simulated(
    gammas: Sequence[float], lr: float, weight_decay: float, pull: float = 0.0, span: int = 150, size: int = 1000,
    steps: int = 1500,
) -> dict[str, Array]:  # fmt: skip
    """Equilibrium and rotation of a vector under made-up gradients, orthogonal to it, with one v: measured over theory.

    A gradient is white noise plus ``pull`` times as much towards a fixed direction, all orthogonal to the vector. The
    vector starts in equilibrium; the second half of the steps is measured.

    Returns:
        (gammas,) each: ``norm``, |W|^2 over the closed form; ``once`` and ``many``, the root-mean-square angle over 1
        and over ``span`` steps, over that of uncorrelated gradients.
    """
    generator, g = np.random.default_rng(0), np.asarray(gammas, float)[:, None]
    target = np.zeros(size)
    target[0] = np.sqrt(size)
    u_squared = size * (1 - g[:, 0]) / (1 + g[:, 0])
    balance = invariance.equilibrium_squared_norm(u_squared, lr, weight_decay, g[:, 0])
    w = np.tile(target, (len(g), 1)) * np.sqrt(balance[:, None] / size)
    m, late, updates = np.zeros_like(w), [], []
    for n in range(1, steps + 1):
        noise = generator.standard_normal(size) - pull * target
        gradient = noise - w * (w @ noise / (w * w).sum(1))[:, None]
        m = g * m + (1 - g) * gradient
        u = -m / (1 - g**n)
        w = (1 - lr * weight_decay) * w + lr * u
        if n > steps // 2:
            late.append(w)
            updates.append((u * u).sum(1))
    norms, turned = np.array([(w * w).sum(1) for w in late]).mean(0), np.array(late)
    turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
    closed = invariance.equilibrium_squared_norm(np.array(updates).mean(0), lr, weight_decay, g[:, 0])
    angles = {name: rms_angle(turned, apart) for name, apart in (("once", 1), ("many", span))}
    theory = {name: invariance.rotation(lr, weight_decay, g[:, 0], n) for name, n in (("once", 1), ("many", span))}
    return {"norm": norms / closed} | {name: angles[name] / theory[name] for name in angles}


def rms_angle(directions: Array, apart: int) -> Array:
    """Root-mean-square angle between unit vectors ``apart`` steps apart, (steps, n, size) -> (n,)."""
    chord = np.linalg.norm(directions[apart:] - directions[:-apart], axis=-1)
    found: Array = np.sqrt(((2 * np.arcsin(chord / 2)) ** 2).mean(0))
    return found


def furthest(ratios: ArrayLike) -> float:
    """Of some ratios, the one furthest from 1."""
    values = np.ravel(ratios)
    return float(values[np.abs(values - 1).argmax()])


def closest(ratios: ArrayLike) -> float:
    """Of some ratios, the one closest to 1."""
    values = np.ravel(ratios)
    return float(values[np.abs(values - 1).argmin()])


# --- the norm ---


def norms(
    task: str, settings: Sequence[Sequence[float]], gammas: Sequence[float], seeds: Sequence[int], steps: int
) -> xr.Dataset:
    """Norms of a network's weights, measured and by every law, over seed, setting, gamma, time, unit."""
    axes = ["setting", "gamma"]
    inner = {key: [*axes, "time", "unit"] for key in ("squared_norm", *LAWS)}
    inner |= {key: [*axes, "unit"] for key in ("fitted", "fitted_lag", "inner", "inner_lag", "alike")}
    inner |= {"at": ["time"], "names": ["unit"]}
    found = grid(NORMS[task], f"{task}: norms", {"seed": seeds}, inner, settings=settings, gammas=gammas, steps=steps)
    first = found.isel(seed=0)
    return found.drop_vars(["at", "names"]).assign_coords(
        time=first["at"].values, unit=[str(name) for name in first["names"].values], gamma=list(gammas)
    )


def hidden(found: xr.Dataset) -> xr.Dataset:
    """The weights before a layer: all but the read-out."""
    return found.sel(unit=[name for name in found.unit.values if "readout" not in name])


def factors(found: xr.Dataset, of: str = "fitted") -> Array:
    """Fitted factor, mean over settings and weights before a layer, at least ``LEAST_FACTOR``: (gamma, seed)."""
    mean_factor = hidden(found)[of].mean(["setting", "unit"]).transpose("gamma", "seed")
    return np.maximum(mean_factor.values, LEAST_FACTOR)


def factor_at(found: xr.Dataset, gamma: float) -> Estimate:
    """The fitted factor at one gamma."""
    return mean(factors(found)[list(found.gamma.values).index(gamma)])


def slopes(gammas: Sequence[float], factor: Array) -> Array:
    """Slope of ln(factor) on ln((1 + gamma) / (1 - gamma)), a line for each seed: (gamma, seed) -> (seed,)."""
    x = np.log(momentum_factor(gammas))
    return np.array([regression(x, np.log(of_seed))[0] for of_seed in factor.T])


def final_errors(found: xr.Dataset, law: str) -> xr.DataArray:
    """|predicted / measured - 1| of the final |W|^2 by a law, over seed, setting, gamma, unit."""
    return abs(found[law].isel(time=-1) / found["squared_norm"].isel(time=-1) - 1)


def median_errors(found: xr.Dataset, law: str) -> Array:
    """The median of ``final_errors`` of the weights before a layer, (seed,)."""
    return final_errors(hidden(found), law).median(["setting", "gamma", "unit"]).values


def readout_error(found: xr.Dataset, law: str = "lag") -> float:
    """The median error of a law on the read-out, before which no layer is."""
    return float(final_errors(found.sel(unit=["readout.weight"]), law).median())


def error_at(found: xr.Dataset, law: str, gamma: float) -> float:
    """The median error of a law at one gamma, over seeds, settings and weights before a layer."""
    return float(final_errors(hidden(found), law).sel(gamma=gamma).median())


def over_lag_law(found: xr.Dataset) -> Array:
    """Fitted factor over that of the lag law, at the largest gamma, (seed,)."""
    return factors(found)[-1] / factors(found, "fitted_lag")[-1]


def passing_pairings(gammas: Sequence[float], factor: Array) -> int:
    """How many wrong pairings of gamma with the mean factor, (gamma, seed), have a slope within ``MARGIN`` of 1.

    Pairings that have such a slope with exact factors are left out: they test nothing.
    """
    x, y = np.log(momentum_factor(gammas)), np.log(factor.mean(axis=1))
    wrong = [list(order) for order in permutations(range(len(x))) if order != tuple(range(len(x)))]
    telling = [order for order in wrong if abs(regression(x[order], x)[0] - 1) > MARGIN]
    return sum(abs(regression(x[order], y)[0] - 1) <= MARGIN for order in telling)


def factor_rows(found: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: by task and gamma the momentum's factor, that of the lag law, and the fitted one."""
    rows: Rows = []
    for task, each in found.items():
        fitted, of_lag = factors(each), factors(each, "fitted_lag").mean(axis=1)
        for i, gamma in enumerate(each.gamma.values):
            theory = f"{momentum_factor(gamma):.1f}"
            rows.append((task, f"{gamma:g}", "1", theory, f"{of_lag[i]:.1f}", _with_interval(fitted[i], ".2f")))
    return rows


def error_rows(found: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: by task and gamma the median error of every law, in per cent."""
    return [
        (task, f"{gamma:g}", *(f"{100 * error_at(each, law, gamma):.1f}" for law in LAWS))
        for task, each in found.items()
        for gamma in each.gamma.values
    ]


def inner_rows(found: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: 2 <W, u> / (eta |u|^2) by task and gamma, measured, by the lag law and in its limit."""
    rows: Rows = []
    for task, each in found.items():
        means = hidden(each)[["inner", "inner_lag"]].mean(["seed", "setting", "unit"])
        for gamma in each.gamma.values:
            at = means.sel(gamma=gamma)
            values = (2 * gamma / (1 - gamma), float(at.inner_lag), float(at.inner))
            rows.append((task, f"{gamma:g}", "0", *(f"{round(value, 2) + 0.0:.2f}" for value in values)))
    return rows


def alike_rows(found: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: the cosine between the true update and the one with a single v, by task and weight."""
    return [
        (task, str(name).removeprefix("blocks.0."), f"{float(value):.2f}")
        for task, each in found.items()
        for name, value in zip(each.unit.values, each.alike.mean(["seed", "setting", "gamma"]).values, strict=True)
    ]


def _with_interval(values: ArrayLike, form: str) -> str:
    middle, (low, high) = mean_interval(values)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


# --- equilibrium and rotation ---


def spans(window: int) -> list[int]:
    """Numbers of steps over which the angle is measured; the last is half the window."""
    return [span for span in (1, 2, 5, 10, 20, 50, 100) if span < window // 2] + [window // 2]


LAGS = [0, 1, 2, 5, 10, 20, 40]


def equilibrium(
    gammas: Sequence[float], scales: Sequence[float], seeds: Sequence[int], lr: float, weight_decay: float, steps: int,
    window: int,
) -> xr.Dataset:  # fmt: skip
    """The second weight of the perceptron late in a run, over scale (of the first weights), seed, gamma."""
    inner = {"path": ["gamma", "step"], "turned": ["gamma", "span"], "lagged": ["gamma", "lag"]}
    inner |= {key: ["gamma"] for key in ("squared_norm", "u_squared")}
    found = grid(
        runs.equilibrium, "equilibrium", {"scale": scales, "seed": seeds}, inner, gammas=gammas, lr=lr,
        weight_decay=weight_decay, steps=steps, window=window, spans=spans(window), lags=LAGS,
    )  # fmt: skip
    labels = {"gamma": list(gammas), "span": spans(window), "lag": LAGS, "step": np.arange(1, steps + 1)}
    return found.assign_coords(labels).assign_attrs(lr=lr, weight_decay=weight_decay)


def closed_norm(found: xr.Dataset, momentum: bool = True) -> xr.DataArray:
    """The closed form of |W|^2, from the measured |u|^2; without ``momentum`` that of the paper's law."""
    gamma = found.gamma if momentum else 0 * found.gamma
    values = invariance.equilibrium_squared_norm(
        found.u_squared.transpose(..., "gamma").values, found.lr, found.weight_decay, gamma.values
    )
    return found.u_squared.transpose(..., "gamma").copy(data=values)


def closed_angles(found: xr.Dataset) -> xr.DataArray:
    """The closed form of the angle for uncorrelated gradients, (gamma, span)."""
    values = invariance.rotation(found.lr, found.weight_decay, found.gamma.values[:, None], found.span.values)
    return xr.DataArray(values, {"gamma": found.gamma, "span": found.span}, ["gamma", "span"])


def norm_ratios(found: xr.Dataset) -> xr.DataArray:
    """|W|^2 in equilibrium over the closed form, geometric mean over first weights, (gamma, seed)."""
    return _geometric(found.squared_norm / closed_norm(found), "scale").transpose("gamma", "seed")


def angle_ratios(found: xr.Dataset) -> xr.DataArray:
    """The angle over the closed form, geometric mean over first weights, (span, gamma, seed)."""
    return _geometric(found.turned / closed_angles(found), "scale").transpose("span", "gamma", "seed")


def forgotten(found: xr.Dataset) -> Array:
    """Final |W|^2 from the largest first weights over that from the least, geometric mean over gamma, (seed,)."""
    end = found.path.isel(step=-1)
    return _geometric(end.isel(scale=-1) / end.isel(scale=0), "gamma").values


def over_gamma(ratios: xr.DataArray) -> Estimate:
    """Mean over seeds of the geometric mean over gamma, from (gamma, seed)."""
    return mean(_geometric(ratios, "gamma").values)


def within(ratios: xr.DataArray | Array) -> Estimate:
    """How many ratios, (cases, seeds), are within ``MARGIN`` of 1 (``lab.statistics.within``)."""
    return statistics.within(np.asarray(ratios) - 1, MARGIN)


def equilibrium_rows(found: xr.Dataset, shown: Sequence[int]) -> Rows:
    """For a table: by gamma |W|^2 over the closed form with its interval, and the angle over it for some spans."""
    ratios, angles = norm_ratios(found), angle_ratios(found).mean("seed")
    return [
        (f"{gamma:g}", _with_interval(ratios.sel(gamma=gamma).values, ".3f"),
         *(f"{float(angles.sel(gamma=gamma, span=span)):.2f}" for span in shown))
        for gamma in found.gamma.values
    ]  # fmt: skip


def _geometric(ratios: xr.DataArray, over: str) -> xr.DataArray:
    logs = ratios.copy(data=np.log(ratios.values)).mean(over)
    return logs.copy(data=np.exp(logs.values))


# --- the sphere ---


def sphere(seeds: Sequence[int], steps: int) -> xr.Dataset:
    """Directions of the perceptron's hidden weights with |W| by a law: angles, over seed, law, step, weight."""
    inner = {key: ["law", "step", "weight"] for key in ("apart", "length")}
    inner |= {key: ["step", "weight"] for key in ("travelled", "real_length")}
    given = dict(laws=list(SPHERE_LAWS), lr=3e-3, weight_decay=0.3, gamma=0.9, steps=steps)
    found = grid(runs.sphere, "sphere", {"seed": seeds}, inner, **given)
    return found.assign_coords(law=list(SPHERE_LAWS), step=np.arange(1, steps + 1))


def apart(found: xr.Dataset, law: str) -> Array:
    """Final angle to the real direction over the angle travelled, mean over the weights, (seed,)."""
    return (found.apart.sel(law=law) / found.travelled).isel(step=-1).mean("weight").values


def lengths(found: xr.Dataset, law: str) -> Array:
    """Length of the path on the sphere over that of the real one, mean over the weights, (seed,)."""
    return (found.length.sel(law=law) / found.real_length).isel(step=-1).mean("weight").values


def sphere_rows(found: xr.Dataset) -> Rows:
    """For a table: every law, the angle at the end over the angle travelled, the length over the real one."""
    names = {"identity": "true ‖W‖", "nudged": "true ‖W‖, start turned by 0.001", "paper": "paper's law"}
    return [
        (names.get(law, f"{law} law"), _with_interval(apart(found, law), ".3f"),
         _with_interval(lengths(found, law), ".3f"))
        for law in SPHERE_LAWS
    ]  # fmt: skip


# --- the direct test ---


def direct(task: str, lrs: Sequence[float], seeds: Sequence[int], steps: int, every: int) -> xr.Dataset:
    """Every arm at every learning rate, over arm, seed, lr; ``stopped`` and ``validation`` as in ``lab.measures``."""
    run, classes = DIRECT[task]
    inner = {key: ["lr", "evaluation"] for key in ("validation_loss", "test_loss")}
    inner |= {"rms": ["lr"], "steps": ["evaluation"]}
    axes: dict[str, Any] = {"arm": {name: dict(arm=key) for name, key in ARMS.items()}, "seed": seeds}
    found = grid(run, f"{task}: direct test", axes, inner, lrs=lrs, weight_decay=0.1, steps=steps, every=every)
    return with_losses(found.drop_vars("steps").assign_coords(lr=list(lrs)), float(np.log(classes)))


def with_losses(found: xr.Dataset, chance: float) -> xr.Dataset:
    """Adds, over arm, seed, lr: ``validation``, the least of a run, and ``stopped``, the test loss where it is reached.

    A run that diverged has the loss ``chance``.
    """
    order = ("arm", "seed", "lr", "evaluation")
    curves = {name: found[name].transpose(*order).values.astype(float) for name in ("validation_loss", "test_loss")}
    accuracy = np.zeros_like(curves["test_loss"])
    numbers = judged({**curves, "test_accuracy": accuracy}, np.arange(accuracy.shape[-1], dtype=float), 0.0, chance)
    return found.assign({name: (order[:3], numbers[name]) for name in ("validation", "stopped")})


def losses(found: xr.Dataset) -> xr.DataArray:
    """Test loss of the tuned runs, where the validation loss was least, (arm, seed)."""
    return found.stopped.sel(arm=found.arm, lr=tuned(found)).transpose("arm", "seed")


def comparisons(loss: xr.DataArray) -> dict[str, Array]:
    """What the claims of a task are judged by, from (arm, seed): nats, paired by seed, (seed,)."""
    a, b, c, d, by_tensor, resized = (loss.sel(arm=name).values for name in ARMS)
    return {
        "benefit": c - a, "back": (c - b) - (c - a) / 2, "back-scalar": (c - by_tensor) - (c - a) / 2, "wins": c - b,
        "specific": (a - d) - (c - b) / 2, "not-size": resized - b,
    }  # fmt: skip


_COMPARED = {
    "benefit": ["layers, AdamW", "no layers, AdamW"],
    "back": ["layers, AdamW", "no layers, AdamW", "no layers, 2-Adam"],
    "back-scalar": ["layers, AdamW", "no layers, AdamW", "no layers, 2-Adam by tensor"],
    "wins": ["no layers, AdamW", "no layers, 2-Adam"],
    "specific": ["layers, AdamW", "layers, 2-Adam", "no layers, AdamW", "no layers, 2-Adam"],
    "not-size": ["no layers, 2-Adam", "no layers, AdamW resized"],
}


def edge_remark(found: xr.Dataset, comparison: str) -> str:
    """Which of the arms of a comparison have their tuned rate at the edge of the grid, in words, or ""."""
    arms = [arm for arm in on_edge(found) if arm in _COMPARED[comparison]]
    return f"tuned rate at the grid's edge: {'; '.join(arms)}" if arms else ""


def worst_found(found: Mapping[str, xr.Dataset], arm: str = "layers, AdamW") -> int:
    """On how many tasks an arm at the least learning rate is surely behind the same arm tuned; one seed is sure."""
    count = 0
    for each in found.values():
        differences = each.stopped.sel(arm=arm).isel(lr=0) - losses(each).sel(arm=arm)
        middle, (low, _) = mean_interval(differences.values)
        count += bool(middle > 0 if differences.size < 2 else low > 0)
    return count


def direct_rows(found: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: every task and arm, its tuned rate, its loss, what it wins over AdamW without layers, its size."""
    rows: Rows = []
    for task, each in found.items():
        rates, loss, edge = tuned(each), losses(each), on_edge(each)
        for arm in ARMS:
            rate = float(rates.sel(arm=arm))
            won = loss.sel(arm="no layers, AdamW") - loss.sel(arm=arm)
            size = float(each.rms.sel(arm=arm, lr=rate).mean())
            gained = "–" if arm == "no layers, AdamW" else _with_interval(won.values, "+.3f")
            rows.append((task, arm, f"{rate:g}{' (edge)' if arm in edge else ''}",
                         f"{float(loss.sel(arm=arm).mean()):.3f}", gained, f"{size:.2f}"))  # fmt: skip
    return rows
