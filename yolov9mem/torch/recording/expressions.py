# SPDX-License-Identifier: MIT
"""How small tensors of a recording were made of the module's own: by views, sums and
products that are stock calls so far."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from .calls import only_adds_sides
from .ir import Ref, StockCall

if TYPE_CHECKING:
    from .recorder import Recorder

VIEWS = ("view", "reshape", "unsqueeze", "__getitem__")


class Expressions:
    """Those of one recording."""

    def __init__(self, rec: Recorder) -> None:
        self._rec = rec

    def _call(self, leaf: Any) -> StockCall | None:
        is_result = isinstance(leaf, Ref) and leaf.kind == "stock"
        return self._rec.recording.calls[leaf.key[0]] if is_result else None

    def vector(self, leaf: Any) -> Any:
        """What ``leaf`` is a view of that only adds or drops sides of 1."""
        call = self._call(leaf)
        while call is not None and call.name in VIEWS:
            if call.name == "__getitem__" and not only_adds_sides(call.args[1]):
                break
            leaf = call.args[0]
            call = self._call(leaf)
        return leaf

    def path(self, leaf: Any) -> str | None:
        """Of the module's tensor that it is."""
        found = self.vector(leaf)
        is_path = isinstance(found, Ref) and found.kind == "path"
        return str(found.key) if is_path else None

    def operands(self, leaf: Any, names: Collection[str], count: int = 2) -> Any:
        """Of the call of such a name that made it, or None."""
        call = self._call(self.vector(leaf))
        if call is None or call.name not in names or call.kwargs:
            return None
        return call.args if len(call.args) == count else None

    def pair(self, leaf: Any, names: Collection[str]) -> list[tuple[Any, Any]]:
        """Both orders of a call's operands; none if it is no such call."""
        found = self.operands(leaf, names)
        return [] if found is None else [tuple(found), tuple(reversed(found))]
