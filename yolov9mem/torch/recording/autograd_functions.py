# SPDX-License-Identifier: MIT
"""A call of an autograd.Function, of which PyTorch tells no TorchFunctionMode.

What runs within, where gradients are disabled, could not be replayed call by call; as one
stock call it brings its own backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function

from .arguments import KEPT, PRINTED
from .closures import held_by
from .ir import CannotLower
from .isolation import is_recording
from .trees import flatten


@contextmanager
def autograd_functions_recorded() -> Iterator[None]:
    """In the thread that records, ``apply`` is told to the mode as other functions are."""
    stock = vars(Function)["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if not (is_recording() and torch._C._is_torch_function_mode_enabled()):
            return stock.__get__(None, cls)(*args, **kwargs)
        failure = _failure(cls, args, kwargs)

        def call(*given: Any, **named: Any) -> Any:
            if failure is not None:
                raise failure.fresh()
            return cls.apply(*given, **named)

        call.__name__ = f"{cls.__name__} (an autograd.Function)"  # no name of a handler
        return handle_torch_function(call, (), *args, **kwargs)

    type.__setattr__(Function, "apply", classmethod(apply))
    try:
        yield
    finally:
        type.__setattr__(Function, "apply", stock)


def _is_known(thing: Any, seen: set[int]) -> bool:
    """Does the closure of a function, if it is one, hold values and such functions alone,
    as that of `once_differentiable` does?"""
    if not isinstance(thing, FunctionType) or id(thing) in seen:
        return True
    seen.add(id(thing))
    kinds = (*KEPT, *PRINTED)
    return all(isinstance(x, kinds) and _is_known(x, seen) for x in held_by(thing))


def _failure(cls: type[Function], args: Any, kwargs: Any) -> CannotLower | None:
    """Why a replay would see parts of the copy that is recorded, if so."""
    reason = None
    for leaf in flatten((args, kwargs))[0]:
        if not isinstance(leaf, (Tensor, *PRINTED)):
            reason = f"an argument of it is a {type(leaf).__name__}"
    own = [part for part in cls.__mro__ if part not in Function.__mro__]
    bodies = [body for part in own for body in vars(part).values()]
    if not all(_is_known(getattr(body, "__func__", body), set()) for body in bodies):
        reason = "it is defined within a function and reads what that has"
    return None if reason is None else CannotLower(f"{cls.__name__}.apply", "", reason)
