# SPDX-License-Identifier: MIT
"""The calls that can be lowered, by the name of the torch function: shapes.

A handler takes the recorder, the function and the call's own arguments, so Python binds
them as torch does. It returns the fake result, or None to let the call run as a stock call;
it raises CannotLower for a layer that has no place in the tail of a strict recording.
calls_*.py have the handlers of layers, gates, arithmetic and random draws, own_numbers.py
that of PReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layout import follows_channels_last, is_channels_last
from .ir import CannotLower
from .names import name_of
from .sharing import note_views

if TYPE_CHECKING:
    from .recorder import Recorder

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FULL = slice(None)
OF_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # torch takes both names
HANDLERS: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the handler of the functions of these names."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def answer(rec: Recorder, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The handler's; None where there is none, or where the call has other arguments than
    it knows, as torch.batch_norm has beside F.batch_norm."""
    handler = HANDLERS.get(name)
    if handler is None:
        return None
    named = {OF_NUMPY.get(key, key): value for key, value in kwargs.items()}
    try:
        return handler(rec, func, *args, **named)
    except TypeError as error:
        own = error.__traceback__
        if own is None or own.tb_next is not None:  # raised within the handler
            raise
        return None


def why_stock(name: str) -> str:
    """The reason for a call whose result is read by a graph that does not make it."""
    known = "is recorded with other arguments only"
    return f"it {known if name in HANDLERS else 'is not recorded'} and stays stock"


def operand(rec: Recorder, tensor: Any, name: str) -> int:
    """The value that a layer reads. Raises CannotLower, with its ``name``: it is none."""
    value: int | None = rec.import_value(tensor)
    if value is None:
        raise CannotLower(name, rec.path, rec.why_not(tensor))
    return value


@handles("dropout")
def _dropout(
    rec: Recorder,
    func: Any,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    return input if p == 0 or not training else None  # no copy, as in torch


def identity(
    rec: Recorder, input: Tensor, call: Callable[..., Any] = torch.clone, **options: Any
) -> Any:
    """A copy of a value; ``call`` makes it where it must have memory of its own."""
    value = rec.value(input)
    if value is None:
        return None
    made = input
    if is_channels_last(input) or options:  # it may come out in another order
        made = call(input, **options)
    if made is input:
        made = rec.fakes.empty(rec.shape(value), input.dtype, input)
    return _bind_copy(rec, value, input, made, call, (input,), options)


def _bind_copy(
    rec: Recorder,
    value: int,
    original: Tensor,
    made: Tensor,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Tensor:
    """``made`` is a copy of ``original``, which was ``value``."""
    rec.write_call(call, name_of(call), args, options, {("result", 0): made})
    rec.copies.add(value, original, made, rec.ref[id(made)])
    bound: Tensor = rec.bind(made, value)
    return bound


@handles("pad")
def _pad(
    rec: Recorder,
    func: Any,
    input: Tensor,
    pad: Any,
    mode: str = "constant",
    value: float | None = None,
) -> Any:
    """By nothing it is a copy, as where a decoder of a U-Net fits its sides."""
    out = func(input, pad, mode, value)
    return identity(rec, input) if out.shape == input.shape and not any(pad) else None


@handles("clone")
def _clone(rec: Recorder, func: Any, input: Tensor, **format: Any) -> Any:
    return identity(rec, input, func, **format)


@handles("contiguous")
def _contiguous(rec: Recorder, func: Any, input: Tensor, **format: Any) -> Any:
    """The same memory or a copy, as the strides of the input happen to be."""
    value = rec.value(input)
    if value is None:
        return None
    made = input
    if rec.recording.nodes[value].op == "input" or is_channels_last(input):
        made = identity(rec, input, func, **format)
    elif (
        format.get("memory_format", torch.contiguous_format) != torch.contiguous_format
    ):
        made = identity(rec, input, **format)
    rec.memory.may_be_shared.update((id(input), id(made)))
    return made


def _all(values: list[int | None]) -> tuple[int, ...] | None:
    """None if one is."""
    found = tuple(value for value in values if value is not None)
    return found if len(found) == len(values) else None


@handles("cat", "concat", "concatenate")
def _cat(rec: Recorder, func: Any, tensors: Any, dim: int = 0, **more: Any) -> Any:
    values = _all(rec.values(tensors))
    if not values or dim not in (1, -3) or more:
        return None
    shapes = [rec.shape(value) for value in values]
    n, _, h, w = shapes[0]
    if any((s[0], s[2], s[3]) != (n, h, w) for s in shapes):
        return None
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    shape = (n, sum(s[1] for s in shapes), h, w)
    value = rec.add_node("concat", values, (), shape, dtype)
    others = [tensor for tensor in tensors if not follows_channels_last(tensor)]
    like = others[0] if others else tensors[0]
    return rec.bind(rec.fakes.empty(shape, dtype, like), value)


def _slices(rec: Recorder, x: int, results: Any) -> Any:
    """Binds consecutive channel slices of x; they are views."""
    first = 0
    for part in results:
        _slice(rec, x, first, part)
        first += part.shape[1]
    note_views(rec, list(results))
    return results


def _slice(rec: Recorder, x: int, first: int, part: Tensor) -> Tensor:
    shape = tuple(part.shape)
    value = rec.add_node("slice", (x,), (first, shape[1]), shape, part.dtype)
    return rec.bind(part, value)


@handles("chunk", "split", "split_with_sizes")
def _split(
    rec: Recorder, func: Any, input: Tensor, size: Any = None, dim: int = 0, **kw: Any
) -> Any:
    size = kw.pop(
        "chunks", kw.pop("split_size_or_sections", kw.pop("split_size", size))
    )
    x = rec.value(input)
    if x is None or dim not in (1, -3) or kw:
        return None
    return _slices(rec, x, func(input, size, dim))


@handles("narrow")
def _narrow(
    rec: Recorder, func: Any, input: Tensor, dim: int, start: int, length: int
) -> Any:
    x = rec.value(input)
    if x is None or dim not in (1, -3) or not isinstance(start, int):
        return None
    part = func(input, dim, start, length)
    note_views(rec, [part])
    return _slice(rec, x, start + (input.shape[1] if start < 0 else 0), part)


def _is_full(index: Any) -> bool:
    return isinstance(index, slice) and index == FULL


def only_adds_sides(index: Any) -> bool:
    """Does an index leave all that there is, with sides of 1 between?"""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or _is_full(part) for part in parts)


@handles("__getitem__")
def _getitem(rec: Recorder, func: Any, input: Tensor, index: Any) -> Any:
    x = rec.value(input)
    if isinstance(index, tuple) and only_adds_sides(index):
        return rec.derived.view(func, input, index)
    if x is None or not isinstance(index, tuple) or not 2 <= len(index) <= 4:
        return None
    others = [part for k, part in enumerate(index) if k != 1]
    if not isinstance(index[1], slice) or not all(map(_is_full, others)):
        return None
    first, _, step = index[1].indices(input.shape[1])
    part = func(input, index)
    if step != 1 or part.shape[1] == 0:
        return None
    note_views(rec, [part])
    return _slice(rec, x, first, part)


@handles("stack")
def _stack(rec: Recorder, func: Any, tensors: Any, dim: int = 0, **more: Any) -> Any:
    values = _all(rec.values(tensors))
    if values is None or dim not in (0, -5) or more:
        return None
    out = rec.stock_call(func, "stack", (tensors, dim), {})
    rec.stacks[id(out)] = values, tensors[0]
    return out


@handles("sum")
def _sum(
    rec: Recorder,
    func: Any,
    input: Any,
    dim: Any = None,
    keepdim: bool = False,
    **more: Any,
) -> Any:
    stack = rec.stacks.get(id(input))
    if stack is None or dim not in (0, -5, (0,), [0]) or keepdim or more:
        return None
    values, first = stack
    if len({rec.shape(value) for value in values}) != 1:
        return None
    out = func(input, dim=0)
    if len(values) == 1:
        return _bind_copy(rec, values[0], first, out, func, (input, 0), {})
    shape = rec.shape(values[0])
    return rec.bind(out, rec.add_node("add", values, (), shape, out.dtype))
