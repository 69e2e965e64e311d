# SPDX-License-Identifier: MIT
"""Which objects does a forward look at?

A module may keep objects in attributes: settings, counters, its loss. What its forward
reads in one is part of a recording's ground and has to be compared at every forward; a
loss that counts its calls has not. So the objects of the copy that is recorded tell when
they are asked for an attribute.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Iterable
from typing import Any

ASKS = ("__getattribute__", "__setattr__", "__delattr__")


class Spies:
    """Objects that tell when they are looked at."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = list(objects)  # keeps the ids valid
        self._kinds: dict[type, type | None] = {}
        self._touched: set[int] = set()
        self._blind = {id(thing) for thing in self._objects if not self._listen(thing)}

    def touched(self) -> set[int]:
        """Ids of those that were, or may have been."""
        return self._touched | self._blind

    def _listen(self, thing: Any) -> bool:
        kind = type(thing)
        if kind not in self._kinds:
            self._kinds[kind] = self._spy(kind)
        spy = self._kinds[kind]
        if spy is None:
            return False
        try:
            object.__setattr__(thing, "__class__", spy)
        except TypeError:  # written in C
            return False
        return True

    def _spy(self, kind: type) -> type | None:
        """The class with ears; None where somebody would notice a class below it."""
        told = {name for known in kind.__mro__[:-1] for name in vars(known)}
        if type(kind) not in (type, ABCMeta) or "__init_subclass__" in told:
            return None
        members = {name: self._telling(getattr(kind, name)) for name in ASKS}
        try:
            return type(kind)(kind.__name__, (kind,), {**members, "__slots__": ()})
        except TypeError:  # a class that allows none below it
            return None

    def _telling(self, stock: Any) -> Any:
        def asked(thing: Any, name: str, *value: Any) -> Any:
            if name != "__class__":  # which isinstance reads
                self._touched.add(id(thing))
            return stock(thing, name, *value)

        return asked
