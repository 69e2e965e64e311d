# SPDX-License-Identifier: MIT
"""How tensors lie in memory: which the C step can walk through element by element."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from . import devices

PLAIN = (Tensor, torch.nn.Parameter)
_dtype = attrgetter("dtype")
_layout = attrgetter("layout")
_device = attrgetter("device")


def _steps(x: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of every dimension that has more than one element."""
    pairs = zip(x.stride(), x.shape, strict=True)
    return [(stride, size) for stride, size in pairs if size > 1]


def _is_dense(x: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(_steps(x)):
        if stride != expected:
            return False
        expected *= size
    return True


def is_channels_last(x: Tensor) -> bool:
    """Is it (N, C, H, W) in that layout and in no other?"""
    return x.ndim == 4 and x.stride(1) == 1 and not x.is_contiguous()


def follows_channels_last(x: Tensor) -> bool:
    """Do results made from (N, C, H, W) come out channels_last? As c10's
    `is_channels_last_strides_2d_s4` says: of one channel many layouts are both."""
    if x.ndim != 4:
        return False
    sizes, strides = x.shape, x.stride()
    if strides[1] == 0 or 0 in sizes:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if strides[axis] < least or (axis == 0 and strides[1] == least):
            return False
        least = strides[axis] * sizes[axis]
    return True


def is_flat(x: Tensor) -> bool:
    """Ordinary float32 memory on the CPU or on a GPU, that holds the values as they are."""
    return (
        type(x) in PLAIN
        and x.dtype is torch.float32
        and (x.is_cpu or devices.kind(x.device) == "cuda")
        and x.layout is torch.strided
        and not x.is_neg()
    )


def matches(x: Tensor, like: Tensor) -> bool:
    """Element i of x's memory belongs to element i of `like`'s; `like` is flat."""
    if not is_flat(x) or x.shape != like.shape or x.device != like.device:
        return False
    if like.is_contiguous():
        return x.is_contiguous()
    return _steps(x) == _steps(like) and _is_dense(like)


def are_as_parameters(grads: list[Any], params: list[Tensor]) -> bool:
    """Is every gradient there, plain float32 and laid out as its parameter?

    A model has a thousand of each: looking at them in bulk takes half the time.
    """
    if (
        not set(map(type, grads)) <= set(PLAIN)
        or not set(map(_layout, grads)) <= {torch.strided}
        or not set(map(_dtype, grads)) <= {torch.float32}
        or list(map(_device, grads)) != list(map(_device, params))
        or list(map(Tensor.numel, grads)) != list(map(Tensor.numel, params))
        or any(map(Tensor.is_neg, grads))
    ):
        return False
    contiguous = zip(
        map(Tensor.is_contiguous, grads), map(Tensor.is_contiguous, params), strict=True
    )
    return all(
        (g and p) or matches(grads[i], params[i]) for i, (g, p) in enumerate(contiguous)
    )
