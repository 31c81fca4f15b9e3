"""The networks of the notebooks: small, and without any state but their parameters."""

from __future__ import annotations

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


class Transformer(nn.Module):
    """A causal pre-LayerNorm language model with learned positions; input embedding and read-out are not tied.

    Input: tokens, int64, (batch, length <= context). Output: logits (batch, length, vocabulary).
    """

    def __init__(self, vocabulary: int, context: int, width: int = 32, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.readout(self.norm(x))


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each behind a LayerNorm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.query_key_value(self.norm_attention(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.perceptron(self.norm_perceptron(x))


class Perceptron(nn.Module):
    """Two hidden ReLU layers, each behind a LayerNorm, for signals of 40 samples in 10 classes; input as ConvNet's.

    The hidden weights have no bias beside them and are scale-invariant; the read-out is not.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm_first, self.norm_second = nn.LayerNorm(width), nn.LayerNorm(width)
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
        if norm not in ("none", "layer"):
            raise ValueError(f"norm: {norm!r} (must be 'none' or 'layer')")
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(BranchNormBlock(width, heads, norm) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
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
        norms = (nn.LayerNorm(size) if norm == "layer" else nn.Identity() for size in sizes)
        self.norm_query, self.norm_key, self.norm_attention, self.norm_perceptron = norms

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(self.norm_query(query), self.norm_key(key), value, is_causal=True)
        x = x + self.norm_attention(self.mix(attended.transpose(1, 2).flatten(2)))
        return x + self.norm_perceptron(self.narrow(F.gelu(self.wide(x))))
