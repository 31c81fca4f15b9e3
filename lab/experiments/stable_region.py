"""Runs of ``notebooks/02_stable_region.ipynb``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kadam.optimizer import KAdam
from lab import data
from lab.experiments import run
from lab.models import Transformer
from lab.training import History, kadam_anywhere, largest_update, shuffled_batches, single_pass, text_blocks, train


@run("stable_region.transformer", data="words", short={"steps": 12})
def transformer_on_words(
    pairs: Sequence[Sequence[float]], seed: int, steps: int, lr: float, eps: float = 0.0, weight_decay: float = 0.0,
    batch: int = 4, context: int = 32, blocks: int | None = None, dtype: str = "float32", watched: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """k-Adam on a two-layer transformer over one pass through the words; ``pairs`` are (beta, gamma) of every stage.

    With ``blocks`` the text is so many blocks of ``context`` words, chosen by the seed and read again and again;
    ``batch = blocks`` is then the full gradient.

    Returns ``largest_update``: max |u_n| over all parameters, n = 0 ... steps - 1; ``loss``; ``outcome``. With
    ``watched`` the run is repeated, and of that many coordinates with the largest last |u| there are the histories
    ``gradients`` and ``updates``, shape (steps, watched), and ``carriers``, the names of their parameters.
    """
    text = data.words()

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        if blocks is None:
            return single_pass(text.tokens, context, batch, steps, seed)
        x, y = text_blocks(text.tokens, context)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:blocks]
        return shuffled_batches(x[chosen], y[chosen], batch, steps, seed)

    def run(observe: Callable[[Transformer, KAdam], float]) -> tuple[Transformer, KAdam, History]:
        torch.manual_seed(seed)
        model = Transformer(len(text.vocabulary), context).to(getattr(torch, dtype))
        betas = [(gamma, beta) for beta, gamma in pairs]
        optimizer = kadam_anywhere(
            model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, k=len(betas)
        )
        return model, optimizer, train(model, optimizer, batches(), {"it": lambda: observe(model, optimizer)})

    def everywhere(model: Transformer, of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([of(param).flatten() for param in model.parameters()])

    def gradient(param: Tensor) -> Tensor:
        assert param.grad is not None
        return param.grad

    model, optimizer, history = run(largest_update)
    result = {"largest_update": history.observed["it"], "loss": history.loss, "outcome": history.outcome}
    if watched:
        chosen = everywhere(model, optimizer.last_update).abs().topk(watched).indices
        names = [name for name, param in model.named_parameters() for _ in range(param.numel())]
        gradients: list[Tensor] = []
        updates: list[Tensor] = []

        def watch(model: Transformer, optimizer: KAdam) -> float:
            gradients.append(everywhere(model, gradient)[chosen])
            updates.append(everywhere(model, optimizer.last_update)[chosen])
            return 0.0

        run(watch)
        result["gradients"], result["updates"] = torch.stack(gradients).numpy(), torch.stack(updates).numpy()
        result["carriers"] = [names[i] for i in chosen.tolist()]
    return result
