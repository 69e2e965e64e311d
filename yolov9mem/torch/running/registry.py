# SPDX-License-Identifier: MIT
"""How a module is made to run through the core, leaving no trace in it.

The class's ``forward`` is patched once. It looks the instance up in a table with weak
references; copies, unpickled modules and other instances are not in the table and run
as before. Nothing of ours is in a module's ``__dict__``. A ``forward`` that somebody gives
the class afterwards runs in stock PyTorch until the next checkpoint(), which is of it, and
stays when the last instance is released.
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

    def forget(self) -> None:
        """The class has another stock forward from now on."""
        return


class _Patch:
    """What stands in a class for its own methods; MISSING: it inherits them."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.own = {name: cls.__dict__.get(name, MISSING) for name in METHODS}
        self.ours: dict[str, Any] = {}

    def put(self, name: str, function: Any) -> None:
        self.ours[name] = function
        setattr(self.cls, name, function)

    def runs(self) -> bool:
        """Is the class's forward ours, or the launcher's, which steps aside for a
        recording? What another one does around ours would be recorded with it."""
        found = self.cls.__dict__.get("forward")
        ours = self.ours["forward"]
        return found is ours or getattr(found, "yolov9mem_launch", None) is ours

    def take_away(self) -> None:
        """What somebody has put in the place of ours stays."""
        for name, own in self.own.items():
            if self.cls.__dict__.get(name) is not self.ours[name]:
                continue
            if own is MISSING:
                delattr(self.cls, name)
            else:
                setattr(self.cls, name, own)


_lock = threading.RLock()
_runners: dict[int, tuple[weakref.ref[nn.Module], Runner | None]] = {}  # None: stock
_patched: dict[type, _Patch] = {}
_automatic: dict[type, Callable[[nn.Module], Runner]] = {}
MISSING = object()
METHODS = ("forward", "_replicate_for_data_parallel")


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


def _run(patch: _Patch, stock: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    cls = patch.cls
    if not patch.runs():  # somebody's forward calls it
        return stock(module, *args, **kwargs)
    runner = runner_of(module)
    if runner is None and type(module) is cls and cls in _automatic:
        if module.training and id(module) not in _runners and not is_recording():
            runner = _automatic[cls](module)
    if runner is None or runner.cls is not cls:
        return stock(module, *args, **kwargs)
    return runner.run(module, stock, args, kwargs)


def _replicate(cls: type, stock: Any, module: nn.Module) -> nn.Module:
    replica: nn.Module = stock(module)
    runner = runner_of(module)
    if runner is not None and runner.cls is cls:
        register(replica, runner.replica())
    return replica


def _patch(cls: type) -> None:
    if cls in _patched:
        if _patched[cls].runs():
            return
        _restore(cls)
        for _, runner in list(_runners.values()):
            if runner is not None and runner.cls is cls:
                runner.forget()
    patch = _patched[cls] = _Patch(cls)
    stock = cls.forward
    run = functools.partial(_run, patch, stock)
    is_compiling = torch.compiler.is_compiling

    def forward(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if is_compiling():
            return stock(self, *args, **kwargs)
        return run(self, args, kwargs)

    # torch.jit.script compiles the stock source and looks names up in these globals.
    here = types.FunctionType(
        forward.__code__, getattr(stock, "__globals__", globals()), "forward", None,
        forward.__closure__,
    )  # fmt: skip
    patch.put("forward", functools.wraps(stock)(here))
    stock_replicate = cls._replicate_for_data_parallel

    @functools.wraps(stock_replicate)
    def replicate(self: nn.Module) -> nn.Module:
        return _replicate(cls, stock_replicate, self)

    patch.put("_replicate_for_data_parallel", replicate)


def _restore(cls: type) -> None:
    patch = _patched.pop(cls, None)
    if patch is not None:
        patch.take_away()
