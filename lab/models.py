"""The networks of the notebooks: small, and without any state but their parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Three strided convolutions and a linear read-out, for signals of 40 samples in 10 classes.

    Args:
        channels: width of every convolution.
        norm: ``"none"``, or ``"group"`` for a GroupNorm of one group after every convolution.

    Input (batch, 40), output (batch, 10).
    """

    def __init__(self, channels: int = 32, norm: str = "none") -> None:
        super().__init__()
        if norm not in ("none", "group"):
            raise ValueError(f"norm: {norm!r} (must be 'none' or 'group')")
        layers: list[nn.Module] = []
        for inputs in (1, channels, channels):
            layers.append(nn.Conv1d(inputs, channels, kernel_size=5, stride=2, padding=2))
            if norm == "group":
                layers.append(nn.GroupNorm(1, channels))
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(5 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x.unsqueeze(1)).flatten(1))


class ImageConvNet(nn.Module):
    """Three strided convolutions and a linear read-out, for colour images of 32 x 32 pixels in 10 classes.

    Input (batch, 3, 32, 32), output (batch, 10).
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, channels), (channels, 2 * channels), (2 * channels, 2 * channels)):
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.readout = nn.Linear(32 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x).flatten(1))


class Perceptron(nn.Module):
    """Two hidden layers of ReLUs, for signals of 40 samples in 10 classes.

    Args:
        width: of both hidden layers.
        norm: ``"layer"`` for a LayerNorm before every ReLU, in place of the bias: the hidden weights are then
            scale-invariant, the read-out is not. ``"none"`` for none.

    Input (batch, 40), output (batch, 10).
    """

    def __init__(self, width: int = 64, norm: str = "layer") -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(size, width, bias=norm == "none") for size in (40, width))
        self.norm_first, self.norm_second = _norm(norm, width), _norm(norm, width)
        self.readout = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_first(self.first(x)).relu()
        return self.readout(self.norm_second(self.second(x)).relu())


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind its norm and beside a residual path."""

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_perceptron = _norm(norm, width), _norm(norm, width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.perceptron(self.norm_perceptron(x))


class BranchNormBlock(nn.Module):
    """Causal self-attention and a two-layer perceptron, each before its norm and beside a residual path.

    Queries and keys have norms too. With ``norm="layer"`` the weights of query and key are scale-invariant for each
    head, those of value, mix and ``narrow`` as a whole; those of ``wide``, which a GELU follows, and the embeddings and
    the read-out around the blocks are not.
    """

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width, bias=False)
        sizes = (width // heads, width // heads, width, width)
        norms = (_norm(norm, size) for size in sizes)
        self.norm_query, self.norm_key, self.norm_attention, self.norm_perceptron = norms

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(self.norm_query(query), self.norm_key(key), value, is_causal=True)
        x = x + self.norm_attention(self.mix(attended.transpose(1, 2).flatten(2)))
        return x + self.norm_perceptron(self.narrow(F.gelu(self.wide(x))))


class Transformer(nn.Module):
    """A causal language model with learned positions; input embedding and read-out are not tied.

    Args:
        norm: ``"layer"``, or ``"none"`` for the same network without any norm.
        block: makes each of the ``layers`` from width, heads and norm: ``Block`` or ``BranchNormBlock``.

    Input: tokens, int64, (batch, length <= context). Output: logits (batch, length, vocabulary).
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 32, layers: int = 2, heads: int = 2, norm: str = "layer",
        block: Callable[[int, int, str], nn.Module] = Block,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(block(width, heads, norm) for _ in range(layers))
        self.norm = _norm(norm, width)
        self.readout = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


BranchNormTransformer = partial(Transformer, block=BranchNormBlock)
"""The one of page 04: a norm at the end of each branch, and on queries and keys."""


def _norm(kind: str, width: int) -> nn.Module:
    if kind not in ("none", "layer"):
        raise ValueError(f"norm: {kind!r} (must be 'none' or 'layer')")
    return nn.LayerNorm(width) if kind == "layer" else nn.Identity()
