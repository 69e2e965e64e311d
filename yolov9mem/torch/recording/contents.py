# SPDX-License-Identifier: MIT
"""The content of an attribute, to be compared with it later; holds no reference to it.

Numbers, texts and containers of them are compared by content, tensors and modules by
identity; objects by identity too, unless they are watched: then by what is in them.
"""

from __future__ import annotations

import array
import contextlib
import copy
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype)
CONTAINERS = (list, tuple, dict, set, frozenset, deque)
DEPTH = 6  # of what is in what
MOST_OBJECTS = 10_000
MOST_BYTES = 1 << 20  # of an array that is compared by content


class Same:
    """Equal to one object only."""

    __slots__ = ("_key",)

    def __init__(self, value: Any) -> None:
        self._key = id(value)

    def __eq__(self, other: Any) -> bool:
        return id(other) == self._key

    __hash__ = None  # type: ignore[assignment]


class SameContent(Same):
    """Equal to one object only, as long as ``parts`` of it are as they were."""

    __slots__ = ("_frozen", "_parts")

    def __init__(self, value: Any, parts: Callable[[Any], Any], frozen: Any) -> None:
        super().__init__(value)
        self._parts, self._frozen = parts, frozen

    def __eq__(self, other: Any) -> bool:
        return super().__eq__(other) and bool(self._frozen == self._parts(other))

    __hash__ = None


def members_of(container: Any) -> list[Any]:
    """Its keys and values, in order; of a set the identities."""
    if isinstance(container, dict):
        return [*container, *container.values()]
    if isinstance(container, (set, frozenset)):
        return sorted(map(id, container))
    return list(container)


def attributes_of(thing: Any) -> dict[str, Any]:
    """Those of the object itself."""
    found = {}
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):  # one that was never set
                found[name] = object.__getattribute__(thing, name)
    if _has_dict(thing):
        found.update(object.__getattribute__(thing, "__dict__"))
    return found


def _has_dict(thing: Any) -> bool:
    return type(thing).__dictoffset__ != 0


def is_object(value: Any) -> bool:
    """One whose attributes forward could read, and nothing that torch or Python knows."""
    opaque = (*SIMPLE, *CONTAINERS, Tensor, nn.Module, type, torch.Generator)
    return (
        not isinstance(value, opaque)
        and not callable(getattr(type(value), "__get__", None))  # functions, methods
        and type(value).__module__ not in ("builtins", "numpy", "torch")
        and (_has_dict(value) or hasattr(type(value), "__slots__"))
    )


def _state_of(value: Any) -> Callable[[Any], Any] | None:
    """What tells the content of a random generator, an array or an iterator."""
    if isinstance(value, random.Random):
        return type(value).getstate
    if isinstance(value, bytearray):
        return bytes
    if isinstance(value, array.array):
        return lambda numbers: (numbers.typecode, numbers.tobytes())
    if hasattr(type(value), "__next__"):
        return _reduced
    if isinstance(value, torch.Generator):
        return lambda generator: bytes(generator.get_state().tolist())
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, (numpy.random.Generator, numpy.random.RandomState)):
        return lambda generator: repr(_bits(generator).state)
    if isinstance(value, numpy.ndarray) and value.nbytes <= MOST_BYTES:
        return lambda numbers: (numbers.dtype, numbers.shape, numbers.tobytes())
    return None


def _reduced(iterator: Any) -> list[Any] | None:
    """What an iterator would be made of again; None: it does not tell."""
    with warnings.catch_warnings():  # that those of itertools will not in Python 3.14
        warnings.simplefilter("ignore")
        try:
            return list(iterator.__reduce__())
        except Exception:
            return None


def _bits(generator: Any) -> Any:
    known = getattr(generator, "bit_generator", None)
    return generator._bit_generator if known is None else known


def is_simple(value: Any, depth: int = DEPTH) -> bool:
    """Is it, with all that is in it, compared by ==?"""
    if isinstance(value, (list, tuple, dict)) and depth > 0:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(is_simple(item, depth - 1) for item in items)
    return isinstance(value, SIMPLE)


class Freezer:
    """Freezes attributes of a module; ``watched``: ids of objects."""

    def __init__(self, watched: Container[int] = ()) -> None:
        self._watched = watched
        self._seen: set[int] = set()

    def freeze(self, value: Any, depth: int = DEPTH) -> Any:
        """What equals the value (`is_frozen`) as long as it has the same content."""
        if is_simple(value, depth):
            is_container = isinstance(value, (list, tuple, dict))
            return copy.deepcopy(value) if is_container else value
        if depth == 0 or id(value) in self._seen or len(self._seen) > MOST_OBJECTS:
            return Same(value)
        parts = self._parts(value)
        if parts is None:
            return Same(value)
        self._seen.add(id(value))
        content = parts(value)
        if isinstance(content, list):
            content = [self.freeze(part, depth - 1) for part in content]
        return SameContent(value, parts, content)

    def _parts(self, value: Any) -> Callable[[Any], Any] | None:
        if isinstance(value, CONTAINERS):
            return members_of
        state = _state_of(value)
        if state is None and id(value) in self._watched and is_object(value):
            return _names_and_values
        return state


def is_frozen(value: Any, frozen: Any) -> bool:
    """Is it still what it was when a Freezer froze it?"""
    try:
        return bool(frozen == value)
    except (RuntimeError, ValueError):  # a tensor or an array where a number was
        return False


def _names_and_values(thing: Any) -> list[Any]:
    return members_of(attributes_of(thing))


def objects_in(values: Iterable[Any]) -> Iterator[Any]:
    """All objects among these values and in what they hold, each once."""
    seen: set[int] = set()
    left = [(value, DEPTH) for value in values]
    while left and len(seen) <= MOST_OBJECTS:
        value, depth = left.pop()
        if id(value) in seen or depth == 0:
            continue
        seen.add(id(value))
        inside: list[Any] = []
        if isinstance(value, CONTAINERS) and not is_simple(value):
            inside = [*value.values()] if isinstance(value, dict) else [*value]
        elif is_object(value):
            yield value
            inside = [*attributes_of(value).values()]
        left += [(part, depth - 1) for part in inside]
