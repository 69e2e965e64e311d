# SPDX-License-Identifier: MIT
"""When does the stock forward run? Each function returns a reason, or None."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_leaves

from .. import devices
from ..recording.isolation import is_recording
from ..versions import packing

PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer) if hasattr(nn, "Buffer") else (
    Tensor,
    nn.Parameter,
)  # fmt: skip
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
# The second logs a warning in those versions that have the first.
_fx_is_tracing: Callable[[], bool] = getattr(
    _symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing
)


class StockForwardWarning(UserWarning):
    """A checkpointed module ran in stock PyTorch, or is recorded at every forward; said
    once for each reason."""


def not_training(module: nn.Module) -> str | None:
    """Quiet reasons: nothing would be kept for a backward."""
    if is_recording():
        return "it is being recorded"
    if not module.training:
        return "eval mode"
    if not torch.is_grad_enabled():
        return "gradients are disabled"
    return None


def observed(leaves: list[Any]) -> str | None:
    """Somebody looks at the calls with these arguments, or transforms them."""
    if torch.jit.is_tracing() or torch.jit.is_scripting():
        return "torch.jit is tracing"
    if _fx_is_tracing() or any(isinstance(leaf, fx.Proxy) for leaf in leaves):
        return "torch.fx is tracing"
    if getattr(packing(), "__module__", "") == "torch.utils.checkpoint":
        return "torch.utils.checkpoint runs it again"  # and keeps nothing meanwhile
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    if torch._C._len_torch_dispatch_stack() > 0:
        return "a TorchDispatchMode is active"
    if torch._C._len_torch_function_stack() > 0:
        modes = torch.overrides._get_current_function_mode_stack()
        if not all(isinstance(mode, DeviceContext) for mode in modes):
            return "a TorchFunctionMode is active"
    return None


def globally_hooked() -> str | None:
    """Hooks on all modules of the process."""
    if any(getattr(nn_module, name, None) for name in GLOBAL_HOOKS):
        return "a global module hook is registered"
    return None


def unusual_device(tensors: list[Tensor], backend: Any) -> str | None:
    """Arguments that are not all where a plan of ``backend`` runs."""
    places = {tensor.device for tensor in tensors}
    if len(places) > 1:
        return f"arguments are on {' and '.join(sorted(map(str, places)))}"
    for place in places:
        kind = devices.kind(place)
        wanted = "cuda" if str(backend).startswith("cuda") else "cpu"
        if backend == "auto" and kind == "cuda":
            return devices.why_not_built()
        if kind != wanted:
            return f"an argument is on {place}"
    return None


def unusual_tensor(leaf: Tensor) -> str | None:
    """Tensors that a plan cannot read."""
    if type(leaf) not in PLAIN_TENSORS:
        return f"an argument is a {type(leaf).__name__}"
    if leaf.layout is not torch.strided:
        return f"an argument is {leaf.layout}"
    return None


def unexpected(reason: str) -> str:
    """The kind of a reason that a user is warned of, or nothing."""
    kinds = ("hook", "built", "is not its default")
    return next((kind for kind in kinds if kind in reason), "")


def spares_parts(reason: str) -> bool:
    """Is it one of the module as a whole, whose parts may run in the core?"""
    kinds = ("hook", "is not its default", "an argument is a ")
    return any(kind in reason for kind in kinds)


class Defaults:
    """Are the arguments that have a default left at it?"""

    def __init__(self, forward: Callable[..., Any]) -> None:
        """``forward`` is the unbound stock forward."""
        self.forward = forward
        self._signature = inspect.signature(forward)
        self._names = list(self._signature.parameters)[1:]

    def changed(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> str | None:
        """The reason why not; tensors may be given for any argument."""
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            return None
        try:
            given = self._signature.bind(module, *args, **kwargs).arguments
        except TypeError:
            return "the arguments do not fit"  # stock forward raises torch's own error
        for name in self._names:
            default = self._signature.parameters[name].default
            if name not in given or default is inspect.Parameter.empty:
                continue
            value = given[name]
            if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
                continue
            if value is not default and _differ(value, default):
                # Values that change from call to call are not shown: reasons are counted.
                few = isinstance(value, (bool, str))
                shown = (
                    f"{name}={value!r}" if few else f"{name}, {type(value).__name__},"
                )
                return f"argument {shown} is not its default"
        return None


def _differ(value: Any, default: Any) -> bool:
    try:
        return bool(value != default)
    except (TypeError, ValueError):  # an array has no single answer
        return True
