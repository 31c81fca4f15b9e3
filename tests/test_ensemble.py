import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kadam import KAdam, ensemble
from kadam.ensemble import Member

pytestmark = pytest.mark.filterwarnings("ignore:KAdam. outside the stable region")

MEMBERS = [
    dict(k=1, seed=0),
    dict(lr=1e-2, betas=(0.8, 0.99), k=1, seed=1, eps=0.0),
    dict(lr=3e-3, betas=(0.5, 0.0), k=1, seed=0, weight_decay=0.5, eps=1e-2),
    dict(lr=3e-3, betas=(0.0, 0.9), k=1, seed=2),
    dict(lr=1e-3, seed=1),
    dict(lr=1e-3, betas=(0.9, 0.95), k=2, schedule="naive", seed=1, eps=0.0),
    dict(lr=2e-3, betas=[(0.9, 0.99), (0.3, 0.6)], k=2, seed=3),
    dict(lr=2e-3, k=4, schedule="exp", seed=3),
]
STEPS = 25


def make(dtype=torch.float64):
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).to(dtype)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 6, generator=generator, dtype=dtype)
    x[:, 2] = 0  # the gradient of a column of the first weight is zero for ever
    return x, torch.randint(3, (60,), generator=generator)


def alone(member, order, dtype):
    """One run of KAdam: what an observer would see after every step."""
    torch.manual_seed(member["seed"])
    module, (x, y) = make(dtype), data(dtype)
    optimizer = KAdam(module.parameters(), **{name: value for name, value in member.items() if name != "seed"})
    seen = []
    for chosen in order:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x[chosen]), y[chosen])
        loss.backward()
        optimizer.step()
        seen.append(
            {
                "loss": loss.detach(),
                "params": module[0].weight.detach().clone(),
                "grads": module[0].weight.grad.clone(),
                "updates": optimizer.last_update(module[0].weight),
                "m": optimizer.state[module[0].weight]["exp_avg"].clone(),
                "v": optimizer.state[module[0].weight]["exp_avg_sq"].clone(),
                "largest": max(optimizer.last_update(param).abs().max() for param in module.parameters()),
            }
        )
    return seen


OBSERVE = {
    "loss": lambda member: member.loss,
    "params": lambda member: member.params["0.weight"],
    "grads": lambda member: member.grads["0.weight"],
    "updates": lambda member: member.updates["0.weight"],
    "m": lambda member: member.moments[0][0]["0.weight"],
    "v": lambda member: member.moments[0][1]["0.weight"],
    "largest": Member.largest_update,
}


def orders(shared):
    shape = (STEPS, 8) if shared else (STEPS, len(MEMBERS), 8)
    return torch.randint(60, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-2, 1e-4)])
def test_results_are_those_of_single_runs(shared, chunk, dtype, rtol, atol):
    order = orders(shared)
    loss, init = ensemble.from_module(lambda: make(dtype), F.cross_entropy)
    runs = ensemble.train(
        loss, init, MEMBERS, ensemble.indexed(order, *data(dtype)), STEPS, OBSERVE, 3,
        in_dims=None if shared else 0, keep_params=True, chunk=chunk,
    )  # fmt: skip
    assert runs.outcome == ["finished"] * len(MEMBERS)
    assert runs.observed_at.tolist() == list(range(3, STEPS + 1, 3))
    for i, member in enumerate(MEMBERS):
        expected = alone(member, order if shared else order[:, i], dtype)
        for name, array in runs.observed.items():
            assert array.shape[:2] == (len(MEMBERS), STEPS // 3) and array.dtype == str(dtype).removeprefix("torch.")
            wanted = torch.stack([expected[step - 1][name] for step in runs.observed_at])
            np.testing.assert_allclose(array[i], wanted, rtol=rtol, atol=atol, err_msg=f"{name} of {member}")
        torch.testing.assert_close(runs.params["0.weight"][i], expected[-1]["params"], rtol=rtol, atol=atol)


def quartic(params, batch):
    return (params["theta"] ** 4).sum()


def start(seed):
    return {"theta": torch.tensor([1.0, -0.5], dtype=torch.float64) * (1 + seed)}


def test_a_plain_function_of_parameters_is_enough():
    runs = ensemble.train(
        quartic, start, [dict(lr=0.1, k=1)], None, 3, {"theta": lambda member: member.params["theta"]}
    )
    theta = torch.nn.Parameter(start(0)["theta"])
    optimizer = KAdam([theta], lr=0.1, k=1)
    for i in range(3):
        optimizer.zero_grad()
        (theta**4).sum().backward()
        optimizer.step()
        np.testing.assert_allclose(runs.observed["theta"][0, i], theta.detach(), rtol=1e-13)


def steep(params, batch):
    """Infinite as soon as theta leaves (-3, 3)."""
    theta = params["theta"]
    return torch.where(theta.abs() < 3, theta**2, torch.inf).sum()


def test_members_that_diverge_are_frozen_and_labelled_and_leave_the_others_alone():
    good = [dict(lr=1e-2, k=1), dict(lr=2e-2, seed=1)]
    # the first step of Adam is about lr: 7 and 5 leave at once, 2.2 later
    bad = [dict(lr=7.0, k=1), dict(lr=5.0), dict(lr=2.2, betas=(0.9, 0.0), k=1)]
    trained = []

    def watched(step, who):
        trained.append((step, who.tolist()))

    mixed = [bad[0], good[0], bad[1], good[1], bad[2]]
    runs = ensemble.train(
        steep, start, mixed, watched, 40, {"theta": lambda member: member.params["theta"]}, keep_params=True
    )
    calm = ensemble.train(
        steep, start, good, None, 40, {"theta": lambda member: member.params["theta"]}, keep_params=True
    )
    assert [runs.outcome[i] for i in (1, 3)] == calm.outcome == ["finished", "finished"]
    np.testing.assert_array_equal(runs.observed["theta"][[1, 3]], calm.observed["theta"])
    for i, member in [(0, bad[0]), (2, bad[1]), (4, bad[2])]:
        at = runs.diverged_at[i]
        assert runs.outcome[i] == f"diverged at step {at}" and at >= 2
        # the single run: its loss is finite up to the step before, and not at this one
        theta = torch.nn.Parameter(start(0)["theta"])
        optimizer = KAdam([theta], **member)
        for _ in range(at - 1):
            optimizer.zero_grad()
            loss = steep({"theta": theta}, None)
            assert loss.isfinite()
            loss.backward()
            optimizer.step()
        assert not steep({"theta": theta}, None).isfinite()
        torch.testing.assert_close(runs.params["theta"][i], theta.detach())  # frozen before that step, and finite
        assert np.isfinite(runs.observed["theta"][i, : at - 1]).all()
        assert np.isnan(runs.observed["theta"][i, at - 1 :]).all()
        assert all(i not in who for step, who in trained if step > at)  # it costs nothing any more
        assert any(i in who for step, who in trained if step == at)


@pytest.mark.parametrize(
    ("loss", "first"),
    [
        (lambda params, batch: params["theta"].abs().sqrt().sum(), 0.0),  # infinite gradient of a finite loss
        (lambda params, batch: (params["theta"] * 1e30).sum(), 1.0),  # its square, and so v, is infinite in float32
        (lambda params, batch: params["theta"].log().sum(), -1.0),
    ],
)
def test_what_is_not_finite_is_not_taken(loss, first):
    runs = ensemble.train(
        loss, lambda seed: {"theta": torch.full((2,), first)}, [{}], None, 5, {"loss": lambda member: member.loss},
        keep_params=True,
    )  # fmt: skip
    assert runs.outcome == ["diverged at step 1"]
    assert runs.params["theta"].tolist() == [[first, first]]
    assert np.isnan(runs.observed["loss"]).all() and runs.observed["loss"].shape == (1, 5)


def test_a_sum_that_overflows_is_no_divergence():
    huge = {"theta": torch.full((4,), 3e38)}
    runs = ensemble.train(lambda params, batch: (params["theta"] * 1e-30).sum(), lambda seed: huge, [{}], None, 3)
    assert not huge["theta"].sum().isfinite() and runs.outcome == ["finished"]


def test_chunks_bound_the_number_of_members_trained_together():
    sizes, shares = [], []
    members = [dict(lr=1e-3, k=1 + i % 2) for i in range(11)]
    ensemble.train(
        quartic, start, members, lambda step, who: sizes.append(len(who)), 2, chunk=3, progress=shares.append
    )
    assert sizes == [3, 3, 3, 3, 3, 3, 2, 2]  # six with one stage and five with two, two steps each
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == len(sizes) + 4


def test_the_default_chunk_follows_the_size_of_the_state():
    for size in (10, 10**5):
        sizes = []
        ensemble.train(
            lambda params, batch: (params["theta"] ** 2).sum(), lambda seed, size=size: {"theta": torch.ones(size)},
            [dict(k=1)] * 100, lambda step, who, sizes=sizes: sizes.append(len(who)), 1,
        )  # fmt: skip
        assert sum(sizes) == 100
        assert max(sizes) * size * 4 * 4 <= ensemble.CACHE
        assert len(sizes) == 1 if size == 10 else len(sizes) > 1


def test_initial_parameters_are_those_of_the_seed_and_the_generator_stays():
    torch.manual_seed(5)
    expected = make()[0].weight
    state = torch.get_rng_state()
    _, init = ensemble.from_module(make, F.cross_entropy)
    assert torch.equal(init(5)["0.weight"], expected) and not torch.equal(init(6)["0.weight"], expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_losses_draw_as_they_are_told():
    loss, init = ensemble.from_module(
        lambda: torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout()), F.cross_entropy
    )
    x, y = data(torch.float32)

    def losses(randomness):
        runs = ensemble.train(
            loss, init, [dict(k=1)] * 2, lambda step, who: (x, y), 1, {"loss": OBSERVE["loss"]}, randomness=randomness
        )
        return runs.observed["loss"][:, 0]

    with pytest.raises(RuntimeError, match="randomness"):
        losses("error")
    first, second = losses("same")
    assert first == second
    first, second = losses("different")
    assert first != second


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (dict(lr=-1.0), r"members\[1\]: Invalid learning rate: -1.0"),
        (dict(betas=(0.9, 1.0)), r"members\[1\]: Invalid beta parameter at index 1: 1.0"),
        (dict(eps=float("nan")), r"members\[1\]: Invalid epsilon value: nan"),
        (dict(weight_decay="0"), r"members\[1\]: Invalid weight_decay value: '0'"),
        (dict(k=0), r"members\[1\]: Invalid k: 0"),
        (dict(schedule="none"), r"members\[1\]: Invalid schedule: 'none'"),
        (dict(beta=0.9), r"members\[1\]: unknown beta \(a member has lr, betas"),
        (dict(betas=(0.9, 1 - 1e-12)), r"members\[1\]: decay rates .* 1 in torch.float32"),
    ],
)
def test_a_wrong_hyperparameter_is_named_with_its_member(member, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ensemble.train(quartic, lambda seed: {"theta": torch.ones(2)}, [{}, dict(k=1) | member], None, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(steps=0), "steps: 0"),
        (dict(every=True), "every: True"),
        (dict(chunk=-1), "chunk: -1"),
        (dict(members=[]), "members: none"),
        (dict(init=lambda seed: {"theta": torch.ones(2, dtype=torch.int64)}), "init: parameters of .*floating"),
        (
            dict(init=lambda seed: {"a": torch.ones(2), "b": torch.ones(2).double()}),
            "init: parameters of .*one floating",
        ),
        (dict(init=lambda seed: {"theta": torch.ones(2 + seed)}), "init: parameters .*must be the same"),
    ],
)
def test_other_wrong_arguments_are_named(arguments, message):
    given = dict(loss=quartic, init=start, members=[dict(seed=0), dict(seed=1)], batches=None, steps=1)
    with pytest.raises((ValueError, TypeError), match=message):
        ensemble.train(**{**given, **arguments})
