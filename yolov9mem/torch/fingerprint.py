# SPDX-License-Identifier: MIT
"""Has a module changed since it was recorded?

The tree, the classes, instance-level ``forward`` and every plain attribute (training flags,
strides, eps, ...) are compared; tensors are compared by where they are, not by content. The
check is made at every training forward, so it must be cheap: C makes it, and Python says
what is another where something is. Only weak references to modules are kept.
"""

from __future__ import annotations

import copy
import struct
import weakref
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from yolov9mem import _core

from .fakes import HOOK_DICTS, HOOKS

SIMPLE = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
INTERNAL = {
    *HOOK_DICTS,
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
    "_former_parameters",
    "_is_replica",
    "_compiled_call_impl",
    "call_super_init",
}


class _Same:
    """Equal to one object only; holds no reference to it."""

    __slots__ = ("_key",)

    def __init__(self, value: Any) -> None:
        self._key = id(value)

    def __eq__(self, other: Any) -> bool:
        return id(other) == self._key

    __hash__ = None  # type: ignore[assignment]


class _SameItems(_Same):
    """Equal to one list or dict only, as long as it has the same items."""

    __slots__ = ("_items",)

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self._items = _item_identities(value)

    def __eq__(self, other: Any) -> bool:
        return super().__eq__(other) and _item_identities(other) == self._items

    __hash__ = None


def _item_identities(value: Any) -> list[int]:
    return list(map(id, value.values() if isinstance(value, dict) else value))


def _is_simple(value: Any, depth: int = 6) -> bool:
    if isinstance(value, (list, tuple, dict)) and depth > 0:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_simple(item, depth - 1) for item in items)
    return isinstance(value, SIMPLE)


def _freeze(value: Any) -> Any:
    if _is_simple(value):
        return copy.deepcopy(value) if isinstance(value, (list, tuple, dict)) else value
    return (_SameItems if isinstance(value, (list, dict)) else _Same)(value)


def _identities(members: dict[str, Any]) -> list[int]:
    return list(map(id, members.values()))


class _ModuleState:
    """One module as it was."""

    __slots__ = ("get", "kind", "module", "named", "names", "path", "size", "values")

    def __init__(self, module: nn.Module, path: str) -> None:
        attributes = module.__dict__
        names = [name for name in attributes if name not in INTERNAL]
        names += ["training"] * (2 - len(names))  # itemgetter of two or more: a tuple
        self.module = weakref.ref(module)
        self.kind = type(module)
        self.size = len(attributes)
        self.names = tuple(names)
        self.get = itemgetter(*names)
        self.values = tuple(_freeze(attributes[name]) for name in names)
        self.named = [
            (kind, _identities(attributes[kind]))
            for kind in ("_modules", "_parameters", "_buffers")
            if attributes[kind] or isinstance(module, CONTAINERS)
        ]
        self.path = path

    def packed(self) -> tuple[Any, ...]:
        """As `_core.unchanged` takes it."""
        members = tuple(
            (kind, struct.pack(f"{len(identities)}P", *identities))
            for kind, identities in self.named
        )
        return (self.module, self.kind, self.size, self.names, self.values, members)


class Fingerprint:
    """The state of a module and all below it that a recording depends on."""

    def __init__(self, module: nn.Module) -> None:
        self._states = [_ModuleState(m, path) for path, m in module.named_modules()]
        self._packed = tuple(state.packed() for state in self._states)

    def difference(self, module: nn.Module) -> str | None:
        """None, or the path of a module that changed ("" is the module itself).

        Members that a module had none of are not looked for: a new parameter, buffer or
        child alone does not change what forward does without an attribute or a class.
        """
        return self.compare(module)[0]

    def compare(self, module: nn.Module) -> tuple[str | None, str | None]:
        """The difference; and the path of an inner module that has a hook, or None."""
        if self._states[0].module() is not module:
            return "", None
        if _core.unchanged(self._packed, HOOKS):
            return None, None
        hooked = None
        for state in self._states:
            known = state.module()
            if type(known) is not state.kind:
                return state.path, None
            own = known.__dict__
            try:
                if len(own) != state.size or state.values != state.get(own):
                    return state.path, None
            except (KeyError, RuntimeError, ValueError):
                # gone; or a tensor or an array where a number was
                return state.path, None
            for kind, identities in state.named:
                if list(map(id, own[kind].values())) != identities:
                    return state.path, None
            if known is not module and any(own[name] for name in HOOKS):
                hooked = state.path
        return None, hooked
