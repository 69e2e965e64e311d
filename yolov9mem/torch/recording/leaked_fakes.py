# SPDX-License-Identifier: MIT
"""Fakes that outlive their recording: somebody keeps them outside of the module.

A cache that a forward filled while it was recorded would give tensors without numbers to
whoever asks it afterwards. Such a forward is refused, and the fakes are taken out again.
"""

from __future__ import annotations

import functools
import gc
import sys
import traceback
import types
import weakref
from collections import deque
from collections.abc import Container
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor

from .global_values import GlobalValues

MUTABLE = (list, dict, set, deque)
CONTAINERS = (tuple, functools._lru_cache_wrapper, *MUTABLE)
DEEPEST = 8  # containers within containers
MOST_NAMED = 3  # holders, in the message


class Watch:
    """Around a recording, which lists its fakes. Nothing else may hold them at the end.

    Python collects no garbage meanwhile: what the recording makes can be told by its age.
    own: ids of the module's fakes, which the copy holds and calls may hand on. values:
    what is put back where fakes were in its place.
    """

    def __init__(self, own: Container[int], values: GlobalValues) -> None:
        self.fakes: list[Any] = []
        self._own, self._values = own, values

    def __enter__(self) -> Watch:
        self._collects, self._outer = gc.isenabled(), sys.exc_info()[1]
        gc.collect(0)
        gc.disable()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is not None:
                _clear_frames(error, self._outer)
                self.take_back()
        finally:
            self._outer = None
            if self._collects:
                gc.enable()

    def take_back(self) -> str:
        """Forgets the fakes; where others hold them, takes them away and says where."""
        fakes = (x for x in self.fakes if isinstance(x, FakeTensor))  # and constants
        watched = [weakref.ref(x) for x in fakes if id(x) not in self._own]
        self.fakes.clear()
        if not any(ref() is not None for ref in watched):
            return ""
        young = set(map(id, gc.get_objects(generation=0)))
        for generation in (0, 2):  # cycles hold some: those of a recording are young
            gc.collect(generation)
            if not any(ref() is not None for ref in watched):
                return ""
        named = _Holders(watched, young).clean()
        self._values.put_back()
        return ", ".join(named[:MOST_NAMED]) or "what Python does not see"


def _clear_frames(error: BaseException | None, outer: BaseException | None) -> None:
    """The frames of an error hold what was local to them; those of one that the caller is
    handling are not ours."""
    seen = {id(outer)}
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _Holders:
    """Who holds the fakes, and who holds those; by id, so that none is held from here."""

    def __init__(self, watched: list[weakref.ref[Any]], young: set[int]) -> None:
        self._young = young
        self._known: dict[int, Any] = {}
        self._of: dict[int, list[int]] = {}
        self._named: dict[str, None] = {}
        for fake in (ref() for ref in watched):
            if fake is not None:
                self._known[id(fake)] = fake
        self._fakes = list(self._known)
        level = self._fakes
        for _ in range(DEEPEST):
            level = self._look_above(level)

    def _look_above(self, level: list[int]) -> list[int]:
        """Finds what holds the objects of a level; returns whose holders matter."""
        inner = set(level)
        above: list[int] = []
        for holder in gc.get_referrers(*map(self._known.get, level)) if level else ():
            if holder is self._known or isinstance(holder, types.FrameType):
                continue
            for held in {id(item) for item in gc.get_referents(holder)} & inner:
                self._of.setdefault(held, []).append(id(holder))
            if id(holder) not in self._known:
                self._known[id(holder)] = holder
                if isinstance(holder, CONTAINERS) or id(holder) in self._young:
                    above.append(id(holder))
        return above

    def clean(self) -> list[str]:
        """Takes the fakes out of what was there before; returns the holders' names."""
        for fake in self._fakes:
            self._release(fake, set())
        return list(self._named)

    def _release(self, item: int, path: set[int]) -> None:
        """What the recording made goes as a whole: an entry of a cache may be a list."""
        for number in self._of.get(item, []):
            holder = self._known[number]
            if number in path:
                continue
            if isinstance(holder, functools._lru_cache_wrapper):
                holder.cache_clear()
                self._named[f"the cache of {self._name(number)}"] = None
            elif self._is_old_namespace(number):
                self._named[self._name(item)] = None
                self._empty(item)
            elif isinstance(holder, tuple) or number in self._young:
                self._release(number, {*path, number})
            elif isinstance(holder, MUTABLE):
                self._named[self._name(number)] = None
                _remove(holder, self._known[item])
            else:
                self._named[self._name(number)] = None
                self._empty(item)

    def _empty(self, number: int) -> None:
        """A container that is as old as the recording, or seems to be: an empty dict has
        no age before something is put into it."""
        holder = self._known[number]
        for item, holders in self._of.items():
            if number in holders and isinstance(holder, MUTABLE):
                _remove(holder, self._known[item])
            elif number in holders and isinstance(holder, tuple):
                self._empty(item)

    def _is_old_namespace(self, number: int) -> bool:
        """Is it an object's namespace, and not one that the recording made?"""
        owner = self._owner(number)
        is_made = number in self._young and id(owner) in self._young
        return owner is not None and not is_made

    def _owner(self, number: int) -> Any:
        """Whose namespace this is, or None."""
        namespace = self._known[number]
        if not isinstance(namespace, dict):
            return None
        for owner in map(self._known.get, self._of.get(number, [])):
            if isinstance(owner, type) or getattr(owner, "__dict__", None) is namespace:
                return owner
        return None

    def _name(self, number: int) -> str:
        """The name that an object has in a namespace."""
        for holder in self._of.get(number, []):
            owner = self._owner(holder)
            if owner is not None:
                names = (k for k, v in self._known[holder].items() if id(v) == number)
                kind = owner if hasattr(owner, "__name__") else type(owner)
                return f"{kind.__name__}.{next(names, '?')}"
        found = self._known[number]
        return getattr(found, "__qualname__", f"a {type(found).__name__}")


def _remove(holder: Any, item: Any) -> None:
    """By identity: == of tensors is a tensor."""
    if isinstance(holder, dict):
        for key in [k for k, v in holder.items() if v is item or k is item]:
            del holder[key]
    elif isinstance(holder, set):
        holder.discard(item)
    else:
        others = [other for other in holder if other is not item]
        holder.clear()
        holder.extend(others)
