# SPDX-License-Identifier: MIT
"""Methods of ours that stand in classes, and what the classes had there.

running/registry.py puts them there; a recording, and what is compared with it
afterwards, looks through them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

MISSING = object()
_MARK = "yolov9mem_patch"  # functools.wraps() copies it to a wrapper: see patch_of
_SEEN_BY_ALL = (nn.Module, object)  # bases whose forward nobody changes


class Patch:
    """A method of ours in ``cls``.

    Attributes:
        beneath: what the class itself had there, MISSING: it inherits.
        ours: the function, from `put` on.
    """

    def __init__(self, cls: type, name: str) -> None:
        self.cls, self.name = cls, name
        self.beneath = cls.__dict__.get(name, MISSING)
        self._stock: Callable[..., Any] = getattr(cls, name)
        self.ours: Callable[..., Any] | None = None

    def put(self, ours: Callable[..., Any]) -> None:
        """The class has this function from now on."""
        self.ours = ours
        setattr(ours, _MARK, self)
        for cell in _cells_of_itself(self.beneath):
            cell.cell_contents = ours
        setattr(self.cls, self.name, ours)

    def take_away(self) -> None:
        """The class has what is beneath again."""
        for cell in _cells_of_itself(self.beneath, self.ours):
            cell.cell_contents = self.beneath
        if self.beneath is MISSING:
            delattr(self.cls, self.name)
        else:
            setattr(self.cls, self.name, self.beneath)

    def stock(self, kind: type) -> Callable[..., Any]:
        """What an instance of ``kind``, the class or one below it, runs beneath ours: what
        its bases have now where the class inherits."""
        if self.beneath is not MISSING:
            return self._stock
        # Somebody may have given our function to a class that is none below it.
        kind = kind if issubclass(kind, self.cls) else self.cls
        found: Callable[..., Any] = getattr(super(self.cls, kind), self.name)
        return found


def _cells_of_itself(function: Any, known_as: Any = None) -> list[Any]:
    """Of the closure of what ours lie around: those by which it knows what the class has.

    Wrappers ask that whether they are the outermost: ``type(self).forward is wrapper``, as
    transformers' layers do before they checkpoint themselves.
    """
    known_as = known_as or function
    while (patch := patch_of(function)) is not None:
        function = patch.beneath
    cells = getattr(function, "__closure__", None) or ()
    return [cell for cell in cells if _content(cell) is known_as]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def patch_of(function: Any) -> Patch | None:
    """The patch that has put this very function somewhere, or None."""
    patch: Patch | None = getattr(function, _MARK, None)
    return patch if patch is not None and patch.ours is function else None


def patch_in(cls: type, name: str) -> Patch | None:
    """What the class has under the name is ours, made for it."""
    return _made_for(cls, cls.__dict__.get(name))


def patch_within(cls: type, name: str) -> Patch | None:
    """As `patch_in`; or what the class has says (``__wrapped__``, as functools.wraps()
    sets it) that it wraps ours."""
    found = inspect.unwrap(
        cls.__dict__.get(name),  # type: ignore[arg-type]
        stop=lambda function: _made_for(cls, function) is not None,
    )
    return _made_for(cls, found)


def _made_for(cls: type, function: Any) -> Patch | None:
    patch = patch_of(function)
    return patch if patch is not None and patch.cls is cls else None


def own_forward(cls: type) -> Any:
    """The forward of the class itself as it would be without us, or MISSING."""
    own = cls.__dict__.get("forward", MISSING)
    while (patch := _made_for(cls, own)) is not None:
        own = patch.beneath
    return own


def forward_of(cls: type) -> Any:
    """The forward that the class has or inherits, as it would be without us."""
    owns = (own_forward(base) for base in cls.__mro__)
    return next(own for own in owns if own is not MISSING)


class Forwards:
    """The forwards of classes and their bases, to be compared later."""

    def __init__(self, classes: set[type]) -> None:
        bases = {base for cls in classes for base in cls.__mro__} - {*_SEEN_BY_ALL}
        self._found = [
            (base, base.__dict__.get("forward"), own_forward(base)) for base in bases
        ]

    def changed(self) -> set[type]:
        """Classes that have another forward now; ours alone makes no other."""
        return {
            base
            for base, found, own in self._found
            if base.__dict__.get("forward") is not found
            and own_forward(base) is not own
        }
