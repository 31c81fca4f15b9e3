"""Two processes on gloo give the parameters of one process that sees the whole batch, as AdamW does.

All cases run in one pair of processes, because each pair costs seconds; the tests then judge what they saved.
"""

import contextlib
import faulthandler
import time
import traceback
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from kadam import KAdam

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")

LIMIT = 60  # seconds until two processes that wait for each other are ended
STEPS = 6  # resharding after steps 2 and 4

IMPLEMENTATIONS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
# the default of KAdam on a CPU is fused, that of AdamW is the loop
YARDSTICKS = {"loop": "loop", "foreach": "foreach", "fused": "fused", "default": "fused"}
SETTINGS = {"lr": 0.05, "weight_decay": 0.1}

OPTIMIZERS = {
    f"AdamW {name}": (torch.optim.AdamW, {**SETTINGS, **IMPLEMENTATIONS[name]}) for name in ("loop", "foreach", "fused")
} | {
    f"KAdam k={k} {name}": (KAdam, {**SETTINGS, **flags, "k": k})
    for k in (1, 2)
    for name, flags in IMPLEMENTATIONS.items()
}


def network():
    """First dimensions 5, 7 and 1: none can be halved, and the last gives the second process nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def train(model, optimizer, steps, halves):
    """Steps on the given halves of each batch; both halves in one process give the mean of their gradients."""
    batches = torch.randn(STEPS, 2, 4, 10, generator=torch.Generator().manual_seed(1))
    for batch in batches[slice(*steps)]:
        optimizer.zero_grad()
        for half in halves:
            ((model(batch[half]) ** 2).mean() / len(halves)).backward()
        optimizer.step()


def values(model):
    full = [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    return torch.cat([p.flatten() for p in full])


@contextlib.contextmanager
def group(folder, name, rank):
    limit = timedelta(seconds=LIMIT / 2)
    dist.init_process_group("gloo", init_method=f"file://{folder / name}", rank=rank, world_size=2, timeout=limit)
    try:
        yield init_device_mesh("cpu", (2,))
    finally:
        dist.destroy_process_group()


def ddp(make, arguments, rank):
    model = network()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    train(wrapped, make(wrapped.parameters(), **arguments), (0, STEPS), [rank])
    return values(model)


def zero(make, arguments, rank):
    """Parameters of a run that is broken off after three steps and resumed from the consolidated state."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, because the import gives 67 warnings

    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=make, **arguments)
    train(wrapped, optimizer, (0, 3), [rank])
    optimizer.consolidate_state_dict(to=0)
    box = [optimizer.state_dict() if rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    resumed = ZeroRedundancyOptimizer(wrapped.parameters(), optimizer_class=make, **arguments)
    resumed.load_state_dict(box[0])
    train(wrapped, resumed, (3, STEPS), [rank])
    return values(model)


def fsdp(make, arguments, rank, mesh):
    """Parameters, and whether the moments are sharded as their parameters."""
    model = fully_shard(network(), mesh=mesh)
    optimizer = make(model.parameters(), **arguments)
    train(model, optimizer, (0, STEPS), [rank])
    moments = [
        (p, s) for p in model.parameters() for name, s in optimizer.state[p].items() if name.startswith("exp_avg")
    ]
    sharded = all(
        s.placements == p.placements and s.to_local().shape == p.to_local().shape == p.grad.to_local().shape
        for p, s in moments
    )
    empty = sum(s.to_local().numel() == 0 for _, s in moments)
    return values(model), sharded, len(moments), empty


def continued(make, arguments, mesh, halves, source, steps, target, options):
    """From one checkpoint to the next, on any number of processes; without a mesh the model is a plain one."""
    model = network()
    if source is not None:
        with torch.no_grad():  # what is not loaded shows
            for p in model.parameters():
                p.fill_(9.0)
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer = make(model.parameters(), **arguments)
    if source is not None:
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))
        dcp.load(state, checkpoint_id=source)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
    train(model, optimizer, steps, halves)
    if target is None:
        return values(model)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer, options=options), strict=True))
    dcp.save(state, checkpoint_id=target)


def work(rank, folder):
    """What each of the two processes does; the first one also does what one process does alone."""
    faulthandler.dump_traceback_later(LIMIT - 5)  # a hang shows where
    torch.set_num_threads(1)
    found = {}
    layouts = {"nested": StateDictOptions(), "flat": StateDictOptions(flatten_optimizer_state_dict=True)}
    # the flat layout is the same code for every implementation
    runs = [(name, "nested") for name in OPTIMIZERS] + [
        (name, "flat") for name in ("AdamW fused", "KAdam k=1 default", "KAdam k=2 default")
    ]

    def reshard(name, layout, part, mesh):
        steps, target = [((0, 2), "two"), ((2, 4), "one"), ((4, STEPS), None)][part]
        source = [None, "two", "one"][part]
        place = folder / layout / name.replace(" ", "-")
        return continued(
            *OPTIMIZERS[name],
            mesh,
            [rank] if mesh else [0, 1],
            source and place / source,
            steps,
            target and place / target,
            layouts[layout],
        )

    with group(folder, "first", rank) as mesh:
        for name, (make, arguments) in OPTIMIZERS.items():
            found["ddp", name] = ddp(make, arguments, rank)
            found["zero", name] = zero(make, arguments, rank)
            found["fsdp", name], *found["shards", name] = fsdp(make, arguments, rank, mesh)
        for name, layout in runs:
            reshard(name, layout, 0, mesh)
    if rank == 0:
        found["start"] = values(network())
        for name, (make, arguments) in OPTIMIZERS.items():
            model = network()
            train(model, make(model.parameters(), **arguments), (0, STEPS), [0, 1])
            found["alone", name] = values(model)
        for name, layout in runs:
            reshard(name, layout, 1, None)
    with group(folder, "second", rank) as mesh:
        for name, layout in runs:
            found[layout, name] = reshard(name, layout, 2, mesh)
    torch.save(found, folder / f"{rank}.pt")
    faulthandler.cancel_dump_traceback_later()


def noting_errors(rank, function, folder):
    try:
        function(rank, folder)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


def in_two_processes(function, folder, start="spawn"):
    """Run function(rank, folder) in two processes; their errors are shown, and a hang fails."""
    context = mp.start_processes(noting_errors, (function, folder), nprocs=2, join=False, start_method=start)
    end = time.monotonic() + LIMIT
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                pytest.fail(f"two processes were not done after {LIMIT} seconds")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        # the first one to end may only have lost its partner, so all errors are shown
        notes = [f"process {path.stem}:\n{path.read_text()}" for path in sorted(folder.glob("*.error"))]
        pytest.fail("\n".join(notes) or str(error), pytrace=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    in_two_processes(work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def largest_difference(found, case, name):
    first, second = found
    assert torch.equal(first[case, name], second[case, name])
    return (first[case, name] - first["alone", name]).abs().max().item()


OURS = [name for name in OPTIMIZERS if name.startswith("KAdam")]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("case", ["ddp", "zero", "fsdp", "nested"])
def test_two_processes_are_one(found, case, name):
    implementation = YARDSTICKS[name.split()[-1]]
    exact = largest_difference(found, case, f"AdamW {implementation}") == 0
    if implementation == "fused" and case in ("fsdp", "nested") and "k=1" not in name:
        # A shard has other sizes, and the fused kernel rounds the elements after the last full vector differently;
        # where AdamW is exact by chance, a second pass through the kernel need not be.
        exact = False
    assert largest_difference(found, case, name) <= (0.0 if exact else 1e-6)  # parameters are of order 1
    assert (found[0]["alone", name] - found[0]["start"]).abs().mean() > 0.01  # else all might have stood still


@pytest.mark.parametrize("name", ["KAdam k=1 default", "KAdam k=2 default"])
def test_the_flat_layout_of_a_checkpoint_is_as_good(found, name):
    for each in found:
        assert torch.equal(each["flat", name], each["nested", name])


def test_the_yardstick_is_exact_but_for_shards_of_the_fused_kernel(found):
    """Else the test above would allow what AdamW does not need."""
    inexact = {
        (case, name)
        for case in ("ddp", "zero", "fsdp", "nested")
        for name in OPTIMIZERS
        if name.startswith("AdamW") and largest_difference(found, case, name) > 0
    }
    assert inexact <= {("fsdp", "AdamW fused"), ("nested", "AdamW fused")}


@pytest.mark.parametrize("name", OURS)
def test_moments_are_sharded_as_their_parameter(found, name):
    k = int(name[len("KAdam k=")])
    for rank, each in enumerate(found):
        sharded, moments, empty = each["shards", name]
        assert sharded and moments == 6 * 2 * k
        assert empty == (2 * 2 * k if rank == 1 else 0)  # weight and bias of the last layer


def fails(rank, folder):
    if rank == 1:
        raise ArithmeticError("of the second process")
    time.sleep(LIMIT)


def test_an_error_in_a_process_is_shown(tmp_path):
    with pytest.raises(pytest.fail.Exception, match="ArithmeticError: of the second process"):
        in_two_processes(fails, tmp_path, start="fork")  # which is quick, and torch is not used there
