# SPDX-License-Identifier: MIT
"""Functions that hold others, or parts of a module, in their closures.

A forward that was put around an instance's, ``part.forward = timed(part.forward)``, holds
what it calls. copy.deepcopy() takes such a function as it is: it would go on calling the
original in the copy.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from .contents import CONTAINERS, Freezer, is_frozen

Place = tuple[Any, Callable[[Any], None]]  # what is there, and what puts another there


def held_by(thing: Any) -> list[Any]:
    """What a function, a method or an object that is called holds; of all else nothing."""
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    return [held for held, _ in _places_in(thing)]


def _places_in(thing: Any) -> Iterator[Place]:
    while isinstance(thing, (MethodType, functools.partial)):
        thing = thing.__func__ if isinstance(thing, MethodType) else thing.func
    if isinstance(thing, FunctionType):
        for cell in filter(_is_full, thing.__closure__ or ()):
            yield cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        yield from _places_of(vars(thing))
    elif callable(thing) and not isinstance(thing, (type, nn.Module)):
        yield from _places_of(getattr(thing, "__dict__", {}))


def _places_of(namespace: dict[str, Any]) -> Iterator[Place]:
    for name, value in namespace.items():
        yield value, functools.partial(namespace.__setitem__, name)


def _is_full(cell: CellType) -> bool:
    return cell != CellType()


def redirect(
    module: nn.Module, old: Callable[..., Any], new: Callable[..., Any]
) -> None:
    """Of a module with a forward of its own: what is called in its attributes and holds
    ``old``, a function that takes the module, as such or as a method, holds ``new``."""
    own, seen = vars(module), set[int]()
    left = list(_places_of(own)) if "forward" in own else []
    while left:
        held, put = left.pop()
        if held is old:
            put(new)
        elif isinstance(held, MethodType) and held.__func__ is old:
            put(MethodType(new, held.__self__))
        elif id(held) not in seen:
            seen.add(id(held))
            left += _places_in(held)


Known = list[tuple[Callable[[], list[Any]], list[Any]]]  # read, and as it was, frozen


def changed(known: Known) -> bool:
    """Has a function changed what it holds, as one that counts its calls does?"""
    return not all(is_frozen(read(), was) for read, was in known)


class Rebinding:
    """Gives functions the copies of the parts that they hold, and containers of their own.

    copies: of each part of a module, by the id of the original.
    memo: of the deepcopy() that made them.
    known: what those functions hold.
    """

    def __init__(self, copies: dict[int, nn.Module], memo: dict[int, Any]) -> None:
        self._copies, self._memo = copies, memo
        self._made: dict[int, Any] = {}  # by the id of what holds parts
        self.known: Known = []
        self._freezer = Freezer()

    def attributes(self, part: nn.Module) -> None:
        """Of those functions that the part, a copy, has in attributes."""
        own = vars(part)
        own.update({name: self._rebound(value) for name, value in own.items()})

    def _holds_part(self, thing: Any) -> bool:
        seen, left = set[int](), [thing]
        while left:
            held = left.pop()
            if id(held) in self._copies:
                return True
            if id(held) not in seen:
                seen.add(id(held))
                left += held_by(held)
        return False

    def _rebound(self, thing: Any) -> Any:
        if id(thing) in self._copies:
            return self._copies[id(thing)]
        if id(thing) not in self._made and self._holds_part(thing):
            self._copy(thing)
        return self._made.get(id(thing), thing)

    def _copy(self, thing: Any) -> None:
        """What holds itself is there before what it holds."""
        if isinstance(thing, MethodType):
            self._made[id(thing)] = MethodType(*map(self._rebound, held_by(thing)))
        elif isinstance(thing, functools.partial):
            first, *others = map(self._rebound, held_by(thing))
            count = len(thing.args)
            named = dict(zip(thing.keywords, others[count:]))
            made = functools.partial(first, *others[:count], **named)
            self._made[id(thing)] = made
        elif isinstance(thing, FunctionType):
            self._copy_function(thing)
        else:
            made = self._made[id(thing)] = object.__new__(type(thing))
            vars(made).update(vars(thing))
            for held, put in list(_places_of(vars(made))):
                put(self._rebound_or_copied(held))
            self._know(lambda: list(vars(made).values()))

    def _copy_function(self, function: FunctionType) -> None:
        cells = function.__closure__ or ()
        copied = tuple(CellType() for _ in cells)
        made = self._made[id(function)] = FunctionType(
            function.__code__, function.__globals__, function.__name__,
            function.__defaults__, copied,
        )  # fmt: skip
        made.__kwdefaults__ = function.__kwdefaults__
        for cell, own in zip(cells, copied):
            if _is_full(cell):
                own.cell_contents = self._rebound_or_copied(cell.cell_contents)
        for name, value in vars(function).items():
            vars(made)[name] = self._rebound_or_copied(value)
        self._know(lambda: [held for held, _ in _places_in(made)])

    def _rebound_or_copied(self, thing: Any) -> Any:
        if isinstance(thing, CONTAINERS):
            return copy.deepcopy(thing, self._memo)
        return self._rebound(thing)

    def _know(self, read: Callable[[], list[Any]]) -> None:
        self.known.append((read, list(map(self._freezer.freeze, read()))))
