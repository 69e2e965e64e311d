# SPDX-License-Identifier: MIT
"""The Refs of a recording: found and replaced, all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .ir import Recording, Ref
from .trees import map_leaves


def replace_refs(done: Recording, function: Callable[[Any], Any]) -> None:
    """Everywhere but in nodes; ``function`` gets leaves that are no Ref, too."""
    for call in done.calls:
        call.args = map_leaves(function, call.args)
        call.kwargs = map_leaves(function, call.kwargs)
        call.refs = tuple(function(ref) for ref in call.refs)
        call.changes = tuple(function(ref) for ref in call.changes)
    done.out_leaves = [function(leaf) for leaf in done.out_leaves]
    done.writes = [write._replace(ref=function(write.ref)) for write in done.writes]


def renumber_calls(done: Recording, place: dict[int, int]) -> None:
    """Refs to the stock calls, by their old numbers."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Ref) and leaf.kind == "stock" and leaf.key[0] in place:
            return Ref("stock", (place[leaf.key[0]], leaf.key[1]))
        return leaf

    replace_refs(done, moved)
    for number, node in enumerate(done.nodes):
        if node.op == "input":
            done.nodes[number] = node._replace(attributes=(moved(node.attributes[0]),))


def results(done: Recording) -> list[Ref]:
    """What the module hands out."""
    leaves = [leaf for leaf in done.out_leaves if isinstance(leaf, Ref)]
    return leaves + [write.ref for write in done.writes]


def memory_of_result(done: Recording, ref: Ref) -> int | None:
    """A number for the memory of a stock call's result, if it is not shared beyond."""
    memory = done.calls[ref.key[0]].memory if ref.kind == "stock" else ()
    return memory[ref.key[1]] if memory else None
