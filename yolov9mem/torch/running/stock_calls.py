# SPDX-License-Identifier: MIT
"""Stock calls, replayed as the module made them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import devices
from ..recording.ir import Ref, StockCall
from ..recording.trees import filler, flatten


def _view(tensor: Tensor, *shape: Any, **named: Any) -> Tensor:
    given = (*shape, *named.values())
    if any(isinstance(value, torch.dtype) for value in given):
        return tensor.contiguous().view(*shape, **named)
    return tensor.reshape(*shape, **{_RESHAPES.get(k, k): v for k, v in named.items()})


def _view_as(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.reshape(other.shape)


def _view_as_complex(input: Tensor) -> Tensor:
    return torch.view_as_complex(input.contiguous())


_RESHAPES = {"size": "shape"}  # the names of view's arguments, and of reshape's
# Values are channels_last, which many views cannot be.
_VIEWS: dict[str, Callable[..., Any]] = {
    "view": _view,
    "_unsafe_view": _view,
    "view_as": _view_as,
    "view_as_complex": _view_as_complex,
}


def _instance_norm(function: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
    """PyTorch's backward of one image reads a channels_last gradient, as ours are, in
    the wrong order."""
    made = function(*args, **named)
    if made.requires_grad:
        made.register_hook(lambda grad: None if grad is None else grad.contiguous())
    return made


def _group_norm(
    function: Callable[..., Tensor], input: Tensor, *args: Any, **named: Any
) -> Tensor:
    """On a CPU, PyTorch's backward crashes where a channels_last input, as our values are,
    wants no gradient and a weight does."""
    given = input if input.requires_grad else input.contiguous()
    return function(given, *args, **named)


# What PyTorch does wrong only in layouts that stock forwards seldom have.
_AROUND = {"instance_norm": _instance_norm, "group_norm": _group_norm}

# They draw a number for each element in the order of memory, or make what others fill so.
DRAWS = {
    "alpha_dropout", "bernoulli", "dropout", "empty_like", "multinomial", "native_dropout",
    "poisson", "rand_like", "randint_like", "randn_like", "rrelu",
    # In place:
    "alpha_dropout_", "bernoulli_", "cauchy_", "dropout_", "exponential_", "geometric_",
    "log_normal_", "normal_", "random_", "rrelu_", "uniform_",
}  # fmt: skip


def _function(call: StockCall) -> Callable[..., Any]:
    """What replays the call."""
    name, _, _ = call.name.partition(".")  # of torch.ops.aten: the overload follows
    if name in _AROUND:
        return partial(_AROUND[name], call.function)
    return _VIEWS.get(name, call.function)


def _say_where(error: Exception, call: StockCall) -> None:
    """An error of a replay does not come from the module's own line."""
    where = f"yolov9mem replayed {call.name} of {call.path or 'the module itself'}"
    if hasattr(error, "add_note"):
        error.add_note(where)
    else:  # Python 3.10
        error.args = (f"{error}\n{where}",)


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Dense, and in the order of memory that these strides have."""
    if tensor.stride() == strides:
        return tensor
    places = range(tensor.ndim)
    if len(strides) != tensor.ndim or 0 in strides:
        return tensor.contiguous()
    order = sorted(places, key=lambda i: -strides[i])
    back = sorted(places, key=lambda i: order[i])
    return tensor.permute(order).contiguous().permute(back)


class Caller:
    """Makes stock calls on one device. A GPU among their arguments is that one: the
    recording may be that of a replica on another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def make(self, call: StockCall, resolve: Callable[[Ref], Any]) -> list[Tensor]:
        """What the call makes, in the order of ``call.made``."""
        try:
            return self._make(call, resolve)
        except Exception as error:
            _say_where(error, call)
            raise

    def _make(self, call: StockCall, resolve: Callable[[Ref], Any]) -> list[Tensor]:
        read = given = [resolve(ref) for ref in call.refs]
        if call.name in DRAWS:  # in the order that stock PyTorch's values have
            read = list(map(_laid_out, given, call.effects.strides))
        if call.fill is None:
            call.fill = filler((call.args, call.kwargs))
        args, kwargs = call.fill(iter(read), self._device)
        function = _function(call)
        if devices.autocast_dtype(self._device) == call.autocast:
            made = function(*args, **kwargs)
        else:
            with self._autocast(call.autocast):
                made = function(*args, **kwargs)
        for kind, i in call.made:
            if kind == "argument" and read[i] is not given[i]:
                given[i].copy_(read[i])
        flat = [made] if isinstance(made, Tensor) else flatten(made)[0]
        return [flat[i] if kind == "result" else given[i] for kind, i in call.made]

    def _autocast(self, dtype: torch.dtype | None) -> torch.autocast:
        """To ``dtype``, or none, as a call had it when it was recorded."""
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)
