"""Networks that can be had with and without normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


class BranchNormTransformer(nn.Module):
    """A causal language model with a norm at the end of each branch, and on queries and keys; input as Transformer's.

    Args:
        norm: ``"layer"``, or ``"none"`` for the same network without any norm.

    With ``"layer"`` the weights of query and key are scale-invariant for each head, those of value, mix and
    ``narrow`` as a whole; those of ``wide``, which a GELU follows, the embeddings and the read-out are not.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 32, layers: int = 2, heads: int = 2, norm: str = "layer"
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(BranchNormBlock(width, heads, norm) for _ in range(layers))
        self.norm = _norm(norm, width)
        self.readout = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


class BranchNormBlock(nn.Module):
    """Causal self-attention and a two-layer perceptron, each before its norm and beside a residual path."""

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


def _norm(kind: str, width: int) -> nn.Module:
    if kind not in ("none", "layer"):
        raise ValueError(f"norm: {kind!r} (must be 'none' or 'layer')")
    return nn.LayerNorm(width) if kind == "layer" else nn.Identity()
