# SPDX-License-Identifier: MIT
"""Rules for what callers give."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolov9mem.sgd import is_finite


def check_module(name: str, value: Any) -> None:
    """Raises TypeError for what is no torch.nn.Module."""
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name}: is a {type(value).__name__}, must be a torch.nn.Module"
        )


def check_callable(name: str, value: Any) -> None:
    """Raises TypeError for what is no function or the like."""
    if not callable(value):
        raise TypeError(f"{name}: is {value!r}, must be a function")


def check_attributes(name: str, value: Any, attributes: tuple[str, ...]) -> None:
    """Raises TypeError for what lacks one of them."""
    for attribute in attributes:
        if not hasattr(value, attribute):
            raise TypeError(
                f"{name}: {type(value).__name__} has no attribute '{attribute}'"
            )


def check_device(name: str, value: Any) -> torch.device:
    """The device. Raises TypeError for what names none by its type, such as a dtype, and
    ValueError for a text or a number that is none here."""
    if isinstance(value, bool) or not isinstance(value, (torch.device, str, int)):
        raise TypeError(f"{name}: is {value!r}, must be a torch.device or its name")
    try:
        return torch.device(value)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: is {value!r}: {error}") from error


def checked_count(name: str, count: Any) -> int:
    """A whole number of at least 1.

    Raises:
        TypeError: it is no number.
        ValueError: it is another number.
    """
    if not is_finite(name, count) or int(count) != count or count < 1:
        raise ValueError(f"{name}: is {count}, must be a whole number of at least 1")
    return int(count)
