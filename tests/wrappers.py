# SPDX-License-Identifier: MIT
"""Forwards that are put around others, and the ways in which people put them there."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from models_for_tests import Brick
from torch import Tensor, nn

Forward = Callable[..., Any]
Around = Callable[[Forward], Forward]


def make_classes() -> tuple[type, type]:
    """A class with a base and a block of its own."""

    class Plain(Brick):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Block(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(3, 8, 3), Block(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    class Own(Base):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x, dict):  # as ultralytics gives its batch
                return self.forward(x["img"])
            return super().forward(x) * 2

    return Own, Block


def twins(own: bool = True) -> tuple[nn.Module, nn.Module]:
    """Alike, each of a class of its own, which has a forward of its own or inherits."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        kind = make_classes()[0] if own else type("Heir", (make_classes()[0],), {})
        made.append(kind())
    return made[0], made[1]


def times_five(forward: Forward) -> Forward:
    return lambda self, x: forward(self, x) * 5


def changed(forward: Forward) -> Forward:
    return lambda self, x: forward(self, x * 2).relu()


def twice(forward: Forward) -> Forward:
    return lambda self, x: forward(self, x) + forward(self, x * 2)


def in_bfloat16(forward: Forward) -> Forward:
    return torch.autocast("cpu", torch.bfloat16)(forward)


def says(around: Around) -> Around:
    """As functools.wraps() makes it."""
    return lambda forward: functools.wraps(forward)(around(forward))


AROUND = {
    "plus": times_five,
    "says so": says(times_five),
    "arguments and outputs": changed,
    "calls it twice": twice,
    "mixed precision": in_bfloat16,
}


def on_class(module: nn.Module, around: Around) -> None:
    type(module).forward = around(type(module).forward)


def on_base(module: nn.Module, around: Around) -> None:
    base = type(module).__mro__[1]
    base.forward = around(base.forward)


def on_instance(module: nn.Module, around: Around) -> None:
    """As accelerate does it."""
    module.forward = types.MethodType(around(module.forward.__func__), module)


def bound(module: nn.Module, around: Around) -> None:
    """A function that has the method in a closure."""
    old = module.forward
    new = around(lambda self, x: old(x))
    module.forward = lambda x: new(module, x)


class Called:
    """An object around a forward."""

    def __init__(self, forward: Forward) -> None:
        self.inner = forward

    def __call__(self, *args: Any) -> Any:
        return self.inner(*args)


def by_object(module: nn.Module, around: Around) -> None:
    """As accelerate does it where it casts."""
    cast = Called(around(module.forward.__func__))
    module.forward = types.MethodType(lambda self, x: cast(self, x), module)


def by_attribute(module: nn.Module, around: Around) -> None:
    """As accelerate's hooks do it."""
    module.old, new = module.forward, around(lambda self, x: self.old(x))
    module.forward = functools.partial(new, module)


def by_bound_object(module: nn.Module, around: Around) -> None:
    cast = Called(module.forward)
    new = around(lambda self, x: cast(x))
    module.forward = types.MethodType(new, module)


def on_both(module: nn.Module, around: Around) -> None:
    on_class(module, around)
    on_instance(module, times_five)
    on_class(module, lambda forward: lambda self, x: forward(self, x + 1))


PLACES = {
    "class": on_class,
    "base": on_base,
    "instance": on_instance,
    "closure": bound,
    "object": by_object,
    "bound object": by_bound_object,
    "attribute": by_attribute,
    "instance and class, twice": on_both,
}


def on_parts(place: Callable[..., None]) -> Callable[..., None]:
    return lambda module, around: [
        place(part, around) for part in (module.first, module.second)
    ]


INSIDE = {
    "class": lambda module, around: on_class(module.first, around),
    "base": lambda module, around: on_base(module.first, around),
    "instance": on_parts(on_instance),
    "closure": on_parts(bound),
    "object": on_parts(by_object),
    "bound object": on_parts(by_bound_object),
    "attribute": on_parts(by_attribute),
}


def tolerance(around: Around) -> float:
    return 0.05 if around is in_bfloat16 else 1e-3
