# SPDX-License-Identifier: MIT
"""When does the stock forward run? Each function returns a Reason, or None."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext

from .. import devices
from ..layout import PLAIN
from ..recording.arguments import kind_of
from ..recording.isolation import is_recording
from ..recording.trees import tensors_in
from ..versions import packing

GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
# Names of arguments that ask for more than results: prints, files, times.
LOOKS = frozenset(
    {"augment", "debug", "embed", "log", "print", "profile", "verbose", "visualize"}
)
CHOICES = (type(None), bool, str, Enum, torch.dtype)  # of few values: each is recorded
MOST_CHOICES = 16  # of one argument; a text that is another in each call is none
# The second logs a warning in those versions that have the first.
_fx_is_tracing: Callable[[], bool] = getattr(
    _symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing
)


class StockForwardWarning(UserWarning):
    """A checkpointed module ran in stock PyTorch, or is recorded at every forward; said
    once for each kind of reason."""


class Reason(NamedTuple):
    """Why the stock forward of a module runs."""

    text: str
    kind: str = ""  # of what a user would not expect, and is warned of once
    spares_parts: bool = False  # of the whole alone: its parts may run in the core


def is_training(module: nn.Module) -> bool:
    """Would its forward keep something for a backward?"""
    return module.training and torch.is_grad_enabled() and not is_recording()


def observed(leaves: list[Any]) -> Reason | None:
    """Somebody looks at the calls with these arguments, or transforms them."""
    if torch.jit.is_tracing() or torch.jit.is_scripting():
        return Reason("torch.jit is tracing")
    if _fx_is_tracing() or any(isinstance(leaf, fx.Proxy) for leaf in leaves):
        return Reason("torch.fx is tracing")
    if getattr(packing(), "__module__", "") == "torch.utils.checkpoint":
        # And keeps nothing meanwhile.
        return Reason("torch.utils.checkpoint runs it again")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return Reason("a torch.func transform is active")
    if torch.autograd.forward_ad._current_level >= 0:
        return Reason("forward-mode differentiation is active")
    if torch._C._len_torch_dispatch_stack() > 0:
        return Reason("a TorchDispatchMode is active")
    if torch._C._len_torch_function_stack() > 0:
        modes = torch.overrides._get_current_function_mode_stack()
        if not all(isinstance(mode, DeviceContext) for mode in modes):
            return Reason("a TorchFunctionMode is active")
    return None


def globally_hooked() -> Reason | None:
    """Hooks on all modules of the process."""
    if any(getattr(nn_module, name, None) for name in GLOBAL_HOOKS):
        return Reason("a global module hook is registered", "hook")
    return None


def hooked(path: str) -> Reason:
    """Hooks on a module within, at `path`: they look at calls that ours does not make."""
    return Reason(f"{path} has a hook", "hook", spares_parts=True)


def unusual_device(tensors: list[Tensor], backend: Any) -> Reason | None:
    """Arguments that are not all where a plan of ``backend`` runs."""
    places = {tensor.device for tensor in tensors}
    if len(places) > 1:
        return Reason(f"arguments are on {' and '.join(sorted(map(str, places)))}")
    for place in places:
        kind, on_cuda = devices.kind(place), str(backend).startswith("cuda")
        if backend == "auto":
            on_cuda = kind == "cuda"
        if kind != ("cuda" if on_cuda else "cpu"):
            return Reason(f"an argument is on {place}")
        missing = devices.why_not_built() if on_cuda else None
        if missing is not None:
            return Reason(missing, "build")
    return None


def unusual_tensor(leaf: Tensor) -> Reason | None:
    """Tensors that a plan cannot read."""
    if type(leaf) not in PLAIN:
        return Reason(f"an argument is a {type(leaf).__name__}", spares_parts=True)
    if leaf.layout is not torch.strided:
        return Reason(f"an argument is {leaf.layout}")
    if leaf.ndim == 4 and 0 in leaf.shape:  # of which no plan is made
        return Reason("an argument is an empty batch")
    if leaf.is_inference():  # which autograd refuses to hold, once statistics had moved
        return Reason("an argument was made in inference_mode()", "argument")
    return None


class Defaults:
    """Are the arguments that have a default left at it, or is one chosen of a few?"""

    def __init__(self, forward: Callable[..., Any]) -> None:
        """``forward`` is the unbound stock forward."""
        self.forward = forward
        self._signature = inspect.signature(forward)
        self._names = list(self._signature.parameters)[1:]
        self._chosen: dict[str, set[Hashable]] = defaultdict(set)

    def changed(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> Reason | None:
        """The reason why not; tensors may be given for any argument."""
        if not kwargs and all(isinstance(arg, Tensor) for arg in args):
            return None
        try:
            given = self._signature.bind(module, *args, **kwargs).arguments
        except TypeError:
            # Stock forward raises torch's own error.
            return Reason("the arguments do not fit")
        for name in self._names:
            default = self._signature.parameters[name].default
            if name not in given or default is inspect.Parameter.empty:
                continue
            value = given[name]
            if tensors_in(value):
                continue
            if name not in LOOKS and self._is_choice(name, value):
                continue
            if value is not default and _differ(value, default):
                # Values that change from call to call are not shown: reasons are counted.
                few = isinstance(value, (bool, str))
                shown = (
                    f"{name}={value!r}" if few else f"{name}, {type(value).__name__},"
                )
                text = f"argument {shown} is not its default"
                return Reason(text, "argument", spares_parts=True)
        return None

    def _is_choice(self, name: str, value: Any) -> bool:
        """Is it one of few that this argument has had?"""
        if not isinstance(value, CHOICES):
            return False
        known, kind = self._chosen[name], kind_of(value)
        if len(known) < MOST_CHOICES:
            known.add(kind)
        return kind in known


def _differ(value: Any, default: Any) -> bool:
    try:
        return bool(value != default)
    except (TypeError, ValueError):  # an array has no single answer
        return True
