# SPDX-License-Identifier: MIT
"""Attributes replaced while a launch is on, and a watch on modules being imported."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

# Nothing in them is a trainer, and there are many of them.
SKIPPED = {"torch", "numpy", "scipy", "cv2", "matplotlib", "pandas", "yolov9mem", "PIL"}
MISSING = object()


class Patches:
    """Replaced attributes, in order, and how to put them back."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """owner.name = value until `undo`."""
        own = owner.__dict__.get(name, MISSING)
        self._done.append((owner, name, own))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Everything as it was."""
        while self._done:
            owner, name, own = self._done.pop()
            if own is MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)


class ImportWatch(MetaPathFinder):
    """Calls `seen(module)` after each module has run, before its importer reads it."""

    def __init__(self, seen: Callable[[types.ModuleType], None]) -> None:
        self._seen = seen
        self._busy = threading.local()

    def start(self) -> None:
        """Also shows the modules that are there already."""
        sys.meta_path.insert(0, self)
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and not _is_skipped(name):
                self._seen(module)

    def stop(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        """What the other finders find, with a loader that tells us when it is done."""
        if _is_skipped(fullname) or getattr(self._busy, "on", False):
            return None
        self._busy.on = True
        try:
            spec = self._found(fullname, path, target)
        finally:
            self._busy.on = False
        if spec is not None and spec.loader is not None:
            self._tell(spec.loader)
        return spec

    def _found(self, name: str, path: Any, target: Any) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None

    def _tell(self, loader: Any) -> None:
        run = getattr(loader, "exec_module", None)
        run = getattr(run, "stock", run)  # found before, but not run
        if run is None or isinstance(loader, type):  # built-in and frozen modules
            return

        def exec_module(module: types.ModuleType) -> None:
            # The importer of an archive is the loader of all its modules.
            vars(loader).pop("exec_module", None)
            run(module)
            self._seen(module)

        exec_module.stock = run
        try:
            loader.exec_module = exec_module
        except AttributeError:
            return


def _is_skipped(name: str) -> bool:
    top = name.partition(".")[0]
    return top in SKIPPED or top in sys.stdlib_module_names
