# SPDX-License-Identifier: MIT
"""Telling autograd what the C core has written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version


def _takes_several() -> bool:
    """From PyTorch 2.5 on."""
    try:
        increment_version([torch.zeros(1)])
    except (RuntimeError, TypeError):
        return False
    return True


_SEVERAL = _takes_several()


def count_up(written: Sequence[Tensor]) -> None:
    """Counts up the versions of tensors: what autograd saved of them is refused."""
    if _SEVERAL:
        increment_version(written)
        return
    for tensor in written:
        increment_version(tensor)
