import numpy as np
import pytest
import torch
from torch import nn

from kadam import KAdam
from lab.models import Block, BranchNormBlock, BranchNormTransformer, ConvNet, Transformer
from lab.training import largest_update, shuffled_batches, single_pass, text_parts, train


@pytest.mark.parametrize("block", [Block, BranchNormBlock])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_a_transformer_does_not_see_the_future(block, norm):
    torch.manual_seed(0)
    model = Transformer(vocabulary=11, context=8, norm=norm, block=block)
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (tokens[:, 5] + 1) % 11
    difference = (model(tokens) - model(changed)).abs().sum(-1)
    assert (difference[:, :5] == 0).all() and (difference[:, 5:] > 0).all()


def test_a_transformer_is_its_blocks_between_embeddings_and_read_out():
    def tensors(*layers):
        return [param for layer in layers for param in layer.parameters()]

    for make, block in ((Transformer, Block), (BranchNormTransformer, BranchNormBlock)):
        torch.manual_seed(3)
        model = make(11, 8, width=6, layers=2, heads=3)
        torch.manual_seed(3)  # the same layers, made by hand in this order, have the same weights
        ends = nn.Embedding(11, 6), nn.Embedding(8, 6)
        by_hand = tensors(*ends, block(6, 3, "layer"), block(6, 3, "layer"), nn.LayerNorm(6), nn.Linear(6, 11))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand, strict=True))
        names = [name for name, _ in model.named_parameters()]
        assert names[:2] == ["tokens.weight", "positions.weight"] and names[-2:] == ["readout.weight", "readout.bias"]
        assert f"blocks.1.{'query' if block is BranchNormBlock else 'query_key_value'}.weight" in names
        bare = make(11, 8, width=6, layers=2, heads=3, norm="none")
        assert [name for name, _ in bare.named_parameters()] == [name for name in names if "norm" not in name]


@pytest.mark.parametrize("norm", ["none", "group"])
def test_convnet_learns(norm):
    torch.manual_seed(0)
    model = ConvNet(norm=norm)
    x, y = torch.randn(50, 40), torch.randint(10, (50,))
    history = train(model, KAdam(model.parameters(), lr=1e-2, k=1), shuffled_batches(x, y, 50, 60, 0))
    assert history.outcome == "finished" and history.loss[-1] < history.loss[0] / 2


def test_wrong_norm_is_named():
    with pytest.raises(ValueError, match="norm: 'batch'"):
        ConvNet(norm="batch")
    with pytest.raises(ValueError, match="norm: 'batch'"):
        Transformer(11, 8, norm="batch")


def test_divergence_is_a_named_outcome():
    model = nn.Linear(2, 3)
    x, y = torch.ones(9, 2), torch.zeros(9, dtype=torch.long)
    x[4:] = float("inf")
    batches = ((x[i : i + 1], y[i : i + 1]) for i in range(9))
    history = train(model, KAdam(model.parameters()), batches, {"one": lambda: 1.0})
    assert history.outcome == "diverged at step 5" and len(history.loss) == 4
    assert history.observed["one"].tolist() == [1.0] * 4
    assert all(p.isfinite().all() for p in model.parameters())


def test_observers_are_asked_when_due():
    model = nn.Linear(2, 3)
    optimizer = KAdam(model.parameters(), k=1)
    batches = shuffled_batches(torch.randn(8, 2), torch.zeros(8, dtype=torch.long), 4, 7, 0)
    history = train(model, optimizer, batches, {"largest": lambda: largest_update(model, optimizer)}, every=3)
    assert history.observed_at.tolist() == [3, 6] and np.all(history.observed["largest"] > 0)


def test_the_largest_update_of_a_spoilt_parameter_is_nan():
    model = nn.Linear(2, 3)
    optimizer = KAdam(model.parameters())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    model.bias.grad[1] = float("nan")
    optimizer.step()
    assert np.isnan(largest_update(model, optimizer))


def test_shuffled_batches_use_every_example_once_an_epoch():
    x = torch.arange(10)
    epochs = [a for a, _ in shuffled_batches(x, x, 5, 4, seed=0)]
    for first, second in (epochs[:2], epochs[2:]):
        assert sorted(torch.cat([first, second]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(epochs[:2]), torch.cat(epochs[2:]))
    with pytest.raises(ValueError, match="size: 11"):
        next(iter(shuffled_batches(x, x, 11, 1, 0)))


def test_single_pass_uses_no_text_twice():
    tokens = torch.arange(100)
    batches = list(single_pass(tokens, context=4, size=2, steps=10, seed=0))
    seen = torch.cat([x.flatten() for x, _ in batches])
    assert len(set(seen.tolist())) == len(seen) == 80
    assert all(torch.equal(x + 1, y) for x, y in batches)
    with pytest.raises(ValueError, match="steps: 11"):
        next(iter(single_pass(tokens, 4, 2, 11, 0)))


def test_the_parts_of_the_text_share_no_block():
    parts = text_parts(torch.arange(1005), context=4)  # 201 blocks: 161 and 40
    assert torch.equal(parts.x[:, 1:], parts.y[:, :-1]) and torch.equal(parts.x_test + 1, parts.y_test)
    starts = [part[:, 0] // 5 for part in (parts.x, parts.x_validation, parts.x_test)]
    assert starts[0].tolist() == list(range(161))
    assert starts[1].tolist() == [161, 177, 193] and starts[2].tolist() == [169, 185]
