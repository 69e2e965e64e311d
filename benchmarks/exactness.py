# SPDX-License-Identifier: MIT
"""The rule of exactness: at most twice as far from float64 as stock PyTorch.

Tests and benchmarks share it. PyTorch is imported by what computes with its tensors alone:
tables are made without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TIMES_STOCK = 2.0
# Added on a GPU, where stock at times makes (almost) no error at all: float32's roundings.
ROUNDINGS = 1e-7


def holds(ours: float, stock: float, besides: float = 0.0) -> bool:
    """Of two relative errors."""
    return ours <= TIMES_STOCK * stock + besides


def pooled_error(tensors: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Relative L2, summed where `exact` lies: on a GPU with one wait for all tensors."""
    import torch

    assert len(tensors) == len(exact)
    if not exact:  # a module without batch norm
        return 0.0
    wrong = [
        (t.to(e.device, torch.float64) - e).square().sum()
        for t, e in zip(tensors, exact)
    ]
    size = torch.stack([e.square().sum() for e in exact]).sum()
    return float((torch.stack(wrong).sum() / size.clamp(min=1e-300)).sqrt())
