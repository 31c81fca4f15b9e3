import pytest
import torch
from reference import k_adam

from kadam import update
from kadam.update import Moments, Stage


def zeros(shape, k, dtype=torch.float64):
    return [update.zeros(torch.empty(shape, dtype=dtype))] * k


def path_of(theta, gradients, stages, lr, weight_decay, eps):
    moments, path = zeros(theta.shape, len(stages), theta.dtype), []
    for n, gradient in enumerate(gradients, start=1):
        moments = update.cascade(gradient, moments, n, stages, eps)
        theta = update.apply(theta, moments[-1], n, stages[-1], lr, weight_decay, eps)
        path.append(theta)
    return torch.stack(path)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-2])
def test_is_the_formula_of_the_docstring(k, eps):
    generator = torch.Generator().manual_seed(k)
    stages = [Stage(0.9 - 0.1 * i, 0.999 - 0.05 * i) for i in range(k)]
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    gradients = torch.randn(100, 4, generator=generator, dtype=torch.float64)
    gradients[:, 3] = 0.0
    ours = path_of(theta, gradients, stages, 1e-2, 0.1, eps)
    for i in range(4):
        expected = k_adam(theta[i].item(), gradients[:, i].tolist(), stages, 1e-2, 0.1, eps)
        torch.testing.assert_close(ours[:, i], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_direction_and_apply_are_one_update():
    stages = [Stage(0.9, 0.999), Stage(0.5, 0.7)]
    gradient = torch.randn(7, dtype=torch.float64)
    moments = update.cascade(gradient, zeros(7, 2), 1, stages, 1e-8)
    moved = update.apply(torch.zeros(7, dtype=torch.float64), moments[-1], 1, stages[-1], 0.1, 0.0, 1e-8)
    torch.testing.assert_close(moved, 0.1 * update.direction(moments[-1], 1, stages[-1], 1e-8))


def test_an_average_is_exact_at_both_ends():
    old, new = torch.tensor([1e8, -3.0]), torch.tensor([1.1, 5.0])
    assert torch.equal(update.average(old, new, 0.0), new)
    assert torch.equal(update.average(old, old, 0.999), old)
    assert update.average(old, new, torch.tensor([0.0, 0.75])).tolist() == [new[0].item(), -1.0]


def test_the_parts_of_an_output():
    first = update.zeros(torch.ones(2, dtype=torch.float16))
    assert first.m.tolist() == first.v.tolist() == [0, 0] and first.m.dtype == first.v.dtype == torch.float16
    v = torch.tensor([4.0, 0.0], dtype=torch.float64)  # after two steps with beta = 1/2 three quarters are there
    torch.testing.assert_close(update.root(0.75 * v, 2, 0.5, 0.25), v / 2 + 0.25)
    torch.testing.assert_close(update.denominator(0.75 * v, 2, 0.5, 0.0), torch.tensor([2.0, torch.inf]).double())
    moments = Moments(torch.tensor([3.0, 1.0], dtype=torch.float64), 0.75 * v)  # m is three quarters as well
    torch.testing.assert_close(update.output(moments, 2, Stage(0.5, 0.5), 0.0), torch.tensor([2.0, 0.0]).double())
    torch.testing.assert_close(update.direction(moments, 2, Stage(0.5, 0.5), 2.0), torch.tensor([-1, -2 / 3]).double())


def test_changes_no_argument():
    gradient, theta = torch.randn(5), torch.randn(5)
    moments = [Moments(torch.rand(5), torch.rand(5))]
    before = [tensor.clone() for tensor in (gradient, theta, *moments[0])]
    new = update.cascade(gradient, moments, 3, [Stage(0.9, 0.99)], 0.0)
    update.apply(theta, new[-1], 3, Stage(0.9, 0.99), 0.1, 0.1, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (gradient, theta, *moments[0]), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [0.0, torch.tensor(0.0), 1e-8], ids=str)  # 1e-8 is zero in float16
def test_zero_second_moment_gives_zero_update(eps, dtype):
    stages = [Stage(0.9, 0.999)] * 3
    moments = zeros(2, 3, dtype)
    for n in range(1, 6):
        moments = update.cascade(torch.tensor([0.0, 1.0], dtype=dtype), moments, n, stages, eps)
        out = update.output(moments[-1], n, stages[-1], eps)
        assert out[0] == 0 and out[1] != 0


def test_nan_gradient_is_not_hidden():
    moments = update.cascade(torch.tensor([float("nan"), 1.0]), zeros(2, 1, torch.float32), 1, [Stage(0.9, 0.99)], 0.0)
    assert update.output(moments[-1], 1, Stage(0.9, 0.99), 0.0).isnan().tolist() == [True, False]


def test_hyperparameters_broadcast_under_vmap():
    gammas, betas = torch.tensor([0.9, 0.5, 0.0]), torch.tensor([0.999, 0.9, 0.5])
    gradients = torch.randn(20, 6)

    def run(gamma, beta, lr):
        return path_of(torch.ones(6), gradients, [Stage(gamma, beta)] * 2, lr, 0.1, 1e-8)[-1]

    together = torch.func.vmap(run)(gammas, betas, torch.tensor([0.1, 0.2, 0.3]))
    for i, lr in enumerate((0.1, 0.2, 0.3)):
        alone = run(gammas[i].item(), betas[i].item(), lr)
        torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_wrong_number_of_moments():
    with pytest.raises(ValueError, match="zip"):
        update.cascade(torch.ones(2, dtype=torch.float64), zeros(2, 2), 1, [Stage(0.9, 0.99)], 0.0)
