# SPDX-License-Identifier: MIT
"""What tells one call's arguments from another's: what a recording takes as fixed."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor

from .ir import CannotLower

NUMBERS = (bool, int, float, complex, str, bytes)
PRINTED = (  # their repr says all, if their class has none of its own
    *(type(None), *NUMBERS, range, slice, Enum, PurePath),
    *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
)
MOST_BYTES = 1 << 16  # of an array, which is part of a key
KEPT = (type, FunctionType, BuiltinFunctionType)  # equal to themselves only


def describe(leaves: Sequence[Any]) -> Hashable:
    """Of each its kind, and which tensors are given more than once.

    Raises:
        CannotLower: nobody knows what is in one.
    """
    kinds = tuple(map(kind_of, leaves))
    tensors = [id(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    if len({*tensors}) == len(tensors):
        return kinds
    return kinds, tuple(map(tensors.index, tensors))


def kind_of(leaf: Any) -> Hashable:
    """Of a tensor the shape, dtype and device; of all else the value.

    Raises:
        CannotLower: nobody knows what is in it.
    """
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.get_device()
    if isinstance(leaf, Enum):
        return type(leaf), leaf.name, repr(leaf.value)
    for kind in NUMBERS:
        if isinstance(leaf, kind):
            return type(leaf), kind.__repr__(leaf)
    if isinstance(leaf, PRINTED):
        return type(leaf), repr(leaf)
    if isinstance(leaf, KEPT):
        return leaf
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(leaf, (numpy.generic, numpy.ndarray)):
        if not leaf.dtype.hasobject and leaf.nbytes <= MOST_BYTES:
            return leaf.dtype.str, leaf.shape, leaf.tobytes()
        what = f"a NumPy array of {leaf.nbytes} bytes"
    else:
        what = f"an argument of type {type(leaf).__name__}"
    raise CannotLower("argument", "", f"{what} is not understood: pass tensors")


def orders_of(leaves: Sequence[Any]) -> Hashable:
    """In what order of memory tensors lie: dropout draws in it."""
    return tuple(_order(leaf) for leaf in leaves if isinstance(leaf, Tensor))


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Its dimensions from the largest stride to the smallest."""
    strides = tensor.stride()
    return tuple(sorted(range(len(strides)), key=lambda i: -strides[i]))
