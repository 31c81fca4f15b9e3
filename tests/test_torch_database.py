"""KAdam in PyTorch's own optimizer data base, under every generic check that PyTorch runs on AdamW.

``KADAM`` describes the optimizer as ``torch.testing._internal.common_optimizers`` describes torch's. The checks live in
PyTorch's repository, which the wheel does not ship; those here are written anew, by name and purpose. They run on
AdamW's own entry too, as a control: a check that AdamW fails would not be AdamW's. All run on the CPU and, where there
is one, on a CUDA device. Importing torch's module also freezes ``torch.backends``' flags: that is undone below.

=====================================================  ==============================================================
torch's check (test/test_optim.py)                     here, or why not
=====================================================  ==============================================================
optim_infos_do_not_specify_global_cliquey_kwargs       test_info_leaves_the_implementation_to_the_checks
errors                                                 test_errors
forloop_goes_right_direction                           test_goes_right_direction, every implementation
forloop_goes_right_direction_multigpu                  test_mixed_devices_and_dtypes (needs two GPUs)
param_group_with_lrscheduler_goes_right_direction      test_groups_with_scheduler_go_right_direction
tensor_lr                                              test_tensor_lr, test_tensor_betas
rosenbrock_sparse                                      no sparse gradients: test_sparse_gradients_are_refused
complex                                                test_complex_is_its_real_view
complex_2d                                             test_complex_is_two_real_parameters
foreach_matches_forloop                                test_implementations_agree (float64)
fused_matches_forloop                                  test_implementations_agree (four dtypes)
mixed_device_dtype                                     test_mixed_devices_and_dtypes
set_default_dtype_works_with_foreach                   test_default_dtype
foreach_large_tensor, fused_large_tensor               test_large_tensor: beyond one piece of the fused step on a CPU,
                                                       beyond 32-bit indices on CUDA
peak_memory_foreach                                    test_peak_memory
fused_error_on_params_on_meta                          test_fused_refuses_meta
fused_does_not_step_if_foundinf                        test_fused_obeys_the_scaler
fused_mixed_precision_numerics, _state_init,           test_state_of_another_dtype
_hook_skips_existing_state
cpu_load_state_dict                                    test_state_moves_to_the_device
param_groups_weight_decay                              test_groups_weight_decay
param_groups_lr                                        test_groups_lr
step_is_noop_when_params_have_no_grad                  test_no_gradient_no_step
step_is_noop_for_zero_grads                            test_zero_gradients_leave_the_parameter
step_iteration                                         test_steps_are_counted
grads_are_never_inplaced_into                          test_gradients_are_never_written
optimizer_can_be_printed                               test_can_be_printed
state_dict_deterministic                               test_state_dict_resumes
can_load_older_state_dict                              test_older_state_dict
can_load_from_to_named_state_dict                      test_named_state_dict
save_load_equality_with_weights_only                   test_saved_with_weights_only
load_nontensor_step                                    test_step_loads_as_a_number
adamw_serialization                                    test_pickle (also: that of AdamW loads into k = 1)
state_dict_with_cuda_params                            test_state_moves_to_the_device
state_dict_pre_hook, _post_hook, _pre_post_hook        test_state_dict_hooks
load_state_dict_pre_hook_and_prepend, _post_hook,      test_load_state_dict_hooks
_pre_post_hook
step_pre_hook, step_post_hook, step_all_hooks          test_step_hooks
deepcopy_copies_all_public_attrs                       test_deepcopy
second_order_optims_return_consistent_types            no closure is required; test_closure
fused_cpu_matches_cuda                                 test_fused_on_cpu_is_fused_on_cuda
defaults_changed_to_foreach                            test_default_engine: fused on a CPU, foreach on CUDA
non_empty_state                                        test_state_holds_tensors
TestDifferentiableOptimizer (test/optim/test_optim.py):
adamw                                                  test_differentiable_step
adamw_differentiable_lr, _weight_decay, _betas,        test_differentiable_hyperparameters
_all_hyperparams
TestLRScheduler (test/optim/test_lrscheduler.py):
cycle_lr_with_adam,                                    test_schedulers_see_adamw
cycle_lr_cycle_momentum_with_beta1_optimizer,
onecycle_lr_*, constant_initial_*, swalr_*
reduce_lr_on_plateau_preserves_lr_type                 test_schedulers_keep_a_tensor_lr
all others                                             of the schedulers alone: they build SGD
test_cuda.py: graph_optims                             test_capturable_is_the_eager_step, test_cuda_graph
test_cuda.py: graph_scaling_fused_optimizers,          test_fused_obeys_the_scaler
grad_scaling_autocast_fused_optimizers
inductor/test_compiled_optimizers.py                   elsewhere, with torch.compile
=====================================================  ==============================================================
"""

import copy
import io
import itertools
import pathlib
import pickle
import re
import warnings
from unittest import mock

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kadam import KAdam, engines, optimizer
from kadam.fused import PIECE

pytest.importorskip("expecttest", reason="torch.testing._internal needs the package expecttest")

from torch.testing._internal import common_optimizers as database
from torch.testing._internal.common_device_type import (
    instantiate_device_type_tests,
    largeTensorTest,
    onlyCUDA,
)
from torch.testing._internal.common_optimizers import ErrorOptimizerInput, OptimizerInput, optims
from torch.testing._internal.common_utils import TestCase, parametrize

torch.backends.__allow_nonbracketed_mutation_flag = True  # importing froze the flags, also for other tests

HALVES = (torch.bfloat16, torch.float16)


def inputs(device, dtype=None):
    """AdamW's own with k = 1, then what k-Adam adds."""
    theirs = database.optim_inputs_func_adamw(device, dtype)
    for given in theirs:
        given.kwargs |= {"k": 1}
        given.kwargs.pop("amsgrad", None)
    wide = torch.float32 if dtype in HALVES else torch.float64
    ours = {
        "2-Adam": {"k": 2, "weight_decay": 0.1, "maximize": True},
        "naive": {"k": 2, "schedule": "naive", "lr": 0.01},
        "3-Adam": {"k": 3, "schedule": "exp", "weight_decay": 0.1},
        "scaled, state_dtype": {"k": 2, "schedule": "scaled", "state_dtype": wide},
        "explicit pairs, eps = 0": {"k": 3, "betas": [(0.9, 0.99), (0.5, 0.9), (0.8, 0.99)], "eps": 0.0},
    }
    if dtype in HALVES:
        del ours["explicit pairs, eps = 0"]["eps"]  # where a second moment underflows depends on the implementation
    if str(device).startswith("cuda"):
        ours["capturable 2-Adam"] = {"k": 2, "capturable": True, "lr": torch.tensor(0.001)}
    eps = {"eps": 0.1} if dtype == torch.float16 else {}  # as torch does: 1e-8 is zero in float16
    return [given for given in theirs if given.desc != "amsgrad"] + [
        OptimizerInput(params=None, kwargs={**kwargs, **eps}, desc=desc) for desc, kwargs in ours.items()
    ]


def error_inputs(device, dtype):
    wrong = {
        "Invalid k: 0": {"k": 0},
        "Invalid k: 2.0": {"k": 2.0},
        "Invalid schedule: 'cosine'": {"schedule": "cosine"},
        "1 explicit pairs for k = 2": {"k": 2, "betas": [(0.9, 0.99)]},
        "Invalid beta parameter at index 1: 1.0": {"k": 1, "betas": [(0.9, 1.0)]},
        "Invalid state_dtype": {"state_dtype": torch.int32},
    }
    param = nn.Parameter(torch.ones(2, device=device, dtype=dtype))
    return database.optim_error_inputs_func_adamw(device, dtype) + [
        ErrorOptimizerInput(
            OptimizerInput(params=[param], kwargs=kwargs, desc=message), error_type=ValueError, error_regex=message
        )
        for message, kwargs in wrong.items()
    ]


ADAMW = next(info for info in database.optim_db if info.optim_cls is AdamW)
KADAM = database.OptimizerInfo(
    KAdam,
    optim_inputs_func=inputs,
    optim_error_inputs_func=error_inputs,
    scheduler_inputs=ADAMW.scheduler_inputs,
    supported_impls=("foreach", "differentiable", "fused"),
    not_og_supported_flags=ADAMW.not_og_supported_flags,
    supports_fused_on=("cpu", "cuda"),
    has_capturable_arg=True,
    supports_complex=True,
    supports_sparse=False,
)
both = optims([KADAM, ADAMW], dtypes=[torch.float32])
kadam_only = optims([KADAM], dtypes=[torch.float32])


def configurations(info, device, skip=("differentiable",)):
    """The keyword arguments of every input, in every implementation; torch's own helper has no foreach on a CPU."""
    flags = [flag for flag in info.supported_impls if flag not in skip]
    chosen = [dict.fromkeys(flags, False), *({**dict.fromkeys(flags, False), flag: True} for flag in flags)]
    return [{**given.kwargs, **choice} for choice in chosen for given in info.optim_inputs_func(device=device)]


def of_adamw(kwargs):
    """The same arguments for AdamW; None where it has no such optimizer."""
    kwargs = {name: value for name, value in kwargs.items() if name != "k" or value != 1}
    return None if {"k", "schedule", "state_dtype"} & kwargs.keys() else kwargs


def make_params(device, dtype=torch.float32, gaps=False, seed=0):
    """Leaves of many shapes: a scalar, an empty one, a transposed one; with ``gaps`` one that is a view of a larger."""
    generator = torch.Generator().manual_seed(seed)
    real = dtype.to_real() if dtype.is_complex else dtype
    shapes = ((3, 2), (5,), (1, 3), (), (0,))
    tensors = [torch.rand(shape, generator=generator, dtype=torch.float32) for shape in shapes]
    tensors.append(torch.rand(4, 3, generator=generator, dtype=torch.float32).t())
    tensors = [tensor.to(device, real).to(dtype) for tensor in tensors]
    if gaps:
        tensors.append(torch.rand(6, 2, generator=generator).to(device, real).to(dtype)[:, 0])
    return [nn.Parameter(tensor) for tensor in tensors]


def set_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        real = torch.view_as_real(param) if param.is_complex() else param
        # not randn_like: another device must get the same numbers, in the parameter's layout
        grad = torch.randn(real.shape, generator=generator, dtype=torch.float32).to(param.device, real.dtype)
        param.grad = torch.empty_like(param).copy_(torch.view_as_complex(grad) if param.is_complex() else grad)


def run(optimizer, params, steps=7, first=0):
    """Steps with given gradients; one step has none at all, and in two the first parameter has none.

    Gives the parameters after every step and the last state.
    """
    seen = []
    for n in range(first, first + steps):
        set_grads(params, n)
        for param in params[: {2: len(params), 3: 1, 4: 1}.get(n, 0)]:
            param.grad = None
        optimizer.step()
        seen.append([param.detach().clone() for param in params])
    return seen, copy.deepcopy([optimizer.state[param] for param in params])


def identical(a, b):
    """Bit for bit, for nested containers: far faster than TestCase.assertEqual, which then says what differs."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


class Model:
    """(W x + b)^2 with its optimizer's closure."""

    def __init__(self, device, dtype=torch.float32, gaps=False):
        shapes = ((4, 3, 2), (4, 2), (3, 2))
        weight, bias, self.x = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        weight, bias, self.x = (t[..., 0] if gaps else t[..., 0].contiguous() for t in (weight, bias, self.x))
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.params = [self.weight, self.bias]

    def loss(self):
        return (self.weight.mv(self.x) + self.bias).pow(2).sum()

    def closure(self):
        for param in self.params:
            param.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def went(self, optimizer, schedulers=(), steps=20):
        """The change of the loss."""
        before = self.loss().item()
        for _ in range(steps):
            loss = optimizer.step(self.closure)
            for scheduler in schedulers:
                scheduler.step(*([loss] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        return self.loss().item() - before


class TestDatabase(TestCase):
    def assert_same(self, a, b, msg=None):
        if not identical(a, b):
            self.assertEqual(a, b, rtol=0, atol=0, equal_nan=True, msg=msg)
            self.fail(f"not of one structure: {msg}")

    def assert_direction(self, change, kwargs):
        self.assertTrue(change > 0 if kwargs.get("maximize") else change < 0, f"{change}: {kwargs}")

    # --- the entry, errors

    @both
    def test_info_leaves_the_implementation_to_the_checks(self, device, dtype, optim_info):
        given = optim_info.optim_inputs_func(device=device)
        self.assertFalse(any({"foreach", "fused", "differentiable"} & entry.kwargs.keys() for entry in given))

    @both
    def test_errors(self, device, dtype, optim_info):
        for wrong in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = wrong.optimizer_error_input
            params = [nn.Parameter(torch.ones(2))] if given.params is None else given.params
            check = self.assertWarnsRegex if issubclass(wrong.error_type, Warning) else self.assertRaisesRegex
            with check(wrong.error_type, wrong.error_regex):
                optim_info.optim_cls(params, **given.kwargs)

    @both
    def test_sparse_gradients_are_refused(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            param = nn.Parameter(torch.ones(2, device=device))
            param.grad = torch.ones(2, device=device).to_sparse()
            with self.assertRaisesRegex(RuntimeError, "does not support sparse gradients"):
                optim_info.optim_cls([param], **kwargs).step()
            self.assertEqual(param.tolist(), [1, 1])

    # --- the step goes where it should

    @parametrize("gaps", [False, True])
    @parametrize("scheduled", [False, True])
    @both
    def test_goes_right_direction(self, device, dtype, optim_info, gaps, scheduled):
        for makers in optim_info.scheduler_inputs if scheduled else [[]]:
            for kwargs in configurations(optim_info, device, skip=()):
                if gaps and kwargs["fused"] and (optim_info is ADAMW or "cuda" in device):
                    continue  # torch's fused steps: an error on CUDA, wrong numbers on a CPU
                model = Model(device, gaps=gaps)
                if kwargs["differentiable"]:  # a leaf that requires its gradient cannot be stepped
                    params = [param.detach() for param in model.params]
                    for param in params:
                        param.grad = torch.ones_like(param)
                    before = sum(param.sum().item() for param in params)
                    optim_info.optim_cls(params, **kwargs).step()
                    self.assert_direction(sum(param.sum().item() for param in params) - before, kwargs)
                    continue
                optimizer = optim_info.optim_cls(model.params, **kwargs)
                change = model.went(optimizer, [make(optimizer) for make in makers])
                self.assert_direction(change, kwargs)

    @both
    def test_groups_with_scheduler_go_right_direction(self, device, dtype, optim_info):
        for makers in optim_info.scheduler_inputs:
            model = Model(device)
            optimizer = optim_info.optim_cls([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.01}])
            self.assertLess(model.went(optimizer, [make(optimizer) for make in makers]), 0)

    @both
    def test_groups_lr(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            model, still = Model(device), nn.Parameter(torch.ones(2, device=device))
            groups = [{"params": model.params, "lr": 1e-3, **kwargs}, {"params": [still]}]
            still.grad = torch.ones_like(still)
            self.assert_direction(model.went(optim_info.optim_cls(groups, lr=1e-28)), kwargs)
            self.assertEqual(still.tolist(), [1, 1])

    @both
    def test_groups_weight_decay(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            model = Model(device)
            still, decayed = (nn.Parameter(torch.ones(2, device=device)) for _ in range(2))
            still.grad, decayed.grad = torch.zeros_like(still), torch.zeros_like(decayed)
            kwargs = {"weight_decay": 0.01, **kwargs}
            groups = [
                {"params": [model.weight, decayed], **kwargs},
                {"params": [model.bias, still], **kwargs, "weight_decay": 0.0},
            ]
            self.assert_direction(model.went(optim_info.optim_cls(groups)), kwargs)
            self.assertEqual(still.tolist(), [1, 1])
            self.assertLess(decayed.max().item(), 1)

    # --- k = 1 is AdamW, implementations agree

    @optims([KADAM], dtypes=[torch.float64, torch.float32, *HALVES, torch.complex64])
    def test_one_stage_is_adamw_bit_for_bit(self, device, dtype, optim_info):
        compared = 0
        for kwargs in configurations(optim_info, device, skip=()):
            theirs = of_adamw(kwargs)
            on_cuda = "cuda" in device
            if theirs is None or (dtype.is_complex and kwargs["fused"]):
                continue
            if dtype == torch.float16:
                kwargs["eps"] = theirs["eps"] = 0.1
            run_of = []
            for cls, arguments in ((KAdam, kwargs), (AdamW, theirs)):
                params = make_params(device, dtype, gaps=not kwargs["fused"])
                if kwargs["differentiable"]:
                    params = [param.detach() for param in params]
                run_of.append(run(cls(params, **copy.deepcopy(arguments)), params))
            (seen, _), _ = run_of
            self.assertFalse(identical(seen[0], seen[-1]))
            if kwargs["differentiable"]:  # AdamW has another order of operations there
                if dtype not in HALVES:
                    self.assertEqual(*run_of)
            elif on_cuda and (kwargs["fused"] or kwargs.get("capturable")):
                self.assertEqual(*run_of)
            else:
                self.assert_same(*run_of, msg=str(kwargs))
            compared += 1
        self.assertGreaterEqual(compared, 12)

    @parametrize("impl", ["foreach", "fused"])
    @optims([KADAM, ADAMW], dtypes=[torch.float64, torch.float32, *HALVES])
    def test_implementations_agree(self, device, dtype, optim_info, impl):
        if impl == "foreach" and dtype in HALVES:
            self.skipTest("rounded after every operation: torch compares foreach in float64 alone")
        for given in optim_info.optim_inputs_func(device=device, dtype=dtype):
            bound = 5e-3 if given.kwargs.get("k", 1) == 1 else 2e-2  # every stage adds its roundings
            tolerance = {"rtol": bound, "atol": bound} if dtype in HALVES else {}
            run_of = []
            for flag in (False, True):
                gaps = impl == "foreach" or (optim_info is KADAM and "cuda" not in device)
                params = make_params(device, dtype, gaps)
                kwargs = {**copy.deepcopy(given.kwargs), "foreach": False, "fused": False, impl: flag}
                run_of.append(run(optim_info.optim_cls(params, **kwargs), params))
            self.assertEqual(*run_of, **tolerance, msg=lambda words, desc=given.desc: f"{desc}: {words}")

    @both
    def test_mixed_devices_and_dtypes(self, device, dtype, optim_info):
        places = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if "cuda" in device else [device]
        for kwargs in configurations(optim_info, device):
            kwargs.setdefault("eps", 1e-3)  # 1e-8 is zero in float16
            whole, alone = (
                [make_params(place, kind) for place in places for kind in (torch.float64, torch.float32, *HALVES)]
                for _ in range(2)
            )
            params = [param for kind in whole for param in kind]
            together = optim_info.optim_cls(params, **copy.deepcopy(kwargs))
            separate = [optim_info.optim_cls(kind, **copy.deepcopy(kwargs)) for kind in alone]
            for n in range(3):
                for kind in (*whole, *alone):
                    set_grads(kind, n)
                for optim in (together, *separate):
                    optim.step()
            self.assert_same(whole, alone, msg=str(kwargs))

    @parametrize("default", [torch.float64, torch.float16])
    @both
    def test_default_dtype(self, device, dtype, optim_info, default):
        given = [kwargs for kwargs in configurations(optim_info, device)]
        expected = [run(optim_info.optim_cls(params := make_params(device), **kwargs), params) for kwargs in given]
        before = torch.get_default_dtype()
        for kwargs, (_, (state, *_)) in zip(configurations(optim_info, device), expected, strict=True):
            params = make_params(device)
            try:
                torch.set_default_dtype(default)
                _, (changed, *_) = run(optim_info.optim_cls(params, **kwargs), params)
            finally:
                torch.set_default_dtype(before)
            wide = default == torch.float64 and not kwargs["fused"] and not kwargs.get("capturable")
            self.assertEqual(changed["step"].dtype, torch.float64 if wide else torch.float32, msg=str(kwargs))
            self.assertEqual({**changed, "step": 0}, {**state, "step": 0})

    @parametrize("capturable", [False, True])
    @parametrize("dimensions", [0, 1, 2])
    @kadam_only
    def test_tensor_lr(self, device, dtype, optim_info, capturable, dimensions):
        for kwargs in configurations(optim_info, device):
            if kwargs.get("capturable") or (kwargs["foreach"] and not capturable):
                continue  # made for capturable alone; refused, see test_errors
            tensor = torch.full([1] * dimensions, 0.01)
            run_of = []
            for lr in (tensor.item(), tensor):
                params = make_params(device)
                optimizer = KAdam(params, **{**kwargs, "lr": lr, "capturable": capturable})
                run_of.append(run(optimizer, params))
            self.assertIs(optimizer.param_groups[0]["lr"], tensor)
            self.assertEqual(tensor.tolist(), torch.full([1] * dimensions, 0.01).tolist())
            self.assertEqual(*run_of)
            theirs = of_adamw(kwargs)
            if theirs is not None and not capturable:
                params = make_params(device)
                same = run(AdamW(params, **{**theirs, "lr": tensor.clone()}), params)
                check = self.assert_same if kwargs["fused"] and "cpu" in device else self.assertEqual
                check(same, run_of[1])  # elsewhere AdamW rounds 1 - lr weight_decay to lr's dtype

    @parametrize("dimensions", [0, 1, 2])
    @kadam_only
    def test_tensor_betas(self, device, dtype, optim_info, dimensions):
        for impl, capturable, k in itertools.product(("neither", "foreach", "fused"), (False, True), (1, 2)):
            if impl == "foreach" and not capturable:
                continue  # refused, see test_errors
            run_of = []
            for rates in (
                (0.9, 0.99),
                tuple(torch.full([1] * dimensions, rate, dtype=torch.float64) for rate in (0.9, 0.99)),
            ):
                params = make_params(device, torch.float64)
                flags = {"foreach": impl == "foreach", "fused": impl == "fused", "capturable": capturable}
                run_of.append(run(KAdam(params, k=k, betas=rates, **flags), params))
            self.assertEqual(*run_of, msg=f"{impl}, capturable: {capturable}, k = {k}")

    @kadam_only
    def test_capturable_is_the_eager_step(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            run_of = []
            for capturable in (False, True):
                params = make_params(device, torch.float64)
                lr = float(kwargs.get("lr", 1e-3))
                arguments = {**kwargs, "lr": lr, "capturable": capturable}
                if isinstance(kwargs.get("betas", [0])[0], torch.Tensor):
                    arguments["betas"] = (0.9, 0.99)
                run_of.append(run(KAdam(params, **arguments), params))
            self.assertEqual(*run_of, msg=str(kwargs), rtol=1e-5, atol=1e-5)  # the step count is float32

    # --- complex parameters

    @optims([KADAM, ADAMW], dtypes=[torch.complex64])
    def test_complex_is_its_real_view(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            if optim_info is ADAMW and kwargs["fused"]:
                continue  # torch refuses
            params = [*make_params(device, dtype), *make_params(device)]  # real ones beside them
            views = [torch.view_as_real(p) if p.is_complex() else p for p in params]
            views = [nn.Parameter(view.detach().clone()) for view in views]
            a, b = (optim_info.optim_cls(leaves, **copy.deepcopy(kwargs)) for leaves in (params, views))
            for n in range(3):
                set_grads(params, n)
                for param, view in zip(params, views, strict=True):
                    view.grad = (torch.view_as_real(param.grad) if param.is_complex() else param.grad).clone()
                a.step()
                b.step()
                for param, view in zip(params, views, strict=True):
                    as_real = torch.view_as_real(param) if param.is_complex() else param
                    self.assert_same(as_real.detach(), view.detach(), msg=str(kwargs))

    @optims([KADAM, ADAMW], dtypes=[torch.complex64])
    def test_complex_is_two_real_parameters(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            if optim_info is ADAMW and kwargs["fused"]:
                continue  # torch refuses
            z = nn.Parameter(torch.randn(2, device=device, dtype=dtype))
            re, im = (nn.Parameter(part.detach().clone()) for part in (z.real, z.imag))
            a, b = (optim_info.optim_cls(leaves, **copy.deepcopy(kwargs)) for leaves in ([z], [re, im]))
            for _ in range(3):
                for value, optim in ((z, a), (torch.complex(re, im), b)):
                    optim.zero_grad()
                    ((1 - value[0]) ** 2 + 100 * (value[1] - value[0] ** 2) ** 2).abs().backward()
                self.assertEqual(torch.view_as_real(z.grad), torch.stack([re.grad, im.grad], -1))
                re.grad, im.grad = z.grad.real.clone(), z.grad.imag.clone()
                a.step()
                b.step()
                self.assertEqual(torch.view_as_real(z.detach()), torch.stack([re, im], -1).detach())

    # --- size, memory

    @parametrize("impl", ["foreach", "fused"])
    @largeTensorTest("40GB", "cuda")
    @optims([KADAM, ADAMW], dtypes=[torch.float16, torch.float32])
    def test_large_tensor(self, device, dtype, optim_info, impl):
        if "cuda" in device:  # beyond what an int32 counts
            if dtype == torch.float32:
                self.skipTest("float16 is as telling, at half the memory")
            param = torch.ones(2**31 + 1, device=device, dtype=dtype)
            param.grad = torch.zeros_like(param)
            optim_info.optim_cls([param], weight_decay=0.5, lr=0.5, **{impl: True}).step()
            self.assertEqual(param[-1].item(), 0.75)
            return
        # beyond one piece of the fused step, between small ones
        run_of = []
        for flag in (False, True):
            generator = torch.Generator().manual_seed(0)
            sizes = (3, 2 * PIECE + 5, 7)
            params = [torch.rand(size, generator=generator).to(dtype) for size in sizes]
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            optim = optim_info.optim_cls(params, eps=0.1, **{"foreach": False, "fused": False, impl: flag})
            optim.step()
            optim.step()
            run_of.append([params, *(optim.state[param] for param in params)])
        self.assertEqual(*run_of, **({"rtol": 5e-3, "atol": 5e-3} if dtype == torch.float16 else {}))

    @parametrize("impl", ["neither", "foreach", "fused"])
    @both
    def test_peak_memory(self, device, dtype, optim_info, impl):
        for given in optim_info.optim_inputs_func(device=device):
            flags = {"foreach": impl == "foreach", "fused": impl == "fused"}
            params = [torch.rand(64, 128, device=device) for _ in range(10)]
            optim = optim_info.optim_cls(params, **given.kwargs, **flags)
            for param in params:
                param.grad = torch.rand_like(param)
            optim.step()
            if "cuda" in device:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                optim.step()
                peak = torch.cuda.max_memory_allocated() - before
            else:
                with torch.profiler.profile(profile_memory=True) as profile:
                    optim.step()
                events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
                changes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
                peak = max(itertools.accumulate(changes, initial=0))
            buffers = peak / (10 * 64 * 128 * 4)
            if given.kwargs.get("state_dtype") == torch.float64:
                buffers /= 2  # a buffer is as wide as the moments
            allowed = 3 if optim_info is ADAMW and given.kwargs.get("capturable") else 2
            self.assertLess(buffers, allowed + 0.05, f"{given.desc}, {impl}")

    # --- fused

    @both
    def test_fused_refuses_meta(self, device, dtype, optim_info):
        message = "`fused=True` requires all the params to be floating point Tensors"
        with torch.device("meta"):
            model = nn.Linear(2, 3)
        optim = optim_info.optim_cls(model.parameters(), fused=True)
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        with self.assertRaisesRegex(RuntimeError, message):
            optim.step()
        optim.zero_grad()
        model.to_empty(device=device)
        for param in model.parameters():
            param.grad = torch.rand_like(param)
        optim.step()  # the refusal left no state behind that could not be used

    @parametrize("scale", [None, 1024.0])
    @both
    def test_fused_obeys_the_scaler(self, device, dtype, optim_info, scale):
        for given in optim_info.optim_inputs_func(device=device):
            params, plain = make_params(device), make_params(device)
            before = copy.deepcopy(params)
            optim = optim_info.optim_cls(params, fused=True, **copy.deepcopy(given.kwargs))
            self.assertTrue(optim._step_supports_amp_scaling)
            reference = optim_info.optim_cls(plain, fused=True, **copy.deepcopy(given.kwargs))
            set_grads(plain, 0)
            set_grads(params, 0)
            if scale:
                optim.grad_scale = torch.full((), scale, device=device)
                for param in params:
                    param.grad *= scale
            optim.found_inf = torch.ones((), device=device)
            optim.step()
            self.assert_same(params, before)
            self.assertTrue(all(optim.state[param]["step"].item() == 0 for param in params))
            self.assertTrue(all(not optim.state[param]["exp_avg"].any() for param in params))
            optim.found_inf = torch.zeros((), device=device)
            optim.step()
            reference.step()
            self.assert_same(params, plain, msg=given.desc)
            if optim_info is KADAM and scale:  # AdamW's kernel leaves the unscaled gradient
                self.assert_same([param.grad for param in params], [param.grad * scale for param in plain])
            self.assertNotEqual(params[:4], before[:4])

    @parametrize("impl", ["neither", "foreach", "fused"])
    @parametrize("k", [1, 2])
    @optims([KADAM], dtypes=[torch.float32, torch.bfloat16])
    def test_state_of_another_dtype(self, device, dtype, optim_info, impl, k):
        """A state made by a hook before the first step is kept, and ``state_dtype`` makes the same."""
        other = torch.bfloat16 if dtype == torch.float32 else torch.float32
        flags = {"foreach": impl == "foreach", "fused": impl == "fused"}

        def hook(optim, args, kwargs):
            for param in optim.param_groups[0]["params"]:
                state = optim.state[param]
                if not state:
                    state["step"] = torch.zeros((), device=device if flags["fused"] else "cpu")
                    for name in [f"exp_avg{square}{i}" for i in ("", "_2")[:k] for square in ("", "_sq")]:
                        state[name] = torch.zeros_like(param, dtype=other)

        run_of = []
        for state_dtype in (None, other):
            params = make_params(device, dtype)
            optim = KAdam(params, k=k, state_dtype=state_dtype, **flags)
            if state_dtype is None:
                optim.register_step_pre_hook(hook)
            run_of.append(run(optim, params))
            for param in params:
                state = optim.state[param]
                moments = {value.dtype for name, value in state.items() if name != "step"}
                self.assertEqual((param.dtype, state["step"].dtype, moments), (dtype, torch.float32, {other}))
        self.assert_same(*run_of)
        # against the same step whose moments are rounded to that dtype after each step
        if dtype == torch.float32:
            params = make_params(device, dtype)
            optim = KAdam(params, k=k, **flags)
            for n, seen in enumerate(run_of[1][0]):
                run(optim, params, steps=1, first=n)
                for param, got in zip(params, seen, strict=True):
                    for name, value in optim.state[param].items():
                        if name != "step":
                            value.copy_(value.to(other))
                    self.assertEqual(param.detach(), got, rtol=0, atol=5e-4)

    # --- steps that change nothing, and what a step may touch

    @both
    def test_no_gradient_no_step(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device, skip=()):
            params = make_params(device)
            optim = optim_info.optim_cls(params, **kwargs)
            optim.step()
            self.assert_same(params, make_params(device))
            self.assertFalse(optim.state)

    @parametrize("lr", [0.0, 0.1])
    @both
    def test_zero_gradients_leave_the_parameter(self, device, dtype, optim_info, lr):
        for kwargs in configurations(optim_info, device, skip=()):
            if optim_info is ADAMW and lr == 0 and (kwargs["differentiable"] or kwargs.get("capturable")):
                continue  # AdamW divides by lr there
            params = [param.detach() for param in make_params(device)]
            kwargs["lr"] = torch.tensor(lr) if isinstance(kwargs.get("lr"), torch.Tensor) else lr
            optim = optim_info.optim_cls(params, **{**kwargs, "weight_decay": 0.1 if lr == 0 else 0.0})
            for _ in range(3):
                for param in params:
                    param.grad = torch.zeros_like(param)
                optim.step()
            self.assert_same(params, [param.detach() for param in make_params(device)], msg=str(kwargs))

    @both
    def test_gradients_are_never_written(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device, skip=()):
            params = [param.detach() for param in make_params(device, gaps="cuda" not in device)]
            optim = optim_info.optim_cls(params, **kwargs)
            set_grads(params, 0)
            grads = [param.grad for param in params]
            versions, copies = [grad._version for grad in grads], copy.deepcopy(grads)
            for _ in range(2):
                optim.step()
            self.assert_same(grads, copies)
            self.assertEqual([grad._version for grad in grads], versions)
            self.assertTrue(all(param.grad is grad for param, grad in zip(params, grads, strict=True)))

    @both
    def test_nan_spoils_its_own_coordinate_alone(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            spoilt, clean = torch.ones(3, device=device), torch.ones(3, device=device)
            spoilt.grad, clean.grad = torch.tensor([1.0, torch.nan, 1.0], device=device), torch.ones_like(clean)
            for param in (spoilt, clean):  # one optimizer after the other: no buffer may carry the NaN over
                optim_info.optim_cls([param], **copy.deepcopy(kwargs)).step()
            self.assertEqual(spoilt.isnan().tolist() + clean.isnan().tolist(), [False, True, *[False] * 4])

    @both
    def test_steps_are_counted(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            params = make_params(device)
            optim = optim_info.optim_cls(params, **kwargs)
            run(optim, params)
            self.assertEqual([optim.state[param]["step"].item() for param in params], [4, *[6] * (len(params) - 1)])

    @both
    def test_state_holds_tensors(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            params = make_params(device)
            optim = optim_info.optim_cls(params, **kwargs)
            self.assertFalse(optim.state)
            run(optim, params, 1)
            for param in params:
                state = optim.state[param]
                self.assertEqual(len(state) - ("max_exp_avg_sq" in state), 1 + 2 * kwargs.get("k", 1))
                self.assertTrue(all(isinstance(value, torch.Tensor) for value in state.values()))
                moments = [value for name, value in state.items() if name != "step"]
                self.assertTrue(all(m.shape == param.shape and m.stride() == param.stride() for m in moments))

    @both
    def test_closure(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            model = Model(device)
            optim = optim_info.optim_cls(model.params, **kwargs)
            loss = optim.step(lambda model=model: (self.assertTrue(torch.is_grad_enabled()), model.closure())[1])
            self.assertTrue(loss.requires_grad)
            self.assertIsNone(optim.step())
            self.assertEqual(optim.step(lambda: 1.5), 1.5)

    @kadam_only
    def test_default_engine(self, device, dtype, optim_info):
        name = "foreach" if "cuda" in device else "fused"
        other = "fused" if name == "foreach" else "foreach"
        for given in optim_info.optim_inputs_func(device=device):
            params = make_params(device)
            optim = KAdam(params, **given.kwargs)
            self.assertIs(optim.defaults["foreach"] or optim.defaults["fused"], None)
            set_grads(params, 0)
            with mock.patch.object(optimizer, name) as taken, mock.patch.object(optimizer, other) as left:
                optim.step()
            self.assertTrue(taken.called and not left.called, given.desc)
            for flags in ({"foreach": False}, {"fused": False}):
                optim = KAdam(params, **given.kwargs, **flags)
                with mock.patch.object(optimizer, "loop", wraps=engines.loop) as loop:
                    optim.step()
                self.assertEqual(loop.called, True, f"{given.desc}, {flags}")

    @both
    def test_can_be_printed(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device, skip=()):
            words = repr(optim_info.optim_cls(make_params(device), **kwargs))
            self.assertTrue(words.startswith(optim_info.name))
            self.assertTrue(all(f"{name}: {value}" in words for name, value in kwargs.items()))

    # --- states

    def assert_copies_go_on(self, device, optim_info, copied):
        """An optimizer and what ``copied`` makes of it in mid-training take the same further steps."""
        for kwargs in configurations(optim_info, device):
            params = make_params(device)
            optim = optim_info.optim_cls(params, **kwargs)
            run(optim, params, 4)
            again = copied(optim)
            theirs = again.param_groups[0]["params"]
            self.assert_same(run(again, theirs, 3, first=4), run(optim, params, 3, first=4))

    def assert_resumes(self, device, optim_info, kwargs, load, named=(False, False)):
        """A second optimizer takes over by ``load(second, first)``: from there on the two must not differ."""
        params = make_params(device)
        first = optim_info.optim_cls(self.named(params, named[0]), **copy.deepcopy(kwargs))
        run(first, params, 4)
        copies = copy.deepcopy(params)
        second = optim_info.optim_cls(self.named(copies, named[1]), **copy.deepcopy(kwargs))
        load(second, first)
        self.assert_same(run(second, copies, 3, first=4), run(first, params, 3, first=4), msg=str(kwargs))
        return first, second

    def named(self, params, yes):
        return [(f"name{i}", param) for i, param in enumerate(params)] if yes else params

    @parametrize("named", [(a, b) for a in (False, True) for b in (False, True)], name_fn=str)
    @both
    def test_state_dict_resumes(self, device, dtype, optim_info, named):
        for kwargs in configurations(optim_info, device):
            given = []

            def load(second, first, given=given):
                given += [copy.deepcopy(first.state_dict()) for _ in range(2)]
                second.load_state_dict(given[0])
                self.assert_same(given[0], given[1])  # which loading must not change

            a, b = (optim.state_dict() for optim in self.assert_resumes(device, optim_info, kwargs, load, named))
            for group in (*a["param_groups"], *b["param_groups"]):
                group.pop("param_names", None)
            self.assert_same(a, b)

    @both
    def test_repeated_groups_have_one_state_dict(self, device, dtype, optim_info):
        optim = optim_info.optim_cls(make_params(device))
        once = optim.state_dict()["param_groups"]
        optim.param_groups.extend(optim.param_groups)
        self.assertEqual(optim.state_dict()["param_groups"][-1], once[-1])

    @parametrize("named", [(True, False), (False, True), (True, True)], name_fn=str)
    @both
    def test_named_state_dict(self, device, dtype, optim_info, named):
        for kwargs in configurations(optim_info, device):
            _, second = self.assert_resumes(
                device, optim_info, kwargs, lambda b, a: b.load_state_dict(copy.deepcopy(a.state_dict())), named
            )
            names = [f"name{i}" for i in range(len(make_params(device)))]
            self.assertEqual(second.state_dict()["param_groups"][0]["param_names"], names)

    @kadam_only  # AdamW takes the default for a flag that is missing, KAdam keeps the value that it was made with
    def test_older_state_dict(self, device, dtype, optim_info):
        def load(second, first):
            old = copy.deepcopy(first.state_dict())
            for group in old["param_groups"]:
                for flag in optim_info.not_og_supported_flags:
                    group.pop(flag, None)
            second.load_state_dict(old)

        for kwargs in configurations(optim_info, device):
            self.assert_resumes(device, optim_info, kwargs, load)

    @both
    def test_step_loads_as_a_number(self, device, dtype, optim_info):
        def load(second, first):
            old = copy.deepcopy(first.state_dict())
            for state in old["state"].values():
                state["step"] = state["step"].item()
            second.load_state_dict(old)

        for kwargs in configurations(optim_info, device):
            _, second = self.assert_resumes(device, optim_info, kwargs, load)
            self.assertTrue(all(isinstance(state["step"], torch.Tensor) for state in second.state.values()))

    @parametrize("named", [False, True])
    @both
    def test_saved_with_weights_only(self, device, dtype, optim_info, named):
        def load(second, first):
            torch.save(first.state_dict(), file := io.BytesIO())
            for weights_only in (False, True):
                file.seek(0)
                loaded = torch.load(file, weights_only=weights_only)
                self.assert_same(loaded, first.state_dict())
            second.load_state_dict(loaded)

        for kwargs in configurations(optim_info, device):
            self.assert_resumes(device, optim_info, kwargs, load, (named, named))

    @both
    def test_pickle(self, device, dtype, optim_info):
        self.assert_copies_go_on(device, optim_info, lambda optim: pickle.loads(pickle.dumps(optim)))

    @kadam_only
    def test_adamw_and_one_stage_exchange_state_dicts(self, device, dtype, optim_info):
        def load(second, first):
            state = copy.deepcopy(first.state_dict())
            theirs = AdamW(second.param_groups[0]["params"], **of_adamw(kwargs))
            theirs.load_state_dict(state)
            state = theirs.state_dict()
            for name in ("k", "schedule", "state_dtype"):
                state["param_groups"][0].pop(name, None)
            second.load_state_dict(state)

        for kwargs in configurations(optim_info, device):
            if of_adamw(kwargs) is not None:
                self.assert_resumes(device, optim_info, kwargs, load)

    @both
    def test_deepcopy(self, device, dtype, optim_info):
        def copied(optim):
            again = copy.deepcopy(optim)
            public = [{name for name in vars(each) if not name.startswith("_")} for each in (optim, again)]
            self.assertEqual(*public)
            return again

        self.assert_copies_go_on(device, optim_info, copied)

    @onlyCUDA
    @both
    def test_state_moves_to_the_device(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, "cpu"):
            for target in ({}, {"fused": True, "foreach": False}, {"capturable": True}):
                params = make_params("cpu")
                first = optim_info.optim_cls(params, **copy.deepcopy(kwargs))
                run(first, params, 4)
                moved = [param.detach().to(device) for param in params]
                second = optim_info.optim_cls(moved, **{**copy.deepcopy(kwargs), **target})
                state = copy.deepcopy(first.state_dict())
                state["param_groups"][0].update(target)
                second.load_state_dict(state)
                on_device = second.param_groups[0]["fused"] or second.param_groups[0]["capturable"]
                run(first, params, 3, first=4)
                run(second, moved, 3, first=4)
                self.assertEqual([param.cpu() for param in moved], [param.detach() for param in params])
                self.assertEqual({s["step"].is_cuda for s in second.state.values()}, {bool(on_device)})

    @onlyCUDA
    @optims([KADAM, ADAMW], dtypes=[torch.float64, torch.float32, *HALVES])
    def test_fused_on_cpu_is_fused_on_cuda(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device="cpu", dtype=dtype):
            run_of = []
            for place in ("cpu", device):
                params = make_params(place, dtype)
                optim = optim_info.optim_cls(params, fused=True, **copy.deepcopy(given.kwargs))
                run_of.append([[param.cpu() for param in seen] for seen in run(optim, params)[0]])
            tolerance = {"rtol": 5e-3, "atol": 5e-3} if dtype in HALVES else {}
            self.assertEqual(*run_of, **tolerance)

    # --- hooks

    @both
    def test_state_dict_hooks(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device, skip=()):
            optim = optim_info.optim_cls(make_params(device), **kwargs)
            pre = optim.register_state_dict_pre_hook(lambda optim: optim.state.update(mark=1))
            self.assertEqual(optim.state_dict()["state"], {"mark": 1})
            post = optim.register_state_dict_post_hook(lambda optim, state: {**state, "seen": state["state"].copy()})
            self.assertEqual(optim.state_dict()["seen"], {"mark": 1})
            pre.remove()
            post.remove()
            self.assertEqual(optim.state_dict().keys(), {"state", "param_groups"})

    @both
    def test_load_state_dict_hooks(self, device, dtype, optim_info):
        def pre_in_place(optim, state):
            state["param_groups"][0]["lr"] = 0.002

        def pre_returning(optim, state):
            state = copy.deepcopy(state)
            state["param_groups"][0]["lr"] = 0.003
            return state

        for kwargs in configurations(optim_info, device, skip=()):
            for hooks, expected in (
                ([(pre_in_place, False)], 0.002),
                ([(pre_in_place, False), (pre_returning, True)], 0.002),
                ([(pre_in_place, False), (pre_returning, False)], 0.003),
            ):
                optim, seen = optim_info.optim_cls(make_params(device), **kwargs), []
                for hook, prepend in hooks:
                    optim.register_load_state_dict_pre_hook(hook, prepend=prepend)
                optim.register_load_state_dict_post_hook(lambda o, seen=seen: seen.append(o.param_groups[0]["lr"]))
                optim.load_state_dict(optim.state_dict())
                self.assertEqual((optim.param_groups[0]["lr"], seen), (expected, [expected]))

    @both
    def test_a_hook_that_returns_another_state_is_obeyed(self, device, dtype, optim_info):
        """Not only its groups: all that the load takes comes from the state that the hook gives."""

        def shift(optim, state):
            state = copy.deepcopy(state)
            for each in state["state"].values():
                each["exp_avg"] += 1
            return state

        for kwargs in configurations(optim_info, device):
            params = make_params(device)
            first = optim_info.optim_cls(params, **copy.deepcopy(kwargs))
            run(first, params, 1)
            second = optim_info.optim_cls(params, **kwargs)
            second.register_load_state_dict_pre_hook(shift)
            second.load_state_dict(first.state_dict())
            self.assertEqual(second.state[params[0]]["exp_avg"], first.state[params[0]]["exp_avg"] + 1, msg=str(kwargs))

    @both
    def test_step_hooks(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device, skip=()):
            params, seen = [torch.ones(2, device=device)], []
            handles = [
                register_optimizer_step_pre_hook(lambda *_, seen=seen: seen.append("all before")),
                register_optimizer_step_post_hook(lambda *_, seen=seen: seen.append("all after")),
            ]
            optimizers = [optim_info.optim_cls(params, **kwargs), SGD(params)]
            for optim in optimizers:
                handles.append(optim.register_step_pre_hook(lambda *_, seen=seen: seen.append("before")))
                handles.append(optim.register_step_post_hook(lambda *_, seen=seen: seen.append("after")))
            try:
                for n, optim in enumerate((*optimizers, optimizers[0]), 1):
                    optim.step()
                    self.assertEqual(seen, ["all before", "before", "after", "all after"] * n)
            finally:
                for handle in handles:
                    handle.remove()
            optimizers[0].step()
            self.assertEqual(len(seen), 12)

    # --- differentiable

    def assert_differentiable(self, cls, device, kwargs, names, k):
        """Finite differences through two steps, for the gradient, the state and the named hyperparameters."""
        start = torch.linspace(-1, 1, 4, device=device, dtype=torch.float64)
        values = {"lr": 0.1, "weight_decay": 0.3, "gamma": 0.9, "beta": 0.99}
        tensors = [torch.tensor(values[name], dtype=torch.float64, requires_grad=True) for name in names]
        moments = [f"exp_avg{square}{i}" for i in ("", *(f"_{i}" for i in range(2, k + 1))) for square in ("", "_sq")]
        states = [torch.rand(4, device=device, dtype=torch.float64, requires_grad=True) for _ in moments]
        grad = (torch.rand(4, device=device, dtype=torch.float64) + 0.5).requires_grad_()

        def two_steps(param, grad, *rest):
            given = dict(zip(names, rest[len(states) :], strict=True))
            if "gamma" in given:
                given["betas"] = (given.pop("gamma"), given.pop("beta"))
            param = param.clone()
            param.grad = grad
            optim = cls([param], differentiable=True, **kwargs, **given)
            state = {"step": torch.tensor(10.0, dtype=torch.float64)}
            state |= {name: value.clone() for name, value in zip(moments, rest, strict=False)}
            optim.state[param].update(state)
            optim.step()
            param.grad = grad * grad
            optim.step()
            return (param, *(optim.state[param][name] for name in moments))

        self.assertTrue(torch.autograd.gradcheck(two_steps, (start.requires_grad_(), grad, *states, *tensors)))

    @both
    def test_differentiable_step(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            if given.kwargs.get("amsgrad"):
                continue  # needs a third moment, which KAdam has not
            self.assert_differentiable(optim_info.optim_cls, device, given.kwargs, [], given.kwargs.get("k", 1))

    @parametrize("names", ["lr", "weight_decay", "gamma beta", "lr weight_decay gamma beta"])
    @both
    def test_differentiable_hyperparameters(self, device, dtype, optim_info, names):
        for k in (1, 2, 3) if optim_info is KADAM else (1,):
            kwargs = {"k": k} if optim_info is KADAM else {}
            self.assert_differentiable(optim_info.optim_cls, device, kwargs, names.split(), k)

    # --- schedulers

    @kadam_only
    def test_schedulers_see_adamw(self, device, dtype, optim_info):
        makers = [
            *(make for makers in ADAMW.scheduler_inputs for make in makers),
            lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=20),
            lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=True),
            lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
            lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
            lambda o: swa_utils.SWALR(o, swa_lr=0.1, anneal_epochs=3),
        ]
        for make, impl, k in itertools.product(makers, ("neither", "foreach", "fused"), (1, 2)):
            flags = {"foreach": impl == "foreach", "fused": impl == "fused"}
            run_of = []
            for cls, stages in ((KAdam, {"k": k}), (AdamW, {})):
                params = make_params(device)
                optim = cls(params, lr=0.01, **flags, **stages)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # SWALR: of lr_scheduler's own making
                    scheduler = make(optim)
                seen = []
                for n in range(8):
                    seen.append((run(optim, params, 1, first=n), *(optim.param_groups[0][x] for x in ("lr", "betas"))))
                    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
                run_of.append(seen)
            a, b = run_of
            self.assertEqual([each[1:] for each in a], [each[1:] for each in b])
            if k == 1 and not (impl == "fused" and "cuda" in device):
                self.assert_same(a, b)

    @kadam_only
    def test_schedulers_keep_a_tensor_lr(self, device, dtype, optim_info):
        for make in (make for makers in ADAMW.scheduler_inputs for make in makers):
            lr = torch.tensor(0.5, device=device)
            model = Model(device)
            optim = KAdam(model.params, lr=lr)
            scheduler = make(optim)
            for n in range(25):
                model.closure()
                optim.step()
                scheduler.step(*([float(n)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
            self.assertIs(optim.param_groups[0]["lr"], lr)
            self.assertNotEqual(lr.item(), 0.5)

    # --- CUDA graphs

    @onlyCUDA
    @both
    def test_cuda_graph(self, device, dtype, optim_info):
        for kwargs in configurations(optim_info, device):
            kwargs["capturable"] = True
            eager, graphed = make_params(device), make_params(device)
            optims = [optim_info.optim_cls(each, **copy.deepcopy(kwargs)) for each in (eager, graphed)]
            for params, optim in zip((eager, graphed), optims, strict=True):
                set_grads(params, 0)
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    optim.step()
                torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optims[1].step()
            for n in range(1, 4):
                for params in (eager, graphed):
                    for param, grad in zip(params, [p.grad for p in params], strict=True):
                        set_grads([param], n)
                        grad.copy_(param.grad)
                        param.grad = grad
                optims[0].step()
                graph.replay()
                self.assertEqual(eager, graphed)


instantiate_device_type_tests(TestDatabase, globals(), only_for=("cpu", "cuda"))


def test_the_table_names_tests_that_exist():
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", __doc__))
    written = set(re.findall(r"def (test_\w+)", pathlib.Path(__file__).read_text(encoding="utf-8")))
    assert len(named) > 40 and named <= written
