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
