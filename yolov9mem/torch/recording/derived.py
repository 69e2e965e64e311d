# SPDX-License-Identifier: MIT
"""Tensors that are made of a value by a call that a graph does not need: the value in
another shape (without sides of 1, or expanded), the places of its maxima, and products that
a batch norm is made of; and parameters, expanded.

The call is written down only where a stock call reads the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .effects import memory_of
from .ir import Ref, StockCall
from .names import name_of
from .sharing import note_read, note_views

if TYPE_CHECKING:
    from .frozen_norms import Scale
    from .recorder import Recorder


class Expanded(NamedTuple):
    """How a parameter was expanded."""

    parameter: Tensor
    func: Callable[..., Any]
    args: tuple[Any, ...]
    named: dict[str, Any]


def _longer_sides(shape: tuple[int, ...]) -> list[int]:
    return [side for side in shape if side > 1]


class Derived:
    """Those of one recording."""

    def __init__(self, rec: Recorder) -> None:
        self._rec = rec
        self._value: dict[int, int] = {}  # by id of a fake that is a value reshaped
        # By id of any: of what value, by which function and further arguments.
        self._made: dict[int, tuple[int, Callable[..., Any], tuple[Any, ...]]] = {}
        self.scales: dict[int, Scale] = {}  # by id of a product with one
        self._expanded: dict[int, Expanded] = {}  # by id of such a tensor

    def __contains__(self, tensor: Tensor) -> bool:
        is_known = id(tensor) in self._made or id(tensor) in self._expanded
        return is_known and id(tensor) not in self._rec.ref

    def add(
        self, tensor: Tensor, value: int, function: Callable[..., Any], *args: Any
    ) -> Tensor:
        """``tensor`` is ``function(value, *args)`` from now on."""
        self._rec.alive.append(tensor)
        self._made[id(tensor)] = value, function, args
        self._value.pop(id(tensor), None)
        self._rec.ref.pop(id(tensor), None)
        return tensor

    def add_expanded(self, tensor: Tensor, how: Expanded) -> Tensor:
        """``tensor`` is a parameter, expanded so, from now on."""
        self._rec.alive.append(tensor)
        self._expanded[id(tensor)] = how
        return tensor

    def unexpanded(self, tensor: Tensor) -> Tensor:
        """The parameter that it is, expanded; or itself."""
        if not self._is_expanded(tensor):
            return tensor
        return self._expanded[id(tensor)].parameter

    def _is_expanded(self, tensor: Tensor) -> bool:
        return id(tensor) in self._expanded and tensor in self

    def origin(self, tensor: Tensor) -> int:
        """The value of which it is made."""
        return self._made[id(tensor)][0]

    def bind(self, tensor: Tensor, value: int) -> Tensor:
        """``tensor`` is ``value`` from now on, in its own shape or in another."""
        if tuple(tensor.shape) == self._rec.shape(value):
            return self._rec.bind(tensor, value)
        is_larger = tensor.numel() > torch.Size(self._rec.shape(value)).numel()
        function = torch.Tensor.expand if is_larger else torch.Tensor.reshape
        self.add(tensor, value, function, tuple(tensor.shape))
        self._value[id(tensor)] = value
        return tensor

    def value(self, tensor: Tensor) -> int | None:
        """The number of the value that ``tensor`` is, in any shape, or None."""
        if tensor in self:
            return self._value.get(id(tensor))
        return self._rec.value(tensor)

    def view(self, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
        """The result of a call that adds or drops sides of 1, or None: it does more."""
        x = self.value(input)
        if x is None or x in self._rec.copies:  # whose memory matters
            return None
        if any(isinstance(arg, torch.dtype) for arg in (*args, *named.values())):
            return None  # of bits
        out = func(input, *args, **named)
        shape = self._rec.shape(x)
        is_same = isinstance(out, Tensor) and out.dtype == input.dtype
        if not is_same or _longer_sides(out.shape) != _longer_sides(shape):
            return None
        note_views(self._rec, [out], [input])
        return self.bind(out, x)

    def write_calls(self, values: set[int | None], memory: Any) -> None:
        """Those of what is made of these values, or of a vector in this memory, which is
        about to change."""
        for tensor in list(self._rec.alive):
            scale = self.scales.get(id(tensor))
            is_product = scale is not None and scale.memory == memory
            if tensor not in self:
                continue
            if self._is_expanded(tensor):
                changes = memory_of(tensor) == memory
            else:
                changes = is_product or self.origin(tensor) in values
            if changes:
                self.write_call(tensor)

    def write_call(self, tensor: Tensor) -> None:
        """It becomes the result of a stock call."""
        rec = self._rec
        if self._is_expanded(tensor):
            x, func, args, named = self._expanded[id(tensor)]
            made = {("result", 0): tensor}
            rec.write_call(func, name_of(func), (x, *args), named, made)
            return
        value, function, args = self._made[id(tensor)]
        source, name = Ref("value", value), function.__name__
        call = StockCall(
            function, (source, *args), {}, name, rec.path, (name, rec.path), None
        )
        read = (arg for arg in args if isinstance(arg, Ref))
        call.refs, call.made = (source, *read), (("result", 0),)
        note_read(rec, tensor, source)
        rec.append_call(call, [tensor], carries=tensor.is_floating_point())
