"""``KAdam``: the k-Adam update as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _use_grad_for_differentiable

from kadam import hyperparameters, update
from kadam.engines import Work, foreach, loop
from kadam.fused import fused
from kadam.stages import Betas, make_stages
from kadam.update import Moments


class KAdam(torch.optim.Optimizer):
    """Adam's normalisation applied k times, with AdamW's decoupled weight decay; k = 1 is AdamW.

    With x = g at the first stage and n = 1, 2, 3, ... steps, every stage i = 1 ... k turns its input x into::

        m_i <- gamma_i m_i + (1 - gamma_i) x            v_i <- beta_i v_i + (1 - beta_i) x^2
        x   <- ( m_i / (1 - gamma_i^n) ) / ( sqrt( v_i / (1 - beta_i^n) ) + eps )

    and after the last one theta <- (1 - lr weight_decay) theta - lr x (all elementwise; ``kadam.update``).
    Source: Gould & Tanaka, arXiv 2411.05746, section 5.

    Args:
        params: tensors, named tensors or parameter groups, as for any torch optimizer. A group may have its own
            value of every argument below.
        lr: learning rate eta, a float >= 0 or a one-element tensor. Default 1e-3, as in AdamW.
        betas: (gamma, beta), decay rates of the first and the second moment, each in [0, 1), floats or one-element
            tensors; or k explicit pairs of them. Default (0.9, 0.999), as in AdamW.
        eps: offset >= 0 of every stage's denominator. At 0, a coordinate whose second moment is zero has update 0.
            Default 1e-8, as in AdamW.
        weight_decay: decoupled weight decay lambda >= 0; each step multiplies the parameters by 1 - lr lambda.
            Default 1e-2, as in AdamW.
        amsgrad: must be False; there for calls written for AdamW.
        k: number of stages, >= 1. Default 2: the paper's 2-Adam.
        schedule: how one pair of ``betas`` becomes k pairs: ``inverse_exp``, ``exp``, ``scaled`` or ``naive``
            (``kadam.stages``). Not used with explicit pairs. Default ``inverse_exp``, the paper's first.
        maximize: ascend instead of descend.

    Other arguments, which you should not need:
        foreach: True takes torch's multi-tensor operations, False the loop over tensors.
        fused: True takes the one-pass kernel: torch's own on a CPU, ours in Triton on CUDA; False the loop. With
            ``foreach`` and ``fused`` both None: fused on a CPU, foreach on CUDA, else the loop. torch.compile
            follows the foreach operations, or the loop if ``foreach`` is False.
        capturable: keep the step count on the device, so that CUDA graphs can hold the step (not the fused one).
        differentiable: let autograd pass through the step.
        state_dtype: dtype of the moments; None is the parameter's own, as in AdamW. With bfloat16 parameters
            ``torch.float32`` keeps small changes of the moments.

    State per parameter: ``step``; ``exp_avg`` and ``exp_avg_sq`` as in AdamW for the first stage, and
    ``exp_avg_i``, ``exp_avg_sq_i`` for the stages i = 2 ... k, all of the parameter's shape and layout.
    A step needs at most two more buffers of the parameters' size, and on a CPU by default none.
    A NaN or infinite gradient spoils its coordinate for good, as it does in AdamW.

    Warns:
        UserWarning: once, when it is made, if the rates of the last stage lie outside the stable region, with C and
            the bound. Rates that a scheduler or a loaded state brings later are not checked.

    Raises:
        ValueError, TypeError: an argument out of range, named with its value.
        RuntimeError: arguments that exclude each other; from ``step``, what the step cannot do, before anything
            is changed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
        *,
        k: int = 2,
        schedule: str = "inverse_exp",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = dict(
            lr=lr, betas=betas, k=k, schedule=schedule, eps=eps, weight_decay=weight_decay, maximize=maximize,
            foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused,
            state_dtype=state_dtype,
        )  # fmt: skip
        if amsgrad:
            raise ValueError("amsgrad: True (KAdam has no amsgrad; the argument is there for calls written for AdamW)")
        hyperparameters.check(defaults)
        defaults["k"] = int(k)
        self._built = False
        super().__init__(params, defaults)
        self._built = True
        hyperparameters.warn_if_unstable(self.param_groups)
        if fused:
            # a GradScaler then hands over its scale and what it found, instead of a pass of its own
            self._step_supports_amp_scaling = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its own values of the constructor's arguments are checked as there."""
        if isinstance(param_group, dict):
            hyperparameters.check({**self.defaults, **param_group})
            param_group["k"] = int(param_group.get("k", self.defaults["k"]))
        super().add_param_group(param_group)
        if self._built:
            hyperparameters.warn_if_unstable(self.param_groups[-1:])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, from ``load_state_dict`` or pickle: fill what older ones lack, refuse what cannot fit."""
        own = getattr(self, "param_groups", [{}] * len(state["param_groups"]))
        given = self.__dict__.pop("_given", None)
        for i, (group, mine) in enumerate(zip(state["param_groups"], own, strict=True)):
            _adopt(group, mine)
            for j, param in enumerate(group["params"]):
                found = state["state"].get(param, {})
                if given and group["state_dtype"] is not None:
                    # the base class has rounded the moments to the parameter's dtype: take them as they were
                    saved = given["state"].get(given["param_groups"][i]["params"][j], {})
                    for name in saved.keys() & set(_moment_names(group["k"])):
                        found[name] = saved[name].to(param.device, _moment_dtype(param, group), copy=True)
                _check_state(param, found, group)
        super().__setstate__(state)
        self._built = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also that of ``torch.optim.AdamW``, which fits k = 1; settings it lacks stay as they are.

        Raises:
            ValueError: the parameter groups, k or a tensor's shape do not fit this optimizer, or the state needs
                what k-Adam does not have (amsgrad, Adam's coupled weight decay, which states of torch before 2.7
                do not tell). Nothing is changed then.
        """
        self._given: dict[str, Any] = {}  # for __setstate__: what is loaded, as the other hooks have left it
        last = self.register_load_state_dict_pre_hook(lambda _, loaded: self._given.update(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            last.remove()
            self.__dict__.pop("_given", None)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient. Returns the closure's loss, or None.

        Raises:
            RuntimeError: sparse gradients, or a device or dtype that the chosen implementation does not have.
            ValueError: a state that does not fit its parameter.
            Nothing is changed by a step that raises.
        """
        check = getattr(self, "_accelerator_graph_capture_health_check", None)  # its name since torch 2.10
        (check or self._cuda_graph_capture_health_check)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # everything that can be refused is refused before anything is changed
        work = []
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            moments: list[Tensor] = []
            steps: list[Tensor] = []
            k = self._init_group(group, params, grads, moments, steps)
            if params:
                work.append(_prepared(group, k, params, grads, moments, steps))
        # set by a GradScaler, for fused=True alone
        found = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        scaling = found if any(value is not None for value in found) else ()
        if scaling and any(engine in (loop, foreach) for engine, _ in work):
            raise RuntimeError("a GradScaler with fused=True needs it in every group (or call scaler.unscale_ first)")
        for engine, tensors in work:
            engine(tensors, *scaling)
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[Tensor],
        steps: list[Tensor],
    ) -> int:
        """Append what a step of this group needs, 2k moments a parameter, making states that are missing; gives k.

        torch.compile knows this name and these flat lists, and runs the method instead of tracing it.
        """
        k: int = group["k"]
        names = _moment_names(k)
        moments_of = itemgetter(*names)
        on_device = group["capturable"] or group["fused"]
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.layout is not torch.strided:
                raise RuntimeError("KAdam does not support sparse gradients, please consider SparseAdam instead")
            state = self.state[param]
            if len(state) != len(names) + 1:  # as a rule because it is empty
                _make_state(state, param, group, names)
            step = state["step"]
            # a plain number, as in checkpoints of old torch versions, or a flag that was set later
            if not isinstance(step, Tensor) or (
                on_device and (step.device != param.device or step.dtype != torch.float32)
            ):
                step = state["step"] = _as_step(float(step), param, group)
            params.append(param)
            grads.append(grad)
            moments += moments_of(state)
            steps.append(step)
        return k

    def last_update(self, param: Tensor) -> Tensor:
        """The update u of the last step for ``param``, from the state: the step was lr u beside the weight decay.

        Returns a new tensor of the parameter's shape.

        Raises:
            KeyError: ``param`` has not been stepped by this optimizer.
        """
        for group in self.param_groups:
            if any(param is member for member in group["params"]) and self.state.get(param):
                stage = make_stages(group["betas"], group["k"], group["schedule"])[-1]
                state = self.state[param]
                m, v = moments_in(state, group["k"])[-1]
                with torch.no_grad():
                    if m.is_complex():
                        m, v = torch.view_as_real(m), torch.view_as_real(v)
                    u = update.direction(Moments(m, v), state["step"].item(), stage, group["eps"])
                    return torch.view_as_complex(u) if param.is_complex() else u
        raise KeyError("param: this tensor has no state in this optimizer yet (last_update needs a step first)")


def moments_in(state: Mapping[str, Any], k: int = 1) -> list[Moments]:
    """The moments of all ``k`` stages in a parameter's ``state``, not copied; k = 1 reads torch's Adam and AdamW too.

    Raises:
        KeyError: the state is empty, of another optimizer, or of fewer stages.
    """
    names = _moment_names(k)
    return [Moments(state[m], state[v]) for m, v in zip(names[::2], names[1::2], strict=True)]


Engine = Callable[..., None]

_device, _dtype = attrgetter("device"), attrgetter("dtype")


def _prepared(
    group: dict[str, Any], k: int, params: list[Tensor], grads: list[Tensor], moments: list[Tensor], steps: list[Tensor]
) -> tuple[Engine, Work]:
    """The engine that steps this group, and its tensors as the engine takes them."""
    compiling = torch.compiler.is_compiling()
    if not compiling and not group["differentiable"] and not all(map(_is_plain, map(type, params))):
        grads = [_with_placements_of(param, grad) for param, grad in zip(params, grads, strict=True)]
        params, grads, moments = ([_local(tensor) for tensor in tensors] for tensors in (params, grads, moments))
    if any(map(Tensor.is_complex, params)):
        params, grads, moments = (
            [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
            for tensors in (params, grads, moments)
        )
    sizes = list(map(Tensor.numel, params))
    for column in (grads, *(moments[i :: 2 * k] for i in range(2 * k))):
        if list(map(Tensor.numel, column)) != sizes:
            raise ValueError("param, its gradient and its state differ in size (make a new optimizer for new shapes)")
    firsts = moments[:: 2 * k]
    if [m.shape for m in firsts] != [param.shape for param in params]:
        raise ValueError("param and its state differ in shape (make a new optimizer for new shapes)")
    kinds = set() if compiling else _kinds(params, grads, moments, k)
    lr = group["lr"]
    work = Work(
        params, grads, [moments[2 * i :: 2 * k] for i in range(k)], [moments[2 * i + 1 :: 2 * k] for i in range(k)],
        steps, make_stages(group["betas"], k, group["schedule"]), lr.reshape(()) if isinstance(lr, Tensor) else lr,
        group["weight_decay"], group["eps"], group["maximize"],
        tensor_steps=compiling or group["capturable"] or group["differentiable"], uniform=len(kinds) == 1,
    )  # fmt: skip
    return _engine(group, kinds, compiling), work


def _kinds(params: list[Tensor], grads: list[Tensor], moments: list[Tensor], k: int) -> set[tuple[Any, ...]]:
    """(plain, device, dtype of param, of gradient, of state) of all parameters; refuses those on several devices.

    The kernels take every moment's device and dtype from the first one.
    """
    plain = set(map(_is_plain, map(type, params)))
    devices = set(map(_device, chain(params, grads, moments)))
    dtypes = [set(map(_dtype, column)) for column in (params, grads, moments)]
    if all(len(found) == 1 for found in (plain, devices, *dtypes)):  # as a rule, and in a third of the time
        return {(*plain, *devices, *(dtype for found in dtypes for dtype in found))}
    kinds = set()
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        own = moments[2 * k * i : 2 * k * (i + 1)]
        if {m.device for m in own} | {grad.device} != {param.device} or len({m.dtype for m in own}) > 1:
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is on {param.device}, its gradient on {grad.device}, "
                f"its state on {sorted({str(m.device) for m in own})} in {sorted({str(m.dtype) for m in own})} "
                "(must be one device, and one dtype for the state; load the state again)"
            )
        kinds.add((_is_plain(type(param)), param.device, param.dtype, grad.dtype, own[0].dtype))
    return kinds


def _engine(group: dict[str, Any], kinds: set[tuple[Any, ...]], compiling: bool) -> Engine:
    """The implementation that the group's flags ask for; without flags, the fastest one that is known to be right."""
    if group["differentiable"] or (compiling and group["foreach"] is False):
        return loop
    if group["foreach"] and not compiling:
        hyperparameters.refuse_tensors_in_foreach(group)
    if compiling or group["foreach"]:
        return foreach
    if group["fused"] is False or (group["foreach"] is False and not group["fused"]):
        return loop
    devices = {device.type for _, device, *_ in kinds}
    fits = all(plain and dtype.is_floating_point for plain, _, dtype, *_ in kinds)
    if group["fused"]:
        if not fits or devices not in ({"cpu"}, {"cuda"}):
            raise RuntimeError(
                "`fused=True` requires all the params to be floating point Tensors of supported devices: "
                f"cpu or cuda, one of them for a group, but got {sorted({str(dtype) for _, _, dtype, *_ in kinds})} "
                f"on {sorted(devices)}"
            )
        if devices == {"cpu"}:
            return fused
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("`fused=True` cannot be captured in a CUDA graph; use foreach=True with capturable=True")
        return _gpu_kernel()
    if fits and devices == {"cpu"} and not group["capturable"]:
        return fused
    if fits and devices == {"cuda"} and (group["capturable"] or not isinstance(group["lr"], Tensor)):
        return foreach
    return loop


def _gpu_kernel() -> Engine:
    try:
        from kadam import gpu
    except ImportError as error:
        raise RuntimeError("`fused=True` on CUDA requires Triton (pip install triton), or set foreach=True") from error
    return gpu.fused


_PLAIN = (Tensor, torch.nn.Parameter)


@functools.cache
def _is_plain(kind: type) -> bool:
    """Whether tensors of this class are stored as they seem: torch's own, and parameters that only add to them."""
    return kind in _PLAIN or (
        issubclass(kind, torch.nn.Parameter)
        and kind.__torch_dispatch__ is Tensor.__torch_dispatch__
        and kind.__torch_function__ is torch.nn.Parameter.__torch_function__
    )


def _local(tensor: Any) -> Tensor:
    """A sharded tensor's part on this process, as a view; every operation of the step is elementwise."""
    local: Tensor = tensor.to_local() if _is_sharded(tensor) else tensor
    return local


def _with_placements_of(param: Any, grad: Any) -> Any:
    if _is_sharded(grad) and _is_sharded(param) and grad.placements != param.placements:
        return grad.redistribute(placements=param.placements)
    return grad


def _is_sharded(tensor: Any) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@functools.cache
def _moment_names(k: int) -> tuple[str, ...]:
    """The names in a parameter's state: first and second moment of stage 1, ..., of stage k."""
    return tuple(f"{name}{'' if i == 1 else f'_{i}'}" for i in range(1, k + 1) for name in ("exp_avg", "exp_avg_sq"))


def _make_state(state: dict[str, Any], param: Tensor, group: dict[str, Any], names: tuple[str, ...]) -> None:
    """Fill an empty state; refuse one that was made with another k."""
    if state:
        _check_state(param, state, group)
        return
    state["step"] = _as_step(0.0, param, group)
    for name in names:
        state[name] = torch.zeros_like(param, dtype=_moment_dtype(param, group), memory_format=torch.preserve_format)


def _moment_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    dtype: torch.dtype = group["state_dtype"] or param.dtype
    return dtype.to_complex() if param.is_complex() else dtype


def _as_step(value: float, param: Tensor, group: dict[str, Any]) -> Tensor:
    """A step count of the type and on the device where torch's own optimizers keep theirs."""
    if group["capturable"] or group["fused"]:
        return torch.tensor(value, dtype=torch.float32, device=param.device)
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(value, dtype=torch.float64 if wide else torch.float32, device="cpu")


def _check_state(param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Refuse a state that is not one of this parameter and this k; an empty one is fine."""
    if not state:
        return
    k = group["k"]
    names = _moment_names(k)
    missing = [name for name in ("step", *names) if name not in state]
    if missing or _moment_names(k + 1)[-1] in state:
        raise ValueError(
            f"Invalid k: {k} (the state of a parameter of shape {tuple(param.shape)} was made with another k; "
            "construct the optimizer with that k, or start from an empty state)"
        )
    for name in names:
        if state[name].shape != param.shape:
            raise ValueError(
                f"{name} has shape {tuple(state[name].shape)}, its parameter {tuple(param.shape)} "
                "(the state belongs to another parameter; give the parameters in the order in which it was saved)"
            )


def _adopt(group: dict[str, Any], own: dict[str, Any]) -> None:
    """Complete a loaded group by the optimizer's ``own``, or by the defaults; refuse what k-Adam does not have."""
    if group.pop("amsgrad", False):
        raise ValueError("amsgrad: True in the loaded state (KAdam has no amsgrad; it cannot continue this run)")
    if not group.pop("decoupled_weight_decay", True) and group.get("weight_decay"):
        raise ValueError(
            "weight_decay: the loaded state is of Adam, which adds it to the gradient; KAdam, as AdamW, decays the "
            "parameters themselves (set weight_decay to 0 in the state to continue without)"
        )
    saved = group.setdefault("k", 1)
    if own and saved != own["k"]:
        raise ValueError(f"Invalid k: {own['k']}, but the loaded state was made with k = {saved} (construct with that)")
    for name, value in _LATER.items():
        group.setdefault(name, own.get(name, value))


_LATER: dict[str, Any] = dict(
    schedule="inverse_exp", maximize=False, foreach=None, capturable=False, differentiable=False, fused=None,
    state_dtype=None,
)  # fmt: skip
"""Settings that a loaded state may lack, because it is an AdamW's or an older one."""
