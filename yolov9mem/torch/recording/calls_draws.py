# SPDX-License-Identifier: MIT
"""Handlers of what draws random numbers for whole channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .calls import FLOATS, handles
from .calls_gates import multiply

if TYPE_CHECKING:
    from .recorder import Recorder


def _channel_noise(
    shape: tuple[int, ...], p: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What torch.feature_dropout draws, and multiplies its input with."""
    return torch.empty(shape, dtype=dtype, device=device).bernoulli_(1 - p).div_(1 - p)


@handles("dropout2d")
def _dropout2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Any:
    """A product with noise, which a stock call draws that reads no value: one that does
    would end a stage, whose result is handed out and held."""
    if p == 0 or not training:
        return input
    if p >= 1 or rec.value(input) is None or input.dtype not in FLOATS:
        return None
    drawn = (*input.shape[:2], 1, 1), p, input.dtype, input.device
    noise = rec.stock_call(_channel_noise, "noise of dropout2d", drawn, {})
    rec.bind(noise, rec.add_input(noise, rec.ref[id(noise)]))
    return multiply(rec, torch.Tensor.mul_ if inplace else torch.mul, input, noise)
