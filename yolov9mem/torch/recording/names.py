# SPDX-License-Identifier: MIT
"""What the name of a torch function says."""

from __future__ import annotations

from typing import Any


def name_of(function: Any) -> str:
    """The name that a user would know the function by."""
    return str(getattr(function, "__name__", function))


# Other methods begin like these: __invert__, __int__, __index__.
AUGMENTED = {
    f"__i{operator}__"
    for operator in (
        *("add", "sub", "mul", "matmul", "div", "truediv", "floordiv", "mod", "pow"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
}


def is_in_place(func: Any) -> bool:
    """Does it put its result into its first argument, as mul_ and __imul__ do?"""
    name = name_of(func)
    return name in AUGMENTED or (name[-1] == "_" and name[-2:] != "__")


def cuts_gradients(func: Any) -> bool:
    """Is its result the tensor without its history, as that of detach() and .data is?"""
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    return name_of(func) == "detach" or attribute == "data"
