# SPDX-License-Identifier: MIT
"""Has a module changed since it was recorded?

The tree, the classes and their ``forward``, an instance's own and every plain attribute
(training flags, strides, eps, ...) are compared, and what is in objects that forward has
looked at; tensors are compared by where they are, not by content. The check is made at
every training forward, so it must be cheap: C makes it, and Python says what is another
where something is. Only weak references to modules are kept.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Container
from operator import itemgetter
from typing import Any

from torch import nn

from yolov9mem import _core

from .contents import Freezer
from .fakes import HOOK_DICTS
from .forwards import Forwards
from .hooks import HOOKS, has_other_hooks

CONTAINERS_OF_MODULES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
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


def _identities(members: dict[str, Any]) -> list[int]:
    return list(map(id, members.values()))


class _ModuleState:
    """One module as it was."""

    __slots__ = ("get", "kind", "module", "named", "names", "path", "size", "values")

    def __init__(self, module: nn.Module, path: str, freezer: Freezer) -> None:
        attributes = module.__dict__
        names = [name for name in attributes if name not in INTERNAL]
        names += ["training"] * (2 - len(names))  # itemgetter of two or more: a tuple
        self.module = weakref.ref(module)
        self.kind = type(module)
        self.size = len(attributes)
        self.names = tuple(names)
        self.get = itemgetter(*names)
        self.values = tuple(freezer.freeze(attributes[name]) for name in names)
        self.named = [
            (kind, _identities(attributes[kind]))
            for kind in ("_modules", "_parameters", "_buffers")
            if attributes[kind] or isinstance(module, CONTAINERS_OF_MODULES)
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
    """The state of a module and all below it that a recording depends on.

    watched: ids of objects in attributes whose content counts.
    """

    def __init__(self, module: nn.Module, watched: Container[int] = ()) -> None:
        freezer = Freezer(watched)
        self._states = [
            _ModuleState(m, path, freezer) for path, m in module.named_modules()
        ]
        self._packed = tuple(state.packed() for state in self._states)
        self._forwards = Forwards({state.kind for state in self._states})

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
        others = self._forwards.changed()
        for state in self._states if others else ():
            if others & {*state.kind.__mro__}:
                return state.path, None
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
            if known is not module and has_other_hooks(known):
                hooked = state.path
        return None, hooked
