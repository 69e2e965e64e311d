# SPDX-License-Identifier: MIT
"""Orders of memory that PyTorch's CPU kernels give and its fakes do not.

Dropout draws in the order of memory, so a recording has to know it. Where fakes and
kernels of PyTorch 2.4 to 2.14 differ was found by trying both on channels_last images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layout import follows_channels_last

_AS_GIVEN = {
    "channel_shuffle", "native_group_norm", "reflection_pad2d", "replication_pad2d", "roll",
}  # fmt: skip
_CONTIGUOUS = {"log_sigmoid_forward", "rrelu_with_noise"}


def ordered(operator: str, given: Any, result: Any) -> Any:
    """The result of an aten operator on the fake `given`, in its kernel's order; where
    there are several, the first is what the call returns."""
    several = isinstance(result, tuple)
    made = result[0] if several else result
    if not (
        isinstance(given, Tensor) and given.is_cpu and follows_channels_last(given)
    ):
        return result
    if operator in _CONTIGUOUS:
        made = made.contiguous()
    elif operator in _AS_GIVEN:
        made = made.contiguous(memory_format=torch.channels_last)
    return (made, *result[1:]) if several else made
