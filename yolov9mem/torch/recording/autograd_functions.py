# SPDX-License-Identifier: MIT
"""A call of an autograd.Function, of which PyTorch tells no TorchFunctionMode.

What runs within, where gradients are disabled, could not be replayed call by call; as one
stock call it brings its own backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function

from .arguments import PRINTED
from .ir import CannotLower
from .isolation import is_recording
from .trees import flatten


@contextmanager
def told() -> Iterator[None]:
    """In the thread that records, ``apply`` is told to the mode as other functions are."""
    stock = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not (is_recording() and torch._C._is_torch_function_mode_enabled()):
            return stock.__get__(None, cls)(*args, **kwargs)
        _check(cls, args, kwargs)

        def call(*given: Any, **named: Any) -> Any:
            return cls.apply(*given, **named)

        call.__name__ = f"{cls.__name__} (an autograd.Function)"  # no name of a handler
        return handle_torch_function(call, (), *args, **kwargs)

    type.__setattr__(Function, "apply", classmethod(apply))
    try:
        yield
    finally:
        type.__setattr__(Function, "apply", stock)


def _check(cls: type[Function], args: Any, kwargs: Any) -> None:
    """Raises CannotLower where a replay would see parts of the copy that is recorded."""
    reason = None
    for leaf in flatten((args, kwargs))[0]:
        if not isinstance(leaf, (Tensor, *PRINTED)):
            reason = f"an argument of it is a {type(leaf).__name__}"
    bodies = [vars(part) for part in cls.__mro__ if part not in Function.__mro__]
    for body in (body for part in bodies for body in part.values()):
        if getattr(getattr(body, "__func__", body), "__closure__", None):
            reason = "it is defined within a function and reads what that has"
    if reason is not None:
        raise CannotLower(f"{cls.__name__}.apply", "", reason)
