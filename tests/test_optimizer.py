import copy
import inspect
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from reference import k_adam
from torch import nn

from kadam import KAdam, hyperparameters
from kadam.fused import PIECE, _kept
from kadam.optimizer import moments_in
from kadam.stages import SCHEDULES, make_stages


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def trained(model, optimizer, steps=100, seed=1, first=0):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(steps + first, 16, 10, generator=generator).to(dtype)
    for x in inputs[first:]:
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()
    return model


def equal(a, b):
    """The same nested dicts and lists, tensors to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(equal, a, b)) if isinstance(a, list) else a == b


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


LOOP, FOREACH, FUSED = {"foreach": False, "fused": False}, {"foreach": True}, {"fused": True}


@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"weight_decay": 0.0}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"maximize": True}, {"lr": 0.0}],
    ids=str,
)
def test_one_stage_is_adamw_bit_for_bit(engine, dtype, arguments):
    a, b = network(dtype), network(dtype)
    trained(a, torch.optim.AdamW(a.parameters(), **engine, **arguments))
    trained(b, KAdam(b.parameters(), k=1, **engine, **arguments))
    assert same(a, b)
    assert same(a, network(dtype)) == (arguments.get("lr") == 0.0)  # else both might have stood still


def test_the_default_on_a_cpu_is_fused():
    a, b, c = network(), network(), network()
    trained(a, KAdam(a.parameters(), k=3))
    trained(b, KAdam(b.parameters(), k=3, **FUSED))
    trained(c, KAdam(c.parameters(), k=3, **LOOP))
    assert same(a, b) and not same(a, c)


@pytest.mark.parametrize("arguments", [{}, {"k": 1, "eps": 0.0}, {"k": 5, "eps": 0.0, "weight_decay": 0.3}], ids=str)
@pytest.mark.parametrize("engine", [FOREACH, FUSED, {"capturable": True}, {"foreach": True, "capturable": True}])
def test_engines_agree(engine, arguments):
    a, b = network(torch.float64), network(torch.float64)
    trained(a, KAdam(a.parameters(), **LOOP, **arguments), 30)
    trained(b, KAdam(b.parameters(), **engine, **arguments), 30)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        # capturable takes the bias corrections from a step count in float32; the parameters move by some 0.03
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-6 if "capturable" in engine else 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_is_the_formula_in_plain_python(schedule, k):
    theta = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    gradients = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    optimizer = KAdam([theta], lr=0.01, k=k, schedule=schedule, weight_decay=0.1)
    start = theta.detach().clone()
    for gradient in gradients:
        theta.grad = gradient.clone()
        optimizer.step()
    for i in range(2):
        pairs = make_stages((0.9, 0.999), k, schedule)
        expected = k_adam(start[i].item(), gradients[:, i].tolist(), pairs, 0.01, 0.1, 1e-8)[-1]
        assert theta[i].item() == pytest.approx(expected, rel=1e-12)


def test_explicit_pairs_equal_their_schedule():
    a, b = network(), network()
    trained(a, KAdam(a.parameters(), k=3, schedule="exp"))
    trained(b, KAdam(b.parameters(), k=3, betas=[(0.9**3, 0.999**3)] * 3))
    assert same(a, b)


@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_gradients_leave_the_parameter(engine, k, eps):
    theta = torch.ones(3, requires_grad=True)
    optimizer = KAdam([theta], k=k, eps=eps, weight_decay=0.0, **engine)
    for _ in range(3):
        theta.grad = torch.tensor([0.0, 1.0, 0.0])
        optimizer.step()
    assert theta[0] == theta[2] == 1 and theta[1] < 1
    assert optimizer.last_update(theta).tolist()[::2] == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore:KAdam. outside the stable region")
@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
def test_a_second_moment_of_zero_has_update_zero_whatever_the_first(engine):
    theta = torch.ones(1, requires_grad=True)
    optimizer = KAdam([theta], k=1, betas=(0.9, 0.0), eps=0.0, weight_decay=0.0, **engine)
    for gradient in (1.0, 0.0):  # beta = 0 forgets the first gradient, gamma does not
        before = theta.item()
        theta.grad = torch.tensor([gradient])
        optimizer.step()
        assert (theta.item() == before) == (gradient == 0.0)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_spoils_its_coordinate_alone_as_in_adamw(engine, k, bad):
    good, spoilt = (torch.ones(PIECE + 3, requires_grad=True) for _ in range(2))
    for theta, value in ((good, 0.5), (spoilt, bad)):
        optimizer = KAdam([theta], k=k, **engine)
        for gradient in (value, 0.5):
            theta.grad = torch.full((PIECE + 3,), 0.5)
            theta.grad[7] = gradient
            optimizer.step()
    assert spoilt[7].isnan()
    assert (good == spoilt).sum() == PIECE + 2


SHAPES = [(3, 5), (PIECE + 17,), (2 * PIECE,), (1,), (0,), (), (4, 3, 5, 5), (PIECE - 20, 1)]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "gradient", "state", "gaps"])
def test_fused_knows_pieces_and_layouts(k, layout):
    torch.manual_seed(0)

    def stored(tensor):
        if layout == "channels_last" and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        if layout == "transposed" and tensor.dim() == 2:
            return tensor.t().contiguous().t()
        if layout == "gaps" and tensor.dim() == 2:
            return torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]]
        return tensor

    start = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    gradients = [[torch.randn_like(tensor) for tensor in start] for _ in range(3)]
    ours = [stored(tensor.clone()).requires_grad_() for tensor in start]
    reference = [tensor.clone().requires_grad_() for tensor in start]
    for params, engine in ((ours, FUSED), (reference, LOOP)):
        optimizer = KAdam(params, k=k, **engine)
        for row in gradients:
            for param, gradient in zip(params, row, strict=True):
                param.grad = gradient.clone()
                if layout == "gradient" and gradient.dim() == 2 and params is ours:
                    param.grad = gradient.t().contiguous().t()
            optimizer.step()
            if layout == "state" and params is ours:
                optimizer.state[ours[0]]["exp_avg"] = optimizer.state[ours[0]]["exp_avg"].t().contiguous().t()
    for param, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
def test_complex_is_its_real_and_imaginary_part(engine):
    gradients = torch.randn(5, 4, dtype=torch.complex64)
    whole = torch.ones(4, dtype=torch.complex64, requires_grad=True)
    parts = torch.view_as_real(whole.detach().clone()).requires_grad_()
    optimizers = KAdam([whole], k=2, **({} if engine is FUSED else engine)), KAdam([parts], k=2, **engine)
    for gradient in gradients:
        whole.grad, parts.grad = gradient.clone(), torch.view_as_real(gradient).clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.view_as_real(whole), parts)
    updates = [optimizer.last_update(theta) for optimizer, theta in zip(optimizers, (whole, parts), strict=True)]
    assert torch.equal(torch.view_as_real(updates[0]), updates[1])


@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_in_float32_keep_what_half_precision_loses(engine, dtype):
    """A second moment of decay 0.999 changes by a thousandth a step, less than bfloat16's spacing of 1/128."""
    theta = {name: torch.ones(2, dtype=dtype, requires_grad=True) for name in ("same", "wide", "resumed")}
    wide = {"same": {}, "wide": {"state_dtype": torch.float32}, "resumed": {"state_dtype": torch.float32}}
    optimizers = {name: KAdam([theta[name]], k=1, **wide[name], **engine) for name in theta}
    for step in range(400):
        for name, optimizer in optimizers.items():
            theta[name].grad = torch.full((2,), 1.0 if step < 10 else 2.0, dtype=dtype)
            optimizer.step()
        if step == 200:
            optimizers["resumed"] = KAdam([theta["resumed"]], k=1, state_dtype=torch.float32, **engine)
            optimizers["resumed"].load_state_dict(copy.deepcopy(optimizers["wide"].state_dict()))
            with torch.no_grad():
                theta["resumed"].copy_(theta["wide"])
    exact = 4 - 3 * 0.999**390 - 0.999**400
    assert optimizers["wide"].state[theta["wide"]]["exp_avg_sq"][0].item() == pytest.approx(exact, rel=1e-3)
    if dtype == torch.bfloat16:
        assert abs(optimizers["same"].state[theta["same"]]["exp_avg_sq"][0].item() / exact - 1) > 0.2
    assert optimizers["wide"].state[theta["wide"]]["exp_avg"].dtype == torch.float32
    assert torch.equal(theta["wide"], theta["resumed"])


def test_groups_have_their_own_settings():
    together, alone = network(), network()
    first = {"params": together[0].parameters(), "k": 3, "lr": 0.1}
    optimizer = KAdam([first, {"params": together[2].parameters()}], k=1)
    trained(together, optimizer, 1)
    x = torch.randn(1, 16, 10, generator=torch.Generator().manual_seed(1))[0]
    (alone(x) ** 2).sum().backward()
    KAdam(alone[0].parameters(), k=3, lr=0.1).step()
    KAdam(alone[2].parameters(), k=1).step()
    assert same(together, alone)


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("first", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("second", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
def test_state_dict_resumes_in_mid_training(k, first, second, tmp_path):
    """Through a file, and from one engine to another: the state is the same to the last bit, and so is what follows."""
    before, after = network(), network()
    optimizer = KAdam(before.parameters(), k=k, **first)
    trained(before, optimizer, 12)
    for group in optimizer.param_groups:
        group.update({"foreach": None, "fused": None, **second})
    after.load_state_dict(before.state_dict())
    fresh = KAdam(after.parameters(), k=k, **second)
    fresh.load_state_dict(through_a_file(optimizer.state_dict(), tmp_path))
    assert equal(fresh.state_dict(), optimizer.state_dict())
    trained(before, optimizer, 8, first=12)
    trained(after, fresh, 8, first=12)
    assert same(before, after)


def test_adamw_state_loads_into_one_stage():
    a, b = network(), network()
    theirs, ours = torch.optim.AdamW(a.parameters(), fused=True), KAdam(b.parameters(), k=1)
    trained(a, theirs, 10)
    state = ours.state_dict()
    state["state"] = copy.deepcopy(theirs.state_dict()["state"])
    state["state"][0]["step"] = float(state["state"][0]["step"])  # old checkpoints hold a plain number
    ours.load_state_dict(state)
    b.load_state_dict(a.state_dict())
    trained(a, theirs, 10, seed=2)
    trained(b, ours, 10, seed=2)
    assert same(a, b)


def test_a_whole_adamw_checkpoint_loads():
    a, b = network(), network()
    theirs = torch.optim.AdamW(a.parameters(), fused=True, lr=0.05)
    trained(a, theirs, 10)
    checkpoint = copy.deepcopy(theirs.state_dict())
    ours = KAdam(b.parameters(), k=1)
    ours.load_state_dict(checkpoint)
    b.load_state_dict(a.state_dict())
    trained(a, theirs, 10, seed=2)
    trained(b, ours, 10, seed=2)
    assert same(a, b)
    back = torch.optim.AdamW(b.parameters(), fused=True)
    back.load_state_dict(ours.state_dict())
    trained(a, theirs, 10, seed=3)
    trained(b, back, 10, seed=3)
    assert same(a, b)


def test_steps_are_counted_beyond_the_parameters_precision():
    theta = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        optimizer = KAdam([theta])
        for _ in range(300):
            theta.grad = torch.ones_like(theta)
            optimizer.step()
    finally:
        torch.set_default_dtype(default)
    assert optimizer.state[theta]["step"] == 300


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([0.1])])
def test_one_element_lr_and_a_scalar_parameter(lr):
    theta = torch.tensor(1.0, requires_grad=True)
    theta.grad = torch.tensor(1.0)
    KAdam([theta], lr=lr, weight_decay=0.0).step()
    assert theta.item() == pytest.approx(0.9)


@pytest.mark.parametrize("wrong", [{"lr": "0.1"}, {"lr": None}, {"weight_decay": None}, {"eps": [1]}])
def test_wrong_types_are_named(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(TypeError, match=rf"Invalid .*{name} must be a number"):
        KAdam([torch.ones(2, requires_grad=True)], **wrong)


def test_another_k_in_a_loaded_state_is_an_error_that_changes_nothing():
    model = network()
    optimizer = KAdam(model.parameters(), k=2)
    trained(model, optimizer, 2)
    before = copy.deepcopy(model)
    for k in (1, 3):
        optimizer.param_groups[0]["k"] = k
        with pytest.raises(ValueError, match=f"Invalid k: {k}"):
            optimizer.step()
        assert same(model, before)


def test_an_error_leaves_no_parameter_half_updated():
    first, second = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = KAdam([first, second])
    first.grad = torch.ones(2)
    second.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert first.tolist() == [1.0, 1.0]


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    model = network()
    optimizer = KAdam(model.parameters(), k=2)
    trained(model, optimizer, 2)
    good = copy.deepcopy(optimizer.state_dict())
    adamw = torch.optim.AdamW(network().parameters()).state_dict()
    amsgrad = torch.optim.AdamW(network().parameters(), amsgrad=True).state_dict()
    adam = torch.optim.Adam(network().parameters(), weight_decay=0.1).state_dict()
    swapped = copy.deepcopy(good)
    swapped["state"][0], swapped["state"][2] = swapped["state"][2], swapped["state"][0]
    fewer = torch.optim.AdamW(list(network().parameters())[:2]).state_dict()
    for state, message in (
        (adamw, "Invalid k: 2, but the loaded state was made with k = 1"),
        (amsgrad, "KAdam has no amsgrad"),
        (adam, "the loaded state is of Adam"),
        (swapped, r"exp_avg has shape \(3, 20\), its parameter \(20, 10\)"),
        (fewer, "doesn't match the size of optimizer's group"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert equal(optimizer.state_dict(), good)


def test_a_parameter_that_changed_its_size_is_refused():
    model = network()
    optimizer = KAdam(model.parameters())
    trained(model, optimizer, 1)
    before = copy.deepcopy(model)
    model[2].bias.data = torch.zeros(4)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="differ in size"):
        optimizer.step()
    assert torch.equal(model[0].weight, before[0].weight)


def test_flags_added_later_are_filled_in_old_states():
    model = network()
    optimizer = KAdam(model.parameters(), k=1, schedule="exp", maximize=True)
    trained(model, optimizer, 2)
    old = copy.deepcopy(optimizer.state_dict())
    for name in ("schedule", "maximize", "foreach", "fused", "capturable", "differentiable", "state_dtype", "k"):
        del old["param_groups"][0][name]
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["schedule"] == "exp" and optimizer.param_groups[0]["maximize"] is True
    bare = {"state": {}, "param_groups": [{"params": list(model.parameters()), "lr": 0.1, "betas": (0.9, 0.99),
            "eps": 1e-8, "weight_decay": 0.0}], "defaults": optimizer.defaults}  # fmt: skip
    unpickled = KAdam.__new__(KAdam)
    unpickled.__setstate__(bare)
    assert unpickled.param_groups[0]["k"] == 1 and unpickled.param_groups[0]["fused"] is None


def test_outside_the_stable_region_one_warning_names_c_and_the_bound():
    theta = [torch.ones(2, requires_grad=True) for _ in range(3)]
    with pytest.warns(UserWarning, match=r"C = -0.04926 < 0.*bound 10\^") as caught:
        KAdam([{"params": [p]} for p in theta], k=2, betas=[(0.9, 0.999), (0.97, 0.9)])
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = KAdam(theta[:1], k=2, betas=[(0.97, 0.9), (0.9, 0.999)])  # the last stage alone counts
        KAdam(theta[:1], betas=(0.0, 0.0))
    with pytest.warns(UserWarning, match="C = -inf"):
        inside.add_param_group({"params": theta[1:2], "k": 1, "betas": (0.9, 0.0)})


def two_steps(params, optimizer):
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), torch.inference_mode], ids=["device", "inference"])
def test_a_first_step_in_another_context_does_no_harm_later(context):
    _kept.scratch.clear()
    inside, later = (torch.ones(4, requires_grad=True) for _ in range(2))
    optimizer = KAdam([inside], k=2)
    two_steps([inside], optimizer)
    _kept.scratch.clear()
    inside.grad = torch.ones(4)
    with context():
        optimizer.step()
    two_steps([later], KAdam([later], k=2))
    two_steps([inside], optimizer)
    assert (later < 1).all() and optimizer.state[inside]["step"] == 5


@pytest.mark.parametrize("engine", [LOOP, FOREACH, FUSED], ids=["loop", "foreach", "fused"])
@pytest.mark.parametrize("wrong", [{"device": "meta"}, {"dtype": torch.bfloat16}], ids=str)
def test_a_state_of_another_device_or_dtype_is_refused_and_nothing_changes(engine, wrong):
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = KAdam(params, k=2, **engine)
    two_steps(params, optimizer)
    before = [param.detach().clone() for param in params]
    optimizer.state[params[1]]["exp_avg_sq_2"] = torch.zeros(3, **wrong)
    with pytest.raises(ValueError, match="must be one device, and one dtype"):
        optimizer.step()
    assert all(map(torch.equal, params, before)) and optimizer.state[params[0]]["step"] == 2


def test_a_tensor_as_lr_set_later_is_refused_by_foreach_before_anything_changes():
    model = network()
    optimizer = KAdam(model.parameters(), **FOREACH)
    trained(model, optimizer, 2)
    before = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.raises(ValueError, match="lr as a Tensor is not supported for capturable=False and foreach=True"):
        optimizer.step()
    assert same(model, before)


def test_complex_moments_of_another_dtype_load():
    theta = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    optimizer = KAdam([theta], state_dtype=torch.float64)
    two_steps([theta], optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert equal(optimizer.state_dict(), saved) and optimizer.state[theta]["exp_avg"].dtype == torch.complex128


def test_small_gradients_in_float16_train_as_in_fused_adamw():
    """1e-8 is zero in float16, but the kernel computes in float32, where it is not."""
    ours, theirs = (torch.ones(5, dtype=torch.float16, requires_grad=True) for _ in range(2))
    pairs = (ours, KAdam([ours], k=1, lr=0.01)), (theirs, torch.optim.AdamW([theirs], lr=0.01, fused=True))
    for theta, optimizer in pairs:
        for _ in range(20):
            theta.grad = torch.full_like(theta, 0.004)
            optimizer.step()
    assert torch.equal(ours, theirs) and (ours < 0.9).all()


@pytest.mark.parametrize("k", [1, 3])
def test_autograd_sees_that_a_parameter_has_changed(k):
    theta = torch.ones(3, requires_grad=True)
    loss = (theta * theta).sum()
    theta.grad = torch.ones(3)
    KAdam([theta], k=k).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_calls_written_for_adamw():
    theta = torch.ones(2, requires_grad=True)
    optimizer = KAdam([theta], 1e-2, (0.8, 0.9), 1e-7, 0.1, False)
    assert optimizer.defaults.items() >= {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.1}.items()
    with pytest.raises(ValueError, match="KAdam has no amsgrad"):
        KAdam([theta], amsgrad=True)


def test_k_of_another_integer_type_is_stored_as_an_int(tmp_path):
    theta = torch.ones(2, requires_grad=True)
    optimizer = KAdam([{"params": [theta], "k": np.int64(3)}], k=np.int64(2))
    assert through_a_file(optimizer.state_dict(), tmp_path)["param_groups"][0]["k"] == 3


def test_a_subclass_of_parameter_is_stepped_as_a_parameter():
    class Named(torch.nn.Parameter):
        pass

    named, plain = Named(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    for theta in (named, plain):
        two_steps([theta], KAdam([theta], k=2, **FUSED))
    assert torch.equal(named.detach(), plain.detach())


def test_what_fused_cannot_do_is_refused():
    with pytest.raises(RuntimeError, match="cannot be `True` together"):
        KAdam(network().parameters(), fused=True, foreach=True)
    with pytest.raises(RuntimeError, match="does not support `differentiable`"):
        KAdam(network().parameters(), fused=True, differentiable=True)
    theta = torch.ones(2, device="meta", requires_grad=True)
    theta.grad = torch.ones(2, device="meta")
    with pytest.raises(RuntimeError, match="requires all the params to be floating point Tensors of supported"):
        KAdam([theta], fused=True).step()


MEMORY = """
import sys, torch
from kadam import KAdam, hyperparameters
size = 1 << 24
theta = torch.nn.Parameter(torch.ones(size))
theta.grad = torch.ones(size)
optimizer = KAdam([theta], **eval(sys.argv[1]))
optimizer.step()
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
optimizer.step()
print((kilobytes("VmHWM") - before) / (4 * size / 1024), sum(t.numel() for t in optimizer.state[theta].values()) / size)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("engine", "buffers"), [(FUSED, 0), (FOREACH, 2), ({**FOREACH, "maximize": True}, 2)], ids=str)
def test_peak_memory(engine, buffers):
    """States of 2k words a parameter, and at most two buffers of the parameters' size; none for the default."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, repr({"k": 2, **engine})], capture_output=True, text=True, check=True
    )
    extra, state = map(float, out.stdout.split())
    assert round(state, 3) == 4
    assert buffers - 0.6 < extra < buffers + 0.1


@pytest.mark.parametrize("k", [1, 2, 4])
def test_last_update_is_what_moved_the_parameter(k):
    model = network(torch.float64)
    optimizer = KAdam(model.parameters(), k=k, lr=0.1, weight_decay=0.0)
    trained(model, optimizer, 7)
    before = [p.detach().clone() for p in model.parameters()]
    trained(model, optimizer, 1, seed=5)
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close((p - old) / 0.1, optimizer.last_update(p), rtol=1e-9, atol=1e-12)


def test_moments_are_read_from_the_state():
    theta = torch.ones(3, requires_grad=True)
    theta.grad = torch.tensor([1.0, -2.0, 0.0])
    stages = [(0.5, 0.75), (0.0, 0.25), (0.25, 0.5)]
    optimizer = KAdam([theta], k=3, betas=stages, eps=0.0)
    optimizer.step()
    moments, x = moments_in(optimizer.state[theta], 3), theta.grad  # after one step x is +-1 or 0 for ever
    for (m, v), (gamma, beta) in zip(moments, stages, strict=True):
        torch.testing.assert_close(m, (1 - gamma) * x)
        torch.testing.assert_close(v, (1 - beta) * x**2)
        x = theta.grad.sign()
    adamw = torch.optim.AdamW([theta], betas=stages[0])
    adamw.step()
    (found,) = moments_in(adamw.state[theta])
    assert torch.equal(found.m, moments[0].m) and found.v is adamw.state[theta]["exp_avg_sq"]
    with pytest.raises(KeyError):
        moments_in(adamw.state[theta], 2)


def test_last_update_needs_a_step():
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(KeyError, match="no state"):
        KAdam([theta]).last_update(theta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
        ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
        ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
        ({"betas": (1.0, 0.999)}, "Invalid beta parameter at index 0: 1.0"),
        ({"k": 0}, "Invalid k: 0"),
        ({"schedule": "x"}, "Invalid schedule: 'x'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    theta = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        KAdam([theta], **arguments)
    with pytest.raises(ValueError, match=message):
        KAdam([{"params": [theta], **arguments}])


def test_defaults_are_those_of_the_signature_and_of_adamw():
    signature = inspect.signature(KAdam).parameters
    written = {name: argument.default for name, argument in signature.items() if name not in ("params", "amsgrad")}
    assert written == hyperparameters.DEFAULTS
    theta = torch.ones(2, requires_grad=True)
    ours, theirs = KAdam([theta]).defaults, torch.optim.AdamW([theta]).defaults
    assert {name: theirs[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}.items() <= ours.items()
