"""What is done around a step of AdamW: compilation, schedulers, loss scaling, autocast, clipping, averaging.

The yardstick is AdamW under the same treatment, to the last bit; a compiled step rounds differently.
"""

import contextlib
import shutil
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import lr_scheduler, swa_utils

from kadam import KAdam

# KAdam's flags, and those of the AdamW that has the same implementation
IMPLEMENTATIONS = {
    "default": ({}, {"fused": True}),
    "loop": ({"foreach": False}, {"foreach": False}),
    "foreach": ({"foreach": True}, {"foreach": True}),
    "fused": ({"fused": True}, {"fused": True}),
}
each_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3))


def batches(steps):
    return torch.randn(steps, 16, 10, generator=torch.Generator().manual_seed(1))


def loss_of(model, x):
    return (model(x) ** 2).mean()


def values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def pair(name, **arguments):
    """Two equal models, the first one with AdamW, the second one with k = 1."""
    ours, theirs = IMPLEMENTATIONS[name]
    a, b = network(), network()
    return (a, torch.optim.AdamW(a.parameters(), **theirs, **arguments)), (
        b,
        KAdam(b.parameters(), k=1, **ours, **arguments),
    )


# --- torch.compile


@pytest.fixture
def graphs():
    """Gives the number of graphs that were compiled since it was last asked, and of breaks between them."""

    def reset():
        torch.compiler.reset()
        counters.clear()

    def count():
        found = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        reset()
        return found

    reset()
    yield count
    reset()


def train_compiled(make, lr, backend, steps=6, whole=False):
    """Train with lr falling every step; ``whole`` compiles forward and backward pass and step as one function."""
    model = network()
    optimizer = make(model.parameters(), lr=lr)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda n: 0.7**n)

    def step(x):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        if not whole:
            step_of_optimizer()
        else:
            optimizer.step()

    def compiled(function):
        return function if backend is None else torch.compile(function, backend=backend)

    step_of_optimizer = compiled(optimizer.step)
    run = compiled(step) if whole else step
    for x in batches(steps):
        run(x)
        scheduler.step()
    return values(model)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert (a - values(network())).abs().mean() > 1e-3  # else both might have stood still


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "arguments", [{"k": 1}, {"k": 2}, {"k": 2, "foreach": False}, {"k": 2, "fused": True}], ids=str
)
def test_a_compiled_step_is_compiled_once(graphs, arguments, backend):
    def make(params, lr):
        return KAdam(params, lr, **arguments)

    compiled = train_compiled(make, torch.tensor(0.01), backend)
    ours = graphs()
    train_compiled(torch.optim.AdamW, torch.tensor(0.01), "eager")
    assert ours == graphs() and ours[0] == 1
    close(compiled, train_compiled(make, 0.01, None))


def test_a_number_as_lr_is_compiled_anew(graphs):
    """The count above can be more than one, for AdamW as for KAdam."""
    train_compiled(KAdam, 0.01, "eager")
    ours = graphs()
    train_compiled(torch.optim.AdamW, 0.01, "eager")
    assert ours == graphs() and ours[0] > 1


@pytest.mark.parametrize("k", [1, 2])
def test_a_whole_training_step_is_compiled_once(graphs, k):
    def make(params, lr):
        return KAdam(params, lr, k=k)

    compiled = train_compiled(make, torch.tensor(0.01), "aot_eager", whole=True)
    ours = graphs()
    close(compiled, train_compiled(make, 0.01, None))
    train_compiled(torch.optim.AdamW, torch.tensor(0.01), "aot_eager", whole=True)
    assert ours == graphs() and ours[0] == 2  # the loss and its gradient, the step


@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))) or " " in sys.prefix,
    reason="inductor needs a C++ compiler, and a path without a space",
)
def test_a_step_compiled_to_machine_code(graphs, tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing of an earlier run is taken
    with config.patch(compile_threads=1, cpp_cache_precompile_headers=False, fx_graph_cache=False):
        compiled = train_compiled(KAdam, torch.tensor(0.01), "inductor")
    assert graphs()[0] == 1
    close(compiled, train_compiled(KAdam, 0.01, None))


# --- learning-rate schedulers

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-3, max_lr=0.1, step_size_up=4),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
}
REWRITE_BETAS = {"OneCycleLR", "CyclicLR"}


def train_scheduled(model, optimizer, make):
    """Train, and give what the scheduler has set for each step."""
    scheduler = make(optimizer)
    seen = []
    for x in batches(10):
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"]))
        optimizer.step()
        scheduler.step(*([loss.item()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return seen


@pytest.mark.parametrize("name", ["default", "loop"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_act_as_on_adamw(scheduler, name):
    (a, theirs), (b, ours) = pair(name, lr=0.02)
    first, second = (train_scheduled(m, o, SCHEDULERS[scheduler]) for m, o in ((a, theirs), (b, ours)))
    assert first == second
    assert torch.equal(values(a), values(b))
    lrs, betas = map(set, zip(*second, strict=True))
    assert len(lrs) > 1 and (len(betas) > 1) == (scheduler in REWRITE_BETAS)
    assert all(type(pair) is tuple for pair in betas)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_stage_follows_a_scheduler(scheduler):
    model, other = network(), network()
    optimizer, by_hand = KAdam(model.parameters(), lr=0.02), KAdam(other.parameters(), lr=0.02)
    seen = train_scheduled(model, optimizer, SCHEDULERS[scheduler])
    for x, (lr, betas) in zip(batches(10), seen, strict=True):
        state = by_hand.state_dict()
        by_hand = KAdam(other.parameters(), lr=lr, betas=betas)  # made anew: nothing can be left from before
        state["param_groups"] = by_hand.state_dict()["param_groups"]
        by_hand.load_state_dict(state)
        by_hand.zero_grad()
        loss_of(other, x).backward()
        by_hand.step()
    assert torch.equal(values(model), values(other))


def test_a_scheduler_of_betas_cannot_rewrite_explicit_pairs():
    model = network()
    optimizer = KAdam(model.parameters(), betas=[(0.9, 0.99)] * 2)
    with pytest.raises(TypeError, match="Invalid betas"):
        train_scheduled(model, optimizer, SCHEDULERS["OneCycleLR"])
    assert torch.equal(values(model), values(network()))
    optimizer = KAdam(model.parameters(), betas=[(0.9, 0.99)] * 2)
    train_scheduled(model, optimizer, lambda o: lr_scheduler.OneCycleLR(o, 0.1, 12, cycle_momentum=False))
    assert not torch.equal(values(model), values(network()))


# --- GradScaler, autocast, clipping


def state_of(optimizer):
    return [value.clone() for state in optimizer.state.values() for value in state.values()]


def train_scaled(model, optimizer, bad, clip=False):
    """Train with a GradScaler and an infinite gradient in the steps ``bad``; gives the scale after each step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    written = []
    before = optimizer.register_step_pre_hook(
        lambda o, *_: written.append([p.grad.clone() for p in model.parameters()])
    )
    after = optimizer.register_step_post_hook(
        lambda o, *_: written.append([p.grad.clone() for p in model.parameters()])
    )
    scales = []
    for n, x in enumerate(batches(10)):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, x)).backward()
        if n in bad:
            model[0].weight.grad[3, 4] = torch.inf
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        parameters, state = values(model), state_of(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        assert torch.equal(parameters, values(model)) == (n in bad)
        if n in bad and state:
            assert all(map(torch.equal, state, state_of(optimizer)))
    before.remove()
    after.remove()
    return scales, written


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("bad", [{0, 5}, {4, 5}, set()], ids=str)
@pytest.mark.parametrize("k", [1, 2])
@each_implementation
def test_loss_scaling_skips_steps_with_infinite_gradients(name, k, bad, clip):
    model = network()
    optimizer = KAdam(model.parameters(), k=k, **IMPLEMENTATIONS[name][0])
    scales, written = train_scaled(model, optimizer, bad, clip)
    halved = [n for n in range(10) if scales[n] < (scales[n - 1] if n else 1024.0)]
    assert set(halved) == bad and max(scales) > min(scales)
    assert {state["step"].item() for state in optimizer.state.values()} == {10 - len(bad)}
    assert len(written) >= 2 * (10 - len(bad))
    for before, after in zip(written[::2], written[1::2], strict=True):
        assert all(torch.equal(p.nan_to_num(), q.nan_to_num()) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("clip", [False, True])
@each_implementation
def test_loss_scaling_acts_as_on_adamw(name, clip):
    (a, theirs), (b, ours) = pair(name)
    first, _ = train_scaled(a, theirs, {0, 5}, clip)
    second, _ = train_scaled(b, ours, {0, 5}, clip)
    assert first == second and torch.equal(values(a), values(b))


def test_loss_scaling_does_not_change_the_parameters():
    """A power of two is lost in no rounding; an unscaled gradient would change the second moment, and eps tells."""
    for name, (flags, _) in IMPLEMENTATIONS.items():
        a, b = network(), network()
        optimizer = KAdam(a.parameters(), eps=0.01, **flags)
        train_scaled(a, optimizer, set())
        train(b, KAdam(b.parameters(), eps=0.01, **flags))
        assert torch.equal(values(a), values(b)), name


def train(model, optimizer, context=contextlib.nullcontext, clip=None):
    for x in batches(10):
        optimizer.zero_grad()
        with context():
            loss = loss_of(model, x)
        loss.backward()
        if clip:
            clip(model.parameters())
        optimizer.step()


@each_implementation
def test_autocast_acts_as_on_adamw(name):
    (a, theirs), (b, ours) = pair(name)

    def context():
        return torch.autocast("cpu", torch.bfloat16)

    train(a, theirs, context)
    train(b, ours, context)
    assert torch.equal(values(a), values(b))
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in b.parameters())
    train(a, theirs)
    assert not torch.equal(values(a), values(b))


@pytest.mark.parametrize(
    "clip",
    [lambda ps: nn.utils.clip_grad_norm_(ps, 0.01), lambda ps: nn.utils.clip_grad_value_(ps, 0.001)],
    ids=["norm", "value"],
)
@each_implementation
def test_clipping_acts_as_on_adamw(name, clip):
    (a, theirs), (b, ours) = pair(name)
    train(a, theirs, clip=clip)
    train(b, ours, clip=clip)
    assert torch.equal(values(a), values(b))
    unclipped = network()
    train(unclipped, KAdam(unclipped.parameters(), k=1, **IMPLEMENTATIONS[name][0]))
    assert not torch.equal(values(unclipped), values(b))


# --- averages of the parameters


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("average", ["SWA", "EMA"])
def test_averages_of_the_parameters(average, k):
    model = network()
    optimizer = KAdam(model.parameters(), lr=0.01, k=k)
    decay = 0.5
    averaged = swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay) if average == "EMA" else None
    )
    scheduler = swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)
    expected, lrs = None, []
    for n, x in enumerate(batches(6)):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        averaged.update_parameters(model)
        scheduler.step()
        lrs.append(optimizer.param_groups[0]["lr"])
        now = values(model)
        weight = 1 - decay if average == "EMA" else 1 / (n + 1)
        expected = now if expected is None else expected + weight * (now - expected)
    torch.testing.assert_close(values(averaged.module), expected)
    assert lrs[-1] == pytest.approx(0.05) and len(set(lrs)) > 2
    assert (values(averaged.module) - values(model)).abs().mean() > 1e-3
