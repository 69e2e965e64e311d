# SPDX-License-Identifier: MIT
"""How a module is made to run through the core, leaving no trace in it.

The class's ``forward`` is patched. It looks the instance up in a table with weak
references; copies, unpickled modules and other instances are not in the table and run
as before. Nothing of ours is in a module's ``__dict__``, but where a ``forward`` that
the instance has of its own holds what the class had: it is given ours to call.

What is recorded is what the class had before. A ``forward`` that somebody puts around
ours afterwards, on the class or the instance, is called at every forward. Where
checkpoint() is called again and cannot tell whether such a one is around ours, another
one of ours is put around it: of two in a class the outer one acts.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ..recording.closures import redirect
from ..recording.forwards import MISSING, Patch, patch_in, patch_of, patch_within
from ..recording.isolation import is_recording


class Runner(Protocol):
    """What runs an instance instead of its class's stock forward."""

    cls: type

    def run(
        self, module: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The result of forward."""

    def replica(self) -> Runner:
        """The runner of a DataParallel replica."""


class _Acting(threading.local):
    """By the id of a module: whose function runs it in this thread. Another one that is
    come to from there is beneath it, or of a base of its class."""

    def __init__(self) -> None:
        self.patches: dict[int, Patch] = {}


_lock = threading.RLock()
_runners: dict[int, tuple[weakref.ref[nn.Module], Runner | None]] = {}  # None: stock
_automatic: dict[type, Callable[[nn.Module], Runner]] = {}
_acting = _Acting()


def runner_of(module: nn.Module) -> Runner | None:
    """The runner of this very instance, or None."""
    found = _runners.get(id(module))
    return found[1] if found is not None and found[0]() is module else None


def register(module: nn.Module, runner: Runner | None) -> None:
    """From now on ``runner`` runs the module; None: stock, whatever its class does."""
    key = id(module)

    def forget(reference: Any, runners: dict[int, Any] = _runners) -> None:
        if runners.get(key, (None,))[0] is reference:
            del runners[key]

    with _lock:
        _patch(type(module))
        _call_ours(module)
        _runners[key] = (weakref.ref(module, forget), runner)


def unregister(module: nn.Module) -> None:
    """The module runs stock again; the class is restored after its last instance."""
    with _lock:
        cls = type(module)
        if cls in _automatic:
            register(module, None)
        elif runner_of(module) is not None:
            del _runners[id(module)]
            left = list(_runners.values())  # the collector may take modules meanwhile
            if not any(other and other.cls is cls for _, other in left):
                _restore(cls)


def make_automatic(cls: type, make: Callable[[nn.Module], Runner]) -> None:
    """Every instance of exactly ``cls`` gets a runner at its first training forward."""
    with _lock:
        _automatic[cls] = make
        _patch(cls)


def _run(patch: Patch, module: nn.Module, args: Any, kwargs: Any) -> Any:
    cls, key, acting = patch.cls, id(module), _acting.patches
    stock = patch.stock(type(module))
    outer = acting.get(key)
    if outer is not None and outer is not patch:
        return stock(module, *args, **kwargs)
    runner = runner_of(module)
    if runner is None and type(module) is cls and cls in _automatic:
        if module.training and key not in _runners and not is_recording():
            runner = _automatic[cls](module)
    if runner is None:
        return stock(module, *args, **kwargs)
    acting[key] = patch
    try:
        return runner.run(module, stock, args, kwargs)
    finally:
        if outer is None:
            del acting[key]


def _forward(patch: Patch) -> Callable[..., Any]:
    """What stands for the class's forward."""
    known = patch.stock(patch.cls)
    stock = known if patch.beneath is not MISSING else _inherited(patch.cls)
    run, is_compiling = functools.partial(_run, patch), torch.compiler.is_compiling

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if is_compiling():  # first: torch.compile is to read no more of this
            return stock(self, *args, **kwargs)
        return run(self, args, kwargs)

    # torch.jit.script compiles the stock source and looks names up in these globals.
    here = types.FunctionType(
        forward.__code__, getattr(known, "__globals__", globals()), "forward", None,
        forward.__closure__,
    )  # fmt: skip
    return functools.wraps(known)(here)


def _inherited(cls: type) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super(cls, self).forward(*args, **kwargs)  # type: ignore[arg-type]

    return forward


def _replicate(patch: Patch) -> Callable[..., Any]:
    """What stands for the class's way of making a replica."""

    @functools.wraps(patch.stock(patch.cls))
    def replicate(self: nn.Module) -> nn.Module:
        replica: nn.Module = patch.stock(type(self))(self)
        runner = runner_of(self)
        if runner is not None:
            register(replica, runner.replica())
        return replica

    return replicate


_MAKERS = {"forward": _forward, "_replicate_for_data_parallel": _replicate}


def _patch(cls: type) -> None:
    for name, make in _MAKERS.items():
        if patch_within(cls, name) is None:
            patch = Patch(cls, name)
            patch.put(make(patch))


def _call_ours(module: nn.Module) -> None:
    """A forward that the instance has around what its class had calls ours from now on."""
    kind = type(module)
    patch = patch_within(kind, "forward")
    if patch is not None and patch.ours is not None:
        stock = patch.stock(kind)
        while (beneath := patch_of(stock)) is not None:
            stock = beneath.stock(kind)
        redirect(module, stock, patch.ours)


def _restore(cls: type) -> None:
    for name in _MAKERS:
        while (patch := patch_in(cls, name)) is not None:
            patch.take_away()
