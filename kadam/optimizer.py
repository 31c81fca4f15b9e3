"""``KAdam``: the k-Adam update as a ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kadam import update
from kadam.stages import Betas, make_stages
from kadam.update import Moments, Stage


class KAdam(torch.optim.Optimizer):
    """Adam's normalisation applied k times, with AdamW's decoupled weight decay; k = 1 is AdamW.

    The formula is that of ``kadam.update``, with one pair of rates (gamma, beta) per stage. In torch's
    terms gamma is ``betas[0]`` and beta is ``betas[1]``.

    Args:
        params: tensors, named tensors or parameter groups, as for any torch optimizer. A group may have its own
            value of every argument below.
        lr: learning rate eta, a float >= 0 or a one-element tensor.
        betas: decay rates of the first and the second moment, each in [0, 1); or k explicit pairs of them.
        k: number of stages, >= 1.
        schedule: how one pair of ``betas`` becomes k pairs: ``inverse_exp``, ``exp``, ``scaled`` or ``naive``
            (``kadam.stages``). Not used with explicit pairs.
        eps: offset >= 0 of every stage's denominator. At 0, a coordinate whose second moment is zero has update 0.
        weight_decay: decoupled weight decay lambda >= 0; each step multiplies the parameters by 1 - lr lambda.
        maximize: ascend instead of descend.

    The defaults are those of ``torch.optim.AdamW``; k = 2 and ``inverse_exp`` are the paper's 2-Adam.

    State per parameter: ``step``; ``exp_avg`` and ``exp_avg_sq`` as in AdamW for the first stage, and
    ``exp_avg_i``, ``exp_avg_sq_i`` for the stages i = 2 ... k, all of the parameter's shape and dtype.
    A NaN or infinite gradient spoils its coordinate for good, as it does in AdamW.

    Raises:
        ValueError, TypeError: an argument out of range, named with its value.
        RuntimeError: from ``step`` on a sparse gradient or a complex parameter, which are not supported.

    Source: Gould & Tanaka, arXiv 2411.05746, section 5.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        k: int = 2,
        schedule: str = "inverse_exp",
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, k=k, schedule=schedule, eps=eps, weight_decay=weight_decay, maximize=maximize
        )
        _check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its own values of the constructor's arguments are checked as there."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient. Returns the closure's loss, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # everything that can be refused is refused before anything is changed
        work = [
            (param, param.grad, self._checked_state(param, param.grad, group), group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        for param, grad, state, group in work:
            pairs = make_stages(group["betas"], group["k"], group["schedule"])
            lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
            n = state["step"].item() + 1
            old = _moments(state, len(pairs))
            new = update.cascade(-grad if group["maximize"] else grad, old, n, pairs, group["eps"])
            value = update.apply(param, new[-1], n, pairs[-1], lr, group["weight_decay"], group["eps"])
            for before, after in zip(old, new, strict=True):
                before.m.copy_(after.m)
                before.v.copy_(after.v)
            param.copy_(value)
            state["step"] += 1
        return loss

    def _checked_state(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of ``param``, made if it has none; refuses what a step cannot do."""
        k = len(make_stages(group["betas"], group["k"], group["schedule"]))
        if grad.is_sparse or param.is_complex():
            kind = "sparse gradients" if grad.is_sparse else "complex parameters"
            raise RuntimeError(f"KAdam does not support {kind}; use torch.optim.SparseAdam or split the tensor")
        state: dict[str, Any] = self.state[param]
        if not state:
            # counted in the type that torch's own optimizers use, whatever the parameter's
            wide = torch.get_default_dtype() == torch.float64
            state["step"] = torch.tensor(0.0, dtype=torch.float64 if wide else torch.float32)
            for stage in range(1, k + 1):
                for name in _moment_names(stage):
                    state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        elif _moment_names(k)[0] not in state or _moment_names(k + 1)[0] in state:
            raise ValueError(f"Invalid k: {k} (the state of this parameter was made with another k; set k to that)")
        if not isinstance(state["step"], Tensor):  # as in checkpoints of old torch versions
            state["step"] = torch.tensor(float(state["step"]))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also that of ``torch.optim.AdamW``, which fits k = 1; settings it lacks stay as they are.

        Raises:
            ValueError: the parameter groups do not match, as from any torch optimizer.
        """
        saved = state_dict["param_groups"]
        if len(saved) == len(self.param_groups):
            own = [{name: group[name] for name in self.defaults} for group in self.param_groups]
            filled = [{**mine, **theirs} for mine, theirs in zip(own, saved, strict=True)]
            state_dict = {**state_dict, "param_groups": filled}
        super().load_state_dict(state_dict)

    def last_update(self, param: Tensor) -> Tensor:
        """The update u of the last step for ``param``, from the state: the step was lr u beside the weight decay.

        Returns a new tensor of the parameter's shape.

        Raises:
            KeyError: ``param`` has not been stepped by this optimizer.
        """
        for group in self.param_groups:
            if any(param is member for member in group["params"]) and self.state.get(param):
                pairs: list[Stage] = make_stages(group["betas"], group["k"], group["schedule"])
                state = self.state[param]
                last = _moments(state, len(pairs))[-1]
                with torch.no_grad():
                    return -update.output(last, state["step"].item(), pairs[-1], group["eps"])
        raise KeyError("param: this tensor has no state in this optimizer yet (last_update needs a step first)")


def _moment_names(stage: int) -> tuple[str, str]:
    suffix = "" if stage == 1 else f"_{stage}"
    return f"exp_avg{suffix}", f"exp_avg_sq{suffix}"


def _moments(state: dict[str, Any], k: int) -> list[Moments]:
    return [Moments(*(state[name] for name in _moment_names(stage))) for stage in range(1, k + 1)]


def _check(group: dict[str, Any]) -> None:
    """Check the hyperparameters of a group; the first words are those of torch's own messages."""
    if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(group['lr'].shape)}")
    for name, words in (("lr", "learning rate"), ("eps", "epsilon value"), ("weight_decay", "weight_decay value")):
        value = group[name]
        if not isinstance(value, float | int | Tensor):
            raise TypeError(f"Invalid {words}: {value!r} ({name} must be a number >= 0)")
        if not value >= 0:
            raise ValueError(f"Invalid {words}: {value} ({name} must be >= 0)")
    make_stages(group["betas"], group["k"], group["schedule"])
