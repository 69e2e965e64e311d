# SPDX-License-Identifier: MIT
"""What the name of a torch function says."""

from __future__ import annotations

from typing import Any


def name_of(function: Any) -> str:
    """The name that a user would know the function by."""
    return str(getattr(function, "__name__", function))


def is_in_place(func: Any) -> bool:
    """Does it put its result into its first argument, as mul_ and __imul__ do?"""
    name = name_of(func)
    return name.startswith("__i") or (name[-1] == "_" and name[-2:] != "__")
