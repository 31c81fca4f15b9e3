import pytest
import torch

from kadam.flow import Flow, gradient_of
from kadam.update import Stage
from lab.models import Transformer
from lab.problems import Problem, algorithm, blended, logistic, of_model, sharpness, transformer, walk
from lab.training import cross_entropy


def test_the_gradient_is_the_models():
    problem = transformer(seed=1, blocks=3, context=5, vocabulary=7)
    torch.manual_seed(1)
    model = Transformer(7, 5, 16, 1).double()
    torch.testing.assert_close(torch.cat([param.detach().flatten() for param in model.parameters()]), problem.theta)
    tokens = torch.arange(18).view(3, 6) % 7
    loss = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    expected = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(model.parameters()))])
    found = of_model(model, [(tokens[:, :-1], tokens[:, 1:])])
    torch.testing.assert_close(found.gradient(found.theta, 0.0), expected)
    assert len(found.names) == len(found.theta) and found.names[0] == "tokens.weight"


@pytest.mark.parametrize(("t", "value"), [(0.0, 1.0), (0.1, 2.0), (0.15, 3.0), (0.2 - 1e-12, 4.0), (0.9, 4.0)])
def test_batches_go_over_into_one_another(t, value):
    gradients = [lambda theta, t, size=size: torch.full_like(theta, size) for size in (1.0, 2.0, 4.0)]
    assert blended(gradients, 0.1)(torch.zeros(1), t) == pytest.approx(value)


def test_the_algorithm_sees_one_batch_a_step():
    asked = []
    gradients = [lambda theta, t, i=i: asked.append(i) or theta for i in range(20)]
    gradient = blended(gradients, 3e-4)
    for n in range(20):
        gradient(torch.ones(1), n * 3e-4)
    assert asked == list(range(20))


def test_away_from_the_minimum():
    problem = logistic(away=2.0)
    minimum = problem.theta - 2.0 * (-1.0) ** torch.arange(5)
    assert problem.gradient(minimum, 0.0).abs().max() < 1e-12


def test_sharpness_is_an_eigenvalue():
    matrix = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1e6]], dtype=torch.float64)
    problem = Problem(gradient_of(lambda theta: theta @ matrix @ theta / 2), torch.ones(3, dtype=torch.float64), [])
    scale = torch.tensor([1.0, 4.0, torch.inf], dtype=torch.float64)  # the third coordinate is out
    expected = torch.linalg.eigvals(matrix[:2, :2] / scale[:2, None]).real.max()
    assert sharpness(problem, problem.theta, scale) == pytest.approx(expected.item(), rel=1e-6)


def test_a_walk_is_the_algorithm():
    problem, flow = logistic(), Flow([Stage(0.9, 0.99)], 0.01)
    path = [theta for theta, _ in walk(flow, problem, 3)]
    assert len(path) == 4 and torch.equal(torch.stack(path), algorithm(flow, problem, 3))
