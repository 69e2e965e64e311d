# SPDX-License-Identifier: MIT
"""Which tensors share memory."""

from __future__ import annotations

import torch
from torch import Tensor


def repeats(x: Tensor) -> bool:
    """Are several elements one in memory, as expand() leaves them? Not to be written."""
    if x.layout is not torch.strided or x.is_contiguous():
        return False
    return any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride(), strict=True))
