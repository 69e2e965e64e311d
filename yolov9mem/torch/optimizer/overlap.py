# SPDX-License-Identifier: MIT
"""Which tensors share memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def share_memory(tensors: Sequence[Tensor]) -> list[bool]:
    """Of each tensor: does another one of these lie in its memory?

    Asks from the first to the last element: tensors that are interleaved count too.
    """
    first = np.array(list(map(Tensor.data_ptr, tensors)), np.int64)
    count = np.array(list(map(Tensor.numel, tensors)), np.int64)
    for i, is_contiguous in enumerate(map(Tensor.is_contiguous, tensors)):
        if not is_contiguous:
            count[i] = _extent(tensors[i])
    end = first + count * list(map(Tensor.element_size, tensors))
    first[count == 0] = end[count == 0] = -1  # no memory
    order = np.argsort(first, kind="stable")
    first, end = first[order], end[order]
    apart = np.ones(len(first), bool)
    apart[1:] = first[1:] >= np.maximum.accumulate(end)[:-1]
    heap = np.cumsum(apart)
    shares: np.ndarray[Any, Any] = np.empty(len(first), bool)
    shares[order] = np.bincount(heap)[heap] > 1
    return list(map(bool, shares))


def storages(tensors: Iterable[Tensor | None]) -> set[int]:
    """Addresses of the blocks of memory that the dense ones of these lie in."""
    dense = [x for x in tensors if x is not None and x.layout is torch.strided]
    return {x.untyped_storage().data_ptr() for x in dense} - {0}


def _extent(x: Tensor) -> int:
    """Elements from the first to the last one in memory."""
    if x.numel() == 0:
        return 0
    steps = zip(x.shape, x.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def repeats(x: Tensor) -> bool:
    """Are several elements one in memory, as expand() leaves them? Not to be written."""
    if x.layout is not torch.strided or x.is_contiguous():
        return False
    return any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride(), strict=True))
