# SPDX-License-Identifier: MIT
"""What a message calls a tensor of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def name_of(param_groups: list[dict[str, Any]], tensor: Tensor) -> str:
    """Its group and place there; a tensor of the model that is only averaged has none."""
    shape = tuple(tensor.shape)
    for number, group in enumerate(param_groups):
        for i, p in enumerate(group["params"]):
            if p is tensor:
                return f"param_groups[{number}], parameter {i} of shape {shape}"
    return f"an averaged tensor of shape {shape}"
