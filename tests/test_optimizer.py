import copy
import pickle

import pytest
import torch
from reference import k_adam
from torch import nn

from kadam import KAdam
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


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"weight_decay": 0.0}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"maximize": True}, {"lr": 0.0}],
    ids=str,
)
def test_one_stage_is_adamw_bit_for_bit(dtype, arguments):
    a, b = network(dtype), network(dtype)
    trained(a, torch.optim.AdamW(a.parameters(), foreach=False, fused=False, **arguments))
    trained(b, KAdam(b.parameters(), k=1, **arguments))
    assert same(a, b)
    assert same(a, network(dtype)) == (arguments.get("lr") == 0.0)  # else both might have stood still


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


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_zero_gradients_leave_the_parameter(k, eps):
    theta = torch.ones(3, requires_grad=True)
    optimizer = KAdam([theta], k=k, eps=eps, weight_decay=0.0)
    for _ in range(3):
        theta.grad = torch.tensor([0.0, 1.0, 0.0])
        optimizer.step()
    assert theta[0] == theta[2] == 1 and theta[1] < 1
    assert optimizer.last_update(theta).tolist()[::2] == [0.0, 0.0]


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


def test_state_dict_resumes_in_mid_training():
    whole, part, resumed = network(), network(), network()
    trained(whole, KAdam(whole.parameters(), k=2), 20)
    optimizer = KAdam(part.parameters(), k=2)
    trained(part, optimizer, 12)
    resumed.load_state_dict(part.state_dict())
    fresh = KAdam(resumed.parameters(), k=2)
    fresh.load_state_dict(pickle.loads(pickle.dumps(copy.deepcopy(optimizer.state_dict()))))
    trained(resumed, fresh, 8, first=12)
    assert same(whole, resumed)


def test_adamw_state_loads_into_one_stage():
    a, b = network(), network()
    theirs, ours = torch.optim.AdamW(a.parameters(), foreach=False), KAdam(b.parameters(), k=1)
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
    theirs = torch.optim.AdamW(a.parameters(), foreach=False, lr=0.05)
    trained(a, theirs, 10)
    checkpoint = copy.deepcopy(theirs.state_dict())
    ours = KAdam(b.parameters(), k=1)
    ours.load_state_dict(checkpoint)
    b.load_state_dict(a.state_dict())
    trained(a, theirs, 10, seed=2)
    trained(b, ours, 10, seed=2)
    assert same(a, b)
    two = KAdam(b.parameters(), k=2)
    two.load_state_dict(checkpoint)
    with pytest.raises(ValueError, match="Invalid k: 2"):
        trained(b, two, 1)


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


def test_complex_parameters_are_refused():
    theta = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    theta.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="does not support complex parameters"):
        KAdam([theta]).step()


def test_closure_and_parameters_without_gradient():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = KAdam([used, unused])

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert unused.tolist() == [1.0, 1.0] and unused not in optimizer.state


@pytest.mark.parametrize("k", [1, 2])
def test_schedulers_that_rewrite_lr_and_betas(k):
    model = network()
    optimizer = KAdam(model.parameters(), k=k)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    before = optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]
    for _ in range(5):
        trained(model, optimizer, 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] != before[0] and optimizer.param_groups[0]["betas"] != before[1]
    assert all(p.isfinite().all() for p in model.parameters())


def test_tensor_lr_is_the_number():
    a, b = network(), network()
    trained(a, KAdam(a.parameters(), lr=0.01), 5)
    trained(b, KAdam(b.parameters(), lr=torch.tensor(0.01)), 5)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_last_update_is_what_moved_the_parameter(k):
    model = network(torch.float64)
    optimizer = KAdam(model.parameters(), k=k, lr=0.1, weight_decay=0.0)
    trained(model, optimizer, 7)
    before = [p.detach().clone() for p in model.parameters()]
    trained(model, optimizer, 1, seed=5)
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close((p - old) / 0.1, optimizer.last_update(p), rtol=1e-9, atol=1e-12)


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


def test_defaults_are_those_of_adamw():
    theta = torch.ones(2, requires_grad=True)
    ours, theirs = KAdam([theta]).defaults, torch.optim.AdamW([theta]).defaults
    assert {name: theirs[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}.items() <= ours.items()
