# SPDX-License-Identifier: MIT
"""Copies of values: made only where somebody could tell them from the original.

In a graph a copy is the value itself. For whoever else reads it, it is a stock call, until
the recording ends: then it is known which copies are handed out, and who reads the others
reads the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .effects import memory_of
from .ir import Recording, Ref
from .refs import replace_refs


class Copies:
    """The copies of values in one recording."""

    def __init__(self) -> None:
        # By number of the value and by memory: the original's first, then the copies'.
        self._known: dict[int, dict[int, Ref]] = {}

    def __contains__(self, value: int | None) -> bool:
        """Has ``value`` several tensors?"""
        return value in self._known

    def add(self, value: int, original: Tensor, made: Tensor, call: Ref) -> None:
        """``made`` is a copy; ``call`` is the stock call's result."""
        known = self._known.setdefault(
            value, {memory_of(original): Ref("value", value)}
        )
        known[memory_of(made)] = call

    def ref(self, tensor: Tensor, ref: Ref) -> Ref:
        """What a stock call reads where it is given ``tensor``, which is ``ref``."""
        if ref.kind != "value" or ref.key not in self._known:
            return ref
        return self._known[ref.key].get(memory_of(tensor), ref)

    def drop_needless(self, done: Recording, handed_out: list[Tensor]) -> None:
        """Of the tensors of one value, one that the caller has can be the value itself.

        ``handed_out``: what the caller has afterwards, the arguments among it.
        """
        shown = {memory_of(tensor) for tensor in handed_out}
        needless: dict[Any, Ref] = {}
        for value, known in self._known.items():
            told_apart = [memory for memory in known if memory in shown][1:]
            for memory, ref in known.items():
                if memory not in told_apart:
                    needless[ref] = Ref("value", value)
        if needless:
            replace_refs(done, _among(needless))


def _among(others: dict[Any, Ref]) -> Callable[[Any], Any]:
    return lambda leaf: others.get(leaf, leaf) if isinstance(leaf, Ref) else leaf
