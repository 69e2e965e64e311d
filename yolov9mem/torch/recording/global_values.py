# SPDX-License-Identifier: MIT
"""What the functions of a module find in the globals of their files, as it was.

A forward that puts a tensor there is refused, and its fake is taken out again; what was
there before would be lost: `COUNTS["steps"] = COUNTS["steps"] + 1`.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

DICTS = (dict, OrderedDict, defaultdict)
MOST_ITEMS = 1000  # of a container: a larger one is not what a forward counts in


class GlobalValues:
    """Tensors there: of the globals themselves, of classes, dicts and lists."""

    def __init__(self, module: nn.Module) -> None:
        self._dicts: list[tuple[Any, dict[Any, Tensor]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        for space in _spaces(module):
            self._note(space)
            for value in list(space.values()):
                # A proxy's __class__ may be anything, and others import what they list.
                kind = type(value)
                if kind is list and _has_tensor(value):
                    self._lists.append((value, list(value)))
                elif kind in DICTS:
                    self._note(value)
                elif issubclass(kind, type) and value.__module__ == space["__name__"]:
                    self._note(vars(value), value)

    def _note(self, space: Any, owner: type | None = None) -> None:
        if len(space) <= MOST_ITEMS:
            tensors = {k: x for k, x in list(space.items()) if _is_tensor(x)}
            if tensors:
                self._dicts.append((space if owner is None else owner, tensors))

    def put_back(self) -> None:
        """Those in whose place nothing is now, or a fake."""
        for owner, tensors in self._dicts:
            for key, tensor in tensors.items():
                now = vars(owner) if isinstance(owner, type) else owner
                if not isinstance(now.get(key), (type(None), FakeTensor)):
                    continue
                if isinstance(owner, type):
                    setattr(owner, key, tensor)
                else:
                    owner[key] = tensor
        for values, before in self._lists:
            if len(values) < len(before) or any(
                isinstance(x, FakeTensor) for x in values
            ):
                values[:] = before


def _spaces(module: nn.Module) -> list[dict[str, Any]]:
    """The globals of the forwards of all parts, but PyTorch's own."""
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    forwards = (vars(kind).get("forward") for kind in kinds)
    found = (getattr(forward, "__globals__", {}) for forward in forwards)
    spaces = {id(space): space for space in found if "__name__" in space}
    own = (s for s in spaces.values() if not str(s["__name__"]).startswith("torch."))
    return list(own)


def _has_tensor(values: list[Any]) -> bool:
    return len(values) <= MOST_ITEMS and any(map(_is_tensor, values))


def _is_tensor(value: Any) -> bool:
    return issubclass(type(value), Tensor)
