"""Page 05, k-Adam against Adam: the page's runs, and what makes numbers of them.

An *arm* is an optimizer under test: Adam, k-Adam under one of the four schedules, or ``one lag``. Losses come as arrays
with named axes ``arm``, ``lr``, ``seed``, ``step``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from kadam import SCHEDULES, KAdam, make_stages, stability, update
from kadam.update import Stage
from lab.experiments import k_adam
from lab.grid import grid
from lab.hostile import Rates, hostile_sequences, random_rates
from lab.measures import best_lr, judged, lr_of_size, on_edge, tuned
from lab.records import Result
from lab.statistics import EVERYTHING, Estimate, ahead, simultaneous_intervals
from lab.sweep import sweep

Array = NDArray[np.float64]
Run = Callable[..., Result]
Settings = dict[str, Any]
Rows = list[tuple[str, ...]]

BETAS = (0.9, 0.999)  # torch's order: gamma, beta
TWOS = [f"{schedule}, k = 2" for schedule in SCHEDULES]
LONG = [name for name in TWOS if not name.startswith("scaled")]  # whose second moments remember for long
ONE_LAG: Settings = dict(k=2, betas=[(0.9, 0.999), (0.0, 0.999)])
PAIRS = ["Adam", *TWOS, "one lag"]  # k <= 2
LEVEL = 0.02  # nats: two arms are level if they surely differ by no more; what another seed does to tuned Adam
POINTS = 0.05  # of accuracy, that an arm may lose from k = 2 on and still degrade gracefully
OBSERVED = ("validation_loss", "test_loss", "test_accuracy", "update_rms")


# --- the arms ---


def named(schedule: str, k: int) -> str:
    """The name of an arm; k = 1 is Adam under every schedule."""
    return "Adam" if k == 1 else f"{schedule}, k = {k}"


def arms(ks: Sequence[int]) -> dict[str, Settings]:
    """Every arm by its name, with the arguments of ``KAdam`` that make it."""
    of_k: dict[str, Settings] = {
        named(schedule, k): dict(k=k, schedule=schedule) for schedule in SCHEDULES for k in ks if k > 1
    }
    return {"Adam": dict(k=1), **of_k, "one lag": ONE_LAG}


def only(given: Mapping[str, Settings], names: Sequence[str]) -> dict[str, Settings]:
    """The arms with these names, in the order of ``given``."""
    return {name: arm for name, arm in given.items() if name in names}


def stages_of(arm: Settings) -> list[Stage]:
    """Its stages, each with its gamma and beta."""
    return make_stages(arm.get("betas", BETAS), arm["k"], arm.get("schedule", "naive"))


def gammas_of(arm: Settings) -> list[float]:
    """Its decay rates of the first moment, a stage each."""
    return [float(stage.gamma) for stage in stages_of(arm)]


def gains(of: Mapping[str, Settings]) -> dict[str, float]:
    """By what factor each arm amplifies, in noise and over long times, what Adam does."""
    return {name: k_adam.gain(gammas_of(arm)) for name, arm in of.items()}


def limits(of: Mapping[str, Settings]) -> dict[str, float]:
    """The largest (learning rate times curvature) at which each arm's chain of first moments is stable."""
    return {name: k_adam.largest_stable_step(gammas_of(arm)) for name, arm in of.items()}


def schedule_rows(of: Mapping[str, Settings]) -> Rows:
    """For a table: rates of each arm's last stage, mean lag of its chain of averages in steps, gain, limit."""
    rows: Rows = []
    for name, arm in of.items():
        gammas, last = gammas_of(arm), stages_of(arm)[-1]
        lag = sum(gamma / (1 - gamma) for gamma in gammas)
        numbers = (f"{last.gamma:.4f}", f"{last.beta:.5f}", f"{lag:.2f}", f"{k_adam.gain(gammas):.2f}")
        rows.append((name, *numbers, f"{k_adam.largest_stable_step(gammas):.3g}"))
    return rows


# --- checks of the derivation ---


def simulated_gain_error(of: Mapping[str, Settings], steps: int = 1500) -> float:
    """The largest relative error of the gain's formula, against k-Adam on simulated noise (``k_adam.in_noise``)."""
    errors = [
        k_adam.in_noise(stages_of(arm), steps)["response"][-1] / k_adam.gain(gammas_of(arm)) - 1 for arm in of.values()
    ]
    return float(np.abs(errors).max())


def settles(gammas: Sequence[float], steps_of_one: ArrayLike, steps: int = 20_000) -> NDArray[np.bool_]:
    """Whether k-Adam with frozen denominators comes to rest on a quadratic, by carrying out its steps.

    Args:
        gammas: decay rates of the first moments, a stage each.
        steps_of_one: learning rate times curvature, (n,).
        steps: how many to carry out.

    Returns:
        (n,): whether the parameter is smaller over the last tenth of the steps than over the first.
    """
    size = np.asarray(steps_of_one, dtype=float)
    theta, moments = np.ones_like(size), [np.zeros_like(size) for _ in gammas]
    early, late = np.zeros_like(size), np.zeros_like(size)
    with np.errstate(over="ignore", invalid="ignore"):
        for n in range(steps):
            passed = theta
            for i, gamma in enumerate(gammas):
                moments[i] = gamma * moments[i] + (1 - gamma) * passed
                passed = moments[i]
            theta = theta - size * passed
            if n < steps // 10:
                early = np.maximum(early, np.abs(theta))
            elif n >= steps - steps // 10:
                late = np.maximum(late, np.abs(theta))  # NaN, from infinity less infinity, stays
        return late < early


def limits_met(of: Mapping[str, Settings], bearable: Mapping[str, float]) -> int:
    """How many arms settle on a quadratic 2 % below their limit, and do not 2 % above."""
    pairs = [settles(gammas_of(arm), bearable[name] * np.array([0.98, 1.02])) for name, arm in of.items()]
    return sum(bool(below and not above) for below, above in pairs)


def over_bounds(gradients: Array, *rates: Rates) -> tuple[float, float]:
    """The largest |update| after the first step over the bound of the last stage, and over that of the first one.

    ``gradients``, (sequences, steps), go through k-Adam with these pairs of rates (``lab.hostile``), at eps = 0.
    """
    stages = [Stage(torch.tensor(gamma), torch.tensor(beta)) for beta, gamma in rates]
    columns = torch.tensor(gradients).T
    moments = [update.zeros(columns[0])] * len(stages)
    largest = [0.0, 0.0]
    for n, gradient in enumerate(columns):
        moments = update.cascade(gradient, moments, n + 1, stages, 0.0)
        if n:
            size = update.output(moments[-1], n + 1, stages[-1], 0.0).abs().numpy()
            found = [float((size / stability.exact_bound(n, *pair)).max()) for pair in (rates[-1], rates[0])]
            largest = [max(before, now) for before, now in zip(largest, found, strict=True)]
    return largest[0], largest[1]


def bound_tried(count: int, steps: int = 200) -> tuple[float, float]:
    """3-Adam with random rates on ``count`` sequences made to break the bound (``lab.hostile``).

    Returns:
        the largest |update| after the first step over the bound of the last stage, and log10 of that over the first's.
    """
    generator = np.random.default_rng(0)
    gradients, last = hostile_sequences(count, steps, generator)
    over_last, over_first = over_bounds(gradients, *(random_rates(count, generator) for _ in range(2)), last)
    return over_last, float(np.log10(over_first))


def state_excess(ks: Sequence[int]) -> float:
    """The largest difference between 8 k and the bytes of state that k-Adam keeps for a float32 parameter."""
    kept = {k: k_adam.state_bytes(lambda params, lr, k=k: KAdam(params, lr=lr, k=k)) for k in ks}
    return max(abs(found - 8 * k) for k, found in kept.items())


# --- training ---


@dataclass(frozen=True)
class Task:
    """A task: its run, the test loss that counts as reached, the number of classes, and the run's other arguments."""

    run: Run
    target: float
    classes: int
    settings: Mapping[str, Any]
    alone: bool = False  # runs one by one: faster where the network is not tiny


def trained(
    name: str, task: Task, of: Mapping[str, Settings], lrs: Sequence[float], seeds: Sequence[int]
) -> xr.Dataset:
    """Every arm at every learning rate and seed.

    Returns:
        ``validation_loss``, ``test_loss``, ``test_accuracy``, ``update_rms``, (arm, lr, seed, step), and what
        ``lab.measures.judged`` makes of them, (arm, lr, seed): ``loss``, ``stopped``, ``validation``, ``accuracy``,
        ``steps``; ``diverged``, likewise.
    """
    calls = k_adam.groups(of, lrs, seeds, **task.settings)
    results = (_alone if task.alone else sweep)(task.run, calls, name)
    curves = {what: k_adam.collected(results, of, lrs, seeds, what) for what in OBSERVED}
    names: dict[str, Sequence[Any]] = {"arm": list(of), "lr": list(lrs), "seed": list(seeds)}
    return _dataset(curves, names, results[0]["steps"], task)


def _dataset(curves: Mapping[str, Array], names: Mapping[str, Sequence[Any]], at: Array, task: Task) -> xr.Dataset:
    numbers: dict[str, Any] = dict(judged(curves, at, task.target, float(np.log(task.classes))))
    numbers["diverged"] = np.isnan(curves["test_loss"]).any(axis=-1)
    variables: dict[str, Any] = {what: ((*names, "step"), values) for what, values in curves.items()}
    variables |= {what: (tuple(names), values) for what, values in numbers.items()}
    return xr.Dataset(variables, {**names, "step": at})


def _alone(run: Run, calls: Sequence[Settings], label: str) -> list[Result]:
    """A sweep with a run for each member, put together again as the groups that ``collected`` expects."""
    runs = iter(sweep(run, [{**call, "members": [member]} for call in calls for member in call["members"]], label))
    grouped = [[next(runs) for _ in call["members"]] for call in calls]
    return [
        {"steps": group[0]["steps"]} | {what: np.concatenate([run[what] for run in group]) for what in OBSERVED}
        for group in grouped
    ]


def chosen(data: xr.Dataset, lr: float | None = None) -> xr.Dataset:
    """The runs of every arm at ``lr``, or at its own tuned learning rate: no axis ``lr`` any more."""
    rates = tuned(data) if lr is None else xr.full_like(tuned(data), lr)
    return data.sel(arm=data.arm, lr=rates)


# --- ahead, behind, level ---


def less_adam(data: xr.Dataset, names: Sequence[str] = TWOS, of: str = "loss") -> Array:
    """Each arm's loss less Adam's, paired by seed, (names, seeds), from ``chosen`` runs."""
    return (data[of].sel(arm=list(names)) - data[of].sel(arm="Adam")).transpose("arm", "seed").values


def noted(estimate: Estimate, note: str) -> Estimate:
    """The estimate with a note behind its words, if there is one."""
    return replace(estimate, shown=f"{estimate.shown} ({note})") if note else estimate


def count(data: xr.Dataset, lr: float | None = None, of: str = "loss") -> Estimate:
    """Of the four schedules, under how many 2-Adam is ahead of Adam, at ``lr`` or tuned; says which are on the edge."""
    edge = on_edge(data, ["Adam", *TWOS]) if lr is None else []
    return noted(ahead(less_adam(chosen(data, lr), of=of)), f"{', '.join(edge)} at the grid's edge" if edge else "")


def word(low: float, high: float, margin: float = LEVEL) -> str:
    """What an interval of a difference says: level (within the margin), ahead, behind, or undecided."""
    if -margin <= low and high <= margin:
        return "level"
    return "ahead" if high < 0 else "behind" if low > 0 else "undecided"


def compared(differences: Array) -> list[tuple[float, float, float, str]]:
    """Mean, interval and word of each of several differences, (comparisons, seeds); the intervals hold together."""
    means, intervals = simultaneous_intervals(differences)
    return [
        (float(mean), float(low), float(high), word(low, high))
        for mean, (low, high) in zip(means, intervals, strict=True)
    ]


def task_rows(name: str, data: xr.Dataset, shared_lr: float) -> Rows:
    """For a table: every arm with k <= 2 on a task, at the shared rate and tuned."""
    at_shared, at_tuned, rates, edge = chosen(data, shared_lr), chosen(data), tuned(data), on_edge(data)
    others = [arm for arm in PAIRS if arm != "Adam" and arm in data.arm]
    found = [compared(less_adam(each, others)) for each in (at_shared, at_tuned)]
    rows: Rows = []
    for arm in ["Adam", *others]:
        differences = [_shown(each[others.index(arm)]) if arm in others else "–" for each in found]
        own = at_tuned.sel(arm=arm)
        steps = np.median(own.steps)
        rows.append(
            (name, arm, differences[0], f"{rates.sel(arm=arm).item():g}{' (edge)' if arm in edge else ''}",
             f"{own.loss.mean().item():.3f}", differences[1], f"{steps:.0f}" if np.isfinite(steps) else "never")
        )  # fmt: skip
        name = ""
    return rows


def _shown(found: tuple[float, float, float, str]) -> str:
    mean, low, high, said = found
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] {said}"


def count_rows(tasks: Mapping[str, xr.Dataset], shared_lr: float) -> Rows:
    """For a table: under how many schedules 2-Adam is ahead, by the best test loss and without an oracle."""
    rows: Rows = []
    for name, data in tasks.items():
        for words, lr in ((f"{shared_lr:g} for all", shared_lr), ("tuned", None)):
            found = [count(data, lr, of) for of in ("loss", "stopped")]
            rows.append((name, words, *(f"{each.value:.0f} {_whole(each)}" for each in found)))
    return rows


def _whole(estimate: Estimate) -> str:
    low, high = estimate.interval(0.95) if estimate.interval else EVERYTHING
    return f"[{low:.0f}, {high:.0f}]"


# --- more stages ---


def lost(data: xr.Dataset, most: int) -> Array:
    """Accuracy that each schedule loses from k = 2 to k = ``most``, (schedules, seeds), from ``chosen`` runs."""
    few, many = (
        data.accuracy.sel(arm=[named(s, k) for s in SCHEDULES]).transpose("arm", "seed").values for k in (2, most)
    )
    return np.asarray(few - many)


def lost_rows(data: xr.Dataset, most: int, shared_lr: float) -> Rows:
    """For a table: percentage points that each schedule loses, at the shared rate and tuned."""
    found = [compared(100 * lost(chosen(data, lr), most)) for lr in (shared_lr, None)]
    shown = [[f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high, _ in each] for each in found]
    return list(zip(SCHEDULES, *shown, strict=True))


def graceful(data: xr.Dataset, most: int, lr: float | None = None) -> Estimate:
    """How many schedules lose at most ``POINTS`` of accuracy from k = 2 to k = ``most``, at ``lr`` or tuned."""
    edge = on_edge(data, [named(s, k) for s in SCHEDULES for k in (2, most)]) if lr is None else []
    return noted(ahead(lost(chosen(data, lr), most) - POINTS), f"{', '.join(edge)} at the grid's edge" if edge else "")


# --- steps of equal size ---


def size_at(data: xr.Dataset) -> xr.DataArray:
    """rms of the update (one coordinate, without the learning rate), mean over seeds and the run, (arm, lr)."""
    return xr.DataArray(
        np.nanmean(data.update_rms.values, axis=(2, 3)), {"arm": data.arm, "lr": data.lr}, ["arm", "lr"]
    )


def equal_sizes(data: xr.Dataset, shared_lr: float, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """For each arm two learning rates: of Adam with steps as large as the arm's at ``shared_lr``, and of the arm with
    steps as large as tuned Adam's; from the sizes measured on the grid, so at most from its first to its last rate."""
    size, lrs, rate = size_at(data), [float(lr) for lr in data.lr.values], tuned(data).sel(arm="Adam").item()
    adam = size.sel(arm="Adam")
    return {
        name: (
            round(lr_of_size(shared_lr * size.sel(arm=name, lr=shared_lr).item(), lrs, adam.values), 9),
            round(lr_of_size(rate * adam.sel(lr=rate).item(), lrs, size.sel(arm=name).values), 9),
        )
        for name in names
    }


def sized(
    data: xr.Dataset, task: Task, of: Mapping[str, Settings], shared_lr: float, names: Sequence[str]
) -> tuple[xr.Dataset, xr.Dataset]:
    """The runs at ``equal_sizes``: Adam's, in the place of each arm; and each arm's own. No axis ``lr``."""
    rates, seeds = equal_sizes(data, shared_lr, names), [int(seed) for seed in data.seed.values]
    members = [
        [{"k": 1, "lr": raised} for raised, _ in rates.values()],
        [{**of[name], "lr": lowered} for name, (_, lowered) in rates.items()],
    ]
    calls = [dict(members=group, seed=seed, **task.settings) for group in members for seed in seeds]
    results = sweep(task.run, calls, "steps of equal size")
    found = []
    for some in (results[: len(seeds)], results[len(seeds) :]):
        curves = {what: np.stack([result[what] for result in some], axis=1) for what in OBSERVED}
        found.append(_dataset(curves, {"arm": list(names), "seed": seeds}, results[0]["steps"], task))
    return found[0], found[1]


def size_errors(size: ArrayLike, wanted: ArrayLike) -> Array:
    """By how much steps that should be of equal size are not: |size / wanted - 1|."""
    return np.abs(np.asarray(size) / np.asarray(wanted) - 1)


@dataclass(frozen=True)
class Sized:
    """A comparison at equal size: the arms' losses less Adam's, (arms, seeds), and the largest error of a size."""

    differences: Array
    error: float

    def count(self) -> Estimate:
        """Under how many of the four schedules 2-Adam is ahead."""
        return noted(ahead(self.differences[: len(TWOS)]), f"sizes within {100 * self.error:.0f} %")


def at_equal_size(
    data: xr.Dataset, as_adam: xr.Dataset, as_arm: xr.Dataset, shared_lr: float, names: Sequence[str]
) -> dict[str, Sized]:
    """Both comparisons, by name: the arm at ``shared_lr``, and Adam tuned."""
    rates, size, rate = equal_sizes(data, shared_lr, names), size_at(data), tuned(data).sel(arm="Adam").item()
    raised, lowered = np.transpose(list(rates.values()))
    own, others = (
        size.sel(arm=list(names), lr=shared_lr).values * shared_lr,
        size.sel(arm="Adam", lr=rate).item() * rate,
    )
    made = [each.update_rms.mean(("seed", "step")).values * lr for each, lr in ((as_adam, raised), (as_arm, lowered))]
    losses = data.loss.transpose("arm", "lr", "seed")
    return {
        f"2-Adam at {shared_lr:g}": Sized(
            losses.sel(arm=list(names), lr=shared_lr).values - as_adam.loss.values,
            float(size_errors(made[0], own)[: len(TWOS)].max()),
        ),
        "Adam tuned": Sized(
            as_arm.loss.values - losses.sel(arm="Adam", lr=rate).values,
            float(size_errors(made[1], others)[: len(TWOS)].max()),
        ),
    }


# --- what the analysis predicts ---


def added_by_layers(plain: xr.Dataset, normalised: xr.Dataset, name: str = "inverse_exp, k = 2") -> Array:
    """What LayerNorm adds to ln(loss of an arm / loss of Adam), (seeds,), from ``chosen`` runs of both networks."""
    with_layers, without = (
        np.log(data.loss.sel(arm=name).values) - np.log(data.loss.sel(arm="Adam").values)
        for data in (normalised, plain)
    )
    return np.asarray(with_layers - without)


def shifts(data: xr.Dataset) -> xr.DataArray:
    """log2 of each arm's learning rate of least validation loss over Adam's, (arm, seed), every seed by itself.

    The rate is the vertex of a parabola through the grid's best (``lab.measures.best_lr``).
    """
    losses = data.validation.transpose("lr", "arm", "seed")
    rates = best_lr([float(lr) for lr in data.lr.values], losses.values)
    found = xr.DataArray(np.log2(rates), {"arm": data.arm, "seed": data.seed}, ["arm", "seed"])
    return found - found.sel(arm="Adam", drop=True)


def gain_errors(found: Sequence[xr.DataArray], gain: Mapping[str, float]) -> Array:
    """``shifts`` of several tasks less what the gain predicts, -log2 of it: (tasks x LONG, seeds)."""
    predicted = -np.log2([[gain[name]] for name in LONG])
    return np.concatenate([shift.sel(arm=LONG).values - predicted for shift in found])


def in_order(values: Array, theory: Sequence[float]) -> Array:
    """Differences of neighbours, (n - 1, seeds), when ``values``, (n, seeds), are sorted by falling ``theory``, (n,).

    All are below zero if the values are in the order of the theory.
    """
    return np.diff(values[np.argsort(theory)[::-1]], axis=0)


def gain_order(found: Sequence[xr.DataArray], gain: Mapping[str, float]) -> Array:
    """``in_order`` of the tuned rates by falling 1 / gain, for each of several tasks: (tasks x 2, seeds)."""
    return np.concatenate([in_order(shift.sel(arm=LONG).values, [1 / gain[name] for name in LONG]) for shift in found])


def lag_lowers(found: Sequence[xr.DataArray]) -> Array:
    """log2 of the tuned rate of ``naive`` over that of ``one lag``, mean over the tasks: (seeds,)."""
    return np.mean([shift.sel(arm="naive, k = 2").values - shift.sel(arm="one lag").values for shift in found], axis=0)


def edges(of: Mapping[str, Settings], seeds: Sequence[int], steps: int, every: int) -> xr.Dataset:
    """Full-batch runs: ``step``, learning rate times preconditioned sharpness, (arm, seed, at)."""
    found = grid(k_adam.edge_of_stability, "full batches: edge of stability", {"arm": of, "seed": list(seeds)},
                 {"step": ["at"], "steps": ["at"]}, steps=steps, every=every)  # fmt: skip
    return found[["step"]].assign_coords(at=found.steps.values[0, 0])


def settled(runs: xr.Dataset, steps: int) -> xr.DataArray:
    """log2 of where each full-batch run settles: its mean over the second half, (arm, seed)."""
    late = np.log2(runs.step.where(runs["at"] > steps / 2, drop=True))
    return late.mean("at").transpose("arm", "seed")


def over_limit(late: xr.DataArray, limit: Mapping[str, float], names: Sequence[str] = LONG) -> Array:
    """``settled`` values less log2 of each arm's own limit, (names, seeds)."""
    return late.sel(arm=list(names)).values - np.log2([[limit[name]] for name in names])


def settled_over(late: xr.DataArray, limit: Mapping[str, float], arm: str, other: str) -> float:
    """log2 of where ``arm`` settles over the limit of ``other``, mean over seeds."""
    return float(late.sel(arm=arm).mean() - np.log2(limit[other]))


def edge_order(late: xr.DataArray, limit: Mapping[str, float]) -> Array:
    """``in_order`` of the settled values by falling limit, (2, seeds)."""
    return in_order(late.sel(arm=LONG).values, [limit[name] for name in LONG])


def edge_rows(late: xr.DataArray, limit: Mapping[str, float]) -> Rows:
    """For a table: where each arm settles, its limit, and their ratio with its interval for all arms together."""
    names = [str(name) for name in late.arm.values]
    found = compared(over_limit(late, limit, names))
    rows: Rows = [
        (name, f"{2 ** late.sel(arm=name).mean().item():.3g}", f"{limit[name]:.3g}",
         f"{2**mean:.2f} [{2**low:.2f}, {2**high:.2f}]")
        for name, (mean, low, high, _) in zip(names, found, strict=True)
    ]  # fmt: skip
    return rows


def watched(of: Mapping[str, Settings], seeds: Sequence[int], lr: float, steps: int) -> dict[str, dict[str, Array]]:
    """Every stage of each arm in training, by arm: ``size``, ``agreement``, (seeds, evaluations, k), and ``steps``."""
    found = {}
    for name, arm in of.items():
        calls = [dict(**arm, lr=lr, seed=seed, steps=steps, every=max(1, steps // 20)) for seed in seeds]
        results = sweep(k_adam.stages_in_training, calls, f"stages in training: {name}")
        found[name] = {what: np.stack([run[what] for run in results]) for what in ("size", "agreement")}
        found[name]["steps"] = results[0]["steps"]
    return found


def stage_rows(found: Mapping[str, Mapping[str, Array]], of: Mapping[str, Settings]) -> Rows:
    """For a table: of every arm's stages, in the second half of training, size and agreement; the size in noise."""

    def listed(values: Array) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    rows: Rows = []
    for name, values in found.items():
        late = values["steps"] > values["steps"][-1] / 2
        size, agreement = (values[what][:, late].mean(axis=(0, 1)) for what in ("size", "agreement"))
        rows.append((name, listed(size), listed(k_adam.noise_sizes(gammas_of(of[name]))), listed(agreement)))
    return rows


# --- one lag, other optimizers, controls ---


def best_of_four(data: xr.Dataset) -> str:
    """Of the four schedules the one of least validation loss, tuned."""
    losses = chosen(data).validation.sel(arm=TWOS).mean("seed")
    return TWOS[int(losses.values.argmin())]


def least(data: xr.Dataset, names: Sequence[str]) -> str:
    """The arm of least test loss in the mean over seeds, from ``chosen`` runs."""
    return names[int(data.loss.sel(arm=list(names)).mean("seed").values.argmin())]


def less_best(data: xr.Dataset) -> Array:
    """Loss of ``one lag`` less that of the ``best_of_four``, tuned, (seeds,)."""
    losses = chosen(data).loss
    return np.asarray(losses.sel(arm="one lag").values - losses.sel(arm=best_of_four(data)).values)


def versus_rows(tasks: Mapping[str, xr.Dataset]) -> Rows:
    """For a table: ``one lag`` less each schedule, tuned, on every task; the intervals of a task hold together."""
    rows: Rows = []
    for name, data in tasks.items():
        losses = chosen(data).loss
        differences = losses.sel(arm="one lag").values - losses.sel(arm=TWOS).transpose("arm", "seed").values
        rows.append((name, *(f"{mean:+.3f} {said}" for mean, _, _, said in compared(differences))))
    return rows


def baselines(lrs: Sequence[float], seeds: Sequence[int], task: Task) -> xr.Dataset:
    """Other optimizers on the convolutional network; the learning rates of SGD are a hundred times as large.

    ``lr`` is the place on the grid; ``rate``, (arm, lr), the learning rate itself.
    """
    factor = {name: 100 if name.startswith("SGD") else 1 for name in k_adam.BASELINES}
    calls = [
        dict(optimizer=name, lr=factor[name] * lr, seed=seed, **task.settings)
        for name in factor for lr in lrs for seed in seeds
    ]  # fmt: skip
    results = sweep(k_adam.baseline_on_mnist1d, calls, "other optimizers")
    shape = len(factor), len(lrs), len(seeds), -1
    curves = {what: np.stack([run[what] for run in results]).reshape(shape) for what in OBSERVED[:3]}
    names: dict[str, Sequence[Any]] = {"arm": list(factor), "lr": list(lrs), "seed": list(seeds)}
    found = _dataset(curves, names, results[0]["steps"], task)
    return found.assign(rate=(("arm", "lr"), np.outer(list(factor.values()), lrs)))


def costs(rounds: int, ks: Sequence[int]) -> dict[str, float]:
    """Time of a training step over that with fused AdamW, by optimizer; varies from machine to machine."""
    (timed,) = sweep(k_adam.step_costs, [dict(rounds=rounds, ks=[k for k in ks if k > 1])], "time of a step")
    return dict(zip([str(name) for name in timed["names"]], map(float, timed["costs"]), strict=True)) | {"k = 1": 1.0}


def optimizer_rows(data: xr.Dataset, others: xr.Dataset, cost: Mapping[str, float]) -> Rows:
    """For a table: k <= 2 and the other optimizers, tuned; differences to Adam hold for all rows together."""
    ours, theirs = chosen(data).sel(arm=[name for name in PAIRS if name in data.arm]), chosen(others)
    losses = np.concatenate([each.loss.transpose("arm", "seed").values for each in (ours, theirs)])
    steps = np.concatenate([np.median(each.steps.transpose("arm", "seed").values, axis=1) for each in (ours, theirs)])
    names, edge = [*map(str, ours.arm.values), *map(str, theirs.arm.values)], on_edge(data) + on_edge(others)
    found = [None, *compared(losses[1:] - losses[0])]
    rows: Rows = []
    for name, loss, at, difference in zip(names, losses, steps, found, strict=True):
        memory = 8.0 if name == "Adam" else 16.0  # k1-is-adamw and state-bytes
        if name in k_adam.BASELINES:
            memory = k_adam.state_bytes(k_adam.BASELINES[name])
        time = cost[name if name in cost else "k = 1" if name == "Adam" else "k = 2"]
        reached = f"{at:.0f}" if np.isfinite(at) else "never"
        less = _shown(difference) if difference else "–"
        marked = name + (" (edge)" if name in edge else "")
        rows.append((marked, f"{loss.mean():.3f}", less, reached, f"{memory:.0f}", f"{time:.2f}"))
    return rows


def other_seeds(task: Task, seeds: Sequence[int], lr: float) -> Array:
    """Best test loss of Adam at ``lr`` on seeds that nothing else uses, (seeds,)."""
    calls = [dict(members=[{"k": 1, "lr": lr}], seed=1000 + seed, **task.settings) for seed in seeds]
    return np.array([np.nanmin(run["test_loss"]) for run in sweep(task.run, calls, "control")])


def surely_ahead(differences: ArrayLike) -> int:
    """1 if one comparison, (seeds,), counts as surely ahead by ``lab.statistics.ahead``, else 0; by the mean alone
    where fewer than three seeds allow no interval."""
    estimate = ahead(np.asarray(differences, dtype=float)[None])
    low = estimate.interval(0.95)[0] if estimate.interval and (estimate.n or 0) >= 3 else estimate.value
    return int(low)
