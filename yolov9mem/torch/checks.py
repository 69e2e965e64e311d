# SPDX-License-Identifier: MIT
"""Rules for what callers give."""

from __future__ import annotations

from typing import Any

from torch import nn


def check_module(name: str, value: Any) -> None:
    """Raises TypeError for what is no torch.nn.Module."""
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name}: is a {type(value).__name__}, must be a torch.nn.Module"
        )


def check_attributes(name: str, value: Any, attributes: tuple[str, ...]) -> None:
    """Raises TypeError for what lacks one of them."""
    for attribute in attributes:
        if not hasattr(value, attribute):
            raise TypeError(
                f"{name}: {type(value).__name__} has no attribute '{attribute}'"
            )
