# SPDX-License-Identifier: MIT
"""Handlers of sums, and of arithmetic with numbers: scale * (x + shift)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .calls import FLOATS, handles, identity
from .frozen_norms import frozen_norm_sum
from .names import is_in_place, name_of
from .own_numbers import plus_parameter
from .sharing import check_in_place

if TYPE_CHECKING:
    from .recorder import Recorder

LARGEST = torch.finfo(torch.float32).max  # the core computes in float


def is_number(x: Any) -> bool:
    """Of Python or NumPy, and no bool."""
    kinds = (int, float, np.integer, np.floating)
    return isinstance(x, kinds) and not isinstance(x, bool)


def affine(
    rec: Recorder, func: Any, input: Any, scale: float = 1.0, shift: float = 0.0
) -> Any:
    """The handler's result for scale * (input + shift), where one of both is rounded by
    the number alone: scale is 1 or -1, or shift is 0."""
    value = rec.derived.value(input) if isinstance(input, Tensor) else None
    if value is None or input.dtype not in FLOATS:
        return None
    if not (abs(scale) <= LARGEST and abs(shift) <= LARGEST):
        return None
    in_place = is_in_place(func)
    if in_place:
        check_in_place(rec, input, name_of(func))
    shape, attributes = rec.shape(value), (float(scale), float(shift), None, None)
    made = rec.add_node("affine", (value,), attributes, shape, input.dtype)
    sides = tuple(input.shape)
    out = input if in_place else rec.fakes.empty(sides, input.dtype, input)
    return rec.derived.bind(out, made)


@handles("add", "add_", "__add__", "__radd__", "__iadd__")
def _add(rec: Recorder, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    in_place = is_in_place(func)
    bumped = rec.parameter_path(input)
    if in_place and bumped is not None and _is_count(rec, bumped, other, alpha):
        rec.recording.bumps[bumped] = rec.recording.bumps.get(bumped, 0) + 1
        return input
    if is_number(input):
        input, other = other, input
    if is_number(other) and other == 0 and rec.value(input) is not None:
        return input if in_place else identity(rec, input)
    if alpha != 1:
        return None
    if is_number(other):
        return affine(rec, func, input, shift=other)
    norm = frozen_norm_sum(rec, input, other, in_place)
    if norm is not None:
        return norm
    moved = plus_parameter(rec, input, other, name_of(func), in_place)
    if moved is not None:
        return moved
    return _sum(rec, func, input, other)


def _sum(rec: Recorder, func: Any, input: Any, other: Any, scale: float = 1.0) -> Any:
    """The handler's result for input + scale * other, which is 1 or -1."""
    a, b = _terms(rec, input, other)
    if a is None or b is None or rec.shape(a) != rec.shape(b):
        return None
    in_place = is_in_place(func)
    if in_place:
        check_in_place(rec, input, name_of(func))
    shape = rec.shape(a)
    if scale != 1:
        b = rec.add_node("affine", (b,), (scale, 0.0, None, None), shape, other.dtype)
    dtype = input.dtype if in_place else torch.promote_types(input.dtype, other.dtype)
    made = rec.add_node("add", (a, b), (), shape, dtype)
    sides = tuple(input.shape)
    out = input if in_place else rec.fakes.empty(sides, dtype, input)
    return rec.derived.bind(out, made)


def _terms(rec: Recorder, input: Any, other: Any) -> list[int | None]:
    """Their values; also of tensors in one other shape than theirs."""
    pair = (input, other)
    if all(isinstance(term, Tensor) for term in pair) and input.shape == other.shape:
        known = [rec.derived.value(term) for term in pair]
        if None not in known:
            return known
    return rec.values(pair)


def _is_count(rec: Recorder, path: str, other: Any, alpha: Any) -> bool:
    """Is it the line of nn.BatchNorm that counts its batches?"""
    return (
        path.rpartition(".")[2] == "num_batches_tracked"
        and isinstance(rec.modules[-1][1], nn.modules.batchnorm._BatchNorm)
        and isinstance(other, int)
        and other == 1
        and alpha == 1
    )


@handles("sub", "subtract", "sub_", "__sub__", "__isub__")
def _sub(rec: Recorder, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1:
        return None
    if is_number(input):
        return affine(rec, func, other, scale=-1, shift=-input)
    if is_number(other):
        return affine(rec, func, input, shift=-other)
    return _sum(rec, func, input, other, -1.0)


@handles("rsub", "__rsub__")
def _rsub(rec: Recorder, func: Any, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    if not is_number(other) or alpha != 1:
        return None
    return affine(rec, func, input, scale=-1, shift=-other)


@handles("neg", "negative", "neg_", "__neg__")
def _neg(rec: Recorder, func: Any, input: Any) -> Any:
    return affine(rec, func, input, scale=-1)


@handles("div", "divide", "true_divide", "div_", "__truediv__", "__itruediv__")
def _div(rec: Recorder, func: Any, input: Any, other: Any, **more: Any) -> Any:
    """Where to multiply by the inverse adds less than half to the error of a division,
    as with 2, 3, 5 and 6 but not with 7."""
    if more or not is_number(other) or not 0 < abs(other) <= LARGEST:
        return None
    inverse = float(np.float32(1 / other))
    is_near = abs(inverse * other - 1) <= 1.001 * 2**-25
    return affine(rec, func, input, scale=inverse) if is_near else None
