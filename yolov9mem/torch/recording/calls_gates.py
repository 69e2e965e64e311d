# SPDX-License-Identifier: MIT
"""Handlers of gates: means and maxima over pixels or channels, the linear layers that
follow them, and products with what is repeated, as in squeeze and excitation
(arXiv:1709.01507).

A value of one pixel is often viewed as (N, C), for linear layers: it stays the value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import devices
from .calls import FLOATS, handles, identity
from .calls_arithmetic import affine, is_number
from .frozen_norms import frozen_norm_product
from .names import is_in_place, name_of
from .own_numbers import expanded, times_parameter
from .sharing import check_in_place, note_views

if TYPE_CHECKING:
    from .recorder import Recorder


def reduced(rec: Recorder, op: str, x: int, axes: str, out: Tensor) -> Tensor:
    """``out`` is the mean or maximum of x over ``axes``, whose sides are 1 or missing."""
    sides = zip("nchw", rec.shape(x))
    shape = tuple(1 if side in axes else size for side, size in sides)
    made = rec.add_node(op, (x,), (axes,), shape, out.dtype)
    return rec.derived.bind(out, made)


def _axes(dims: Any) -> str:
    """Of dimensions: letters of "chw", or nothing where there are others."""
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)) or not all(-4 <= d < 4 for d in dims):
        return ""
    axes = {"nchw"[d] for d in dims}
    return "" if "n" in axes or len(axes) != len(dims) else "".join(sorted(axes))


@handles("mean")
def _mean(
    rec: Recorder,
    func: Any,
    input: Tensor,
    dim: Any = None,
    keepdim: bool = False,
    **more: Any,
) -> Any:
    x, axes = rec.value(input), _axes(dim)
    if x is None or more or not axes:
        return None
    return reduced(rec, "mean", x, axes, func(input, dim, keepdim))


@handles("max")
def _max(
    rec: Recorder, func: Any, input: Tensor, dim: Any = None, keepdim: bool = False
) -> Any:
    x, axes = rec.value(input), _axes(dim) if isinstance(dim, int) else ""
    if x is None or not axes:
        return None
    out = func(input, dim, keepdim)
    reduced(rec, "maximum", x, axes, out.values)
    rec.derived.add(out.indices, x, torch.argmax, dim, keepdim)
    return out


def _adaptive(rec: Recorder, op: str, func: Any, input: Tensor, size: Any) -> Any:
    """Adaptive pooling where each side becomes 1 or stays."""
    x = rec.value(input)
    sizes = tuple(size) if isinstance(size, Iterable) else (size, size)
    if x is None or len(sizes) != 2:
        return None
    sides = rec.shape(x)[2:]
    wanted = [side if size is None else size for side, size in zip(sides, sizes)]
    if any(new not in (1, old) for new, old in zip(wanted, sides)):
        return None
    pairs = zip("hw", wanted, sides)
    axes = "".join(axis for axis, new, old in pairs if new != old)
    return (
        reduced(rec, op, x, axes, func(input, size)) if axes else identity(rec, input)
    )


@handles("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(
    rec: Recorder, func: Any, input: Tensor, output_size: Any
) -> Any:
    return _adaptive(rec, "mean", func, input, output_size)


@handles("adaptive_max_pool2d")
def _adaptive_max_pool2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
) -> Any:
    if return_indices:
        return None
    return _adaptive(rec, "maximum", func, input, output_size)


@handles("view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze")
def _reshape(rec: Recorder, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
    return rec.derived.view(func, input, *args, **named)


@handles("expand", "expand_as", "broadcast_to")
def _expand(rec: Recorder, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
    numbers = expanded(rec, func, input, *args, **named)
    if numbers is not None:
        return numbers
    out = func(input, *args, **named)
    x = rec.value(input) if out.shape == input.shape else rec.import_value(input)
    if x is None or out.ndim != 4:
        return None
    note_views(rec, [out], [input])
    return rec.derived.bind(out, x)


@handles("linear")
def _linear(
    rec: Recorder, func: Any, input: Tensor, weight: Tensor, bias: Any = None
) -> Any:
    """Of a value of one pixel it is a 1 x 1 convolution."""
    x = rec.derived.value(input) if isinstance(input, Tensor) else None
    paths = [rec.parameter_path(t) for t in (weight, bias) if t is not None]
    known = None not in paths and not any(id(t) in rec.ref for t in (weight, bias))
    if x is None or not known or rec.shape(x) != (*input.shape, 1, 1):
        return None
    out = func(input, weight, bias)  # raises torch's own errors
    if weight.ndim != 2 or out.dtype not in FLOATS or weight.dtype not in FLOATS:
        return None
    dtype = devices.autocast_dtype(input.device) or input.dtype
    bias_path = paths[1] if len(paths) > 1 else None
    attributes = (paths[0], bias_path, (1, 1), (0, 0), (1, 1), 1)
    shape = (*out.shape, 1, 1)
    return rec.derived.bind(out, rec.add_node("conv", (x,), attributes, shape, dtype))


def _factor(rec: Recorder, tensor: Tensor) -> int | None:
    """The value that is repeated along sides of 1 where ``tensor`` is larger, or None."""
    value = rec.derived.value(tensor)
    if value is None:
        return None
    sides = zip(rec.shape(value), tensor.shape)
    return value if all(side in (1, of) for side, of in sides) else None


@handles("mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__")
def multiply(rec: Recorder, func: Any, input: Any, other: Any, **more: Any) -> Any:
    """The handler's result for a product."""
    if is_number(input):
        input, other = other, input
    pair = (input, other)
    if is_number(other) and not more:
        return affine(rec, func, input, scale=other)
    if more or not all(isinstance(t, Tensor) for t in pair):
        return None
    product = None if is_in_place(func) else frozen_norm_product(rec, input, other)
    if product is None:
        product = times_parameter(rec, input, other, name_of(func), is_in_place(func))
    if product is not None:
        return product
    if not all(t.ndim == 4 for t in pair):
        return None
    known = [_factor(rec, tensor) for tensor in pair]
    if known == [None, None] or not all(t.dtype in FLOATS for t in pair):
        return None
    a, b = (rec.import_value(t) if v is None else v for t, v in zip(pair, known))
    if a is None or b is None:
        return None
    shape = torch.broadcast_shapes(input.shape, other.shape)
    if shape != torch.broadcast_shapes(rec.shape(a), rec.shape(b)):
        return None
    in_place = is_in_place(func)
    dtype = torch.promote_types(input.dtype, other.dtype)
    if in_place:
        if input.shape != shape or rec.value(input) is None:
            return None
        check_in_place(rec, input, "mul_")
        dtype = input.dtype
    made = rec.add_node("multiply", (a, b), (), shape, dtype)
    like = input if input.shape == shape else other  # what is repeated has no say
    out = input if in_place else rec.fakes.empty(shape, dtype, like)
    return rec.bind(out, made)


@handles("square", "pow", "__pow__")
def _square(
    rec: Recorder, func: Any, input: Any, exponent: Any = 2, **more: Any
) -> Any:
    """The second power alone."""
    is_second = is_number(exponent) and exponent == 2 and not more
    if not is_second or not isinstance(input, Tensor) or rec.value(input) is None:
        return None
    out = func(input) if name_of(func) == "square" else func(input, exponent)
    same = out.dtype is input.dtype  # a GPU's autocast makes powers in float32
    return multiply(rec, torch.mul, input, input) if same else None
