# SPDX-License-Identifier: MIT
"""The end of a recording: which tail calls are needed, which values leave the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import tree_map

from .ir import Recording, Ref


def keep_needed_tail(done: Recording) -> None:
    """Drops the tail calls that no result needs and renumbers the others."""
    needed: set[int] = set()
    results = [*done.out_leaves, *(write.ref for write in done.writes)]
    pending = [ref.key[0] for ref in results if _is_tail(ref)]
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            pending += [r.key[0] for r in done.tail[number].refs if _is_tail(r)]
    place = {old: new for new, old in enumerate(sorted(needed))}

    def moved(leaf: Any) -> Any:
        return (
            Ref("tail", (place[leaf.key[0]], leaf.key[1])) if _is_tail(leaf) else leaf
        )

    done.tail = [done.tail[old] for old in sorted(needed)]
    for call in done.tail:
        call.args = _map_refs(moved, call.args)
        call.kwargs = _map_refs(moved, call.kwargs)
        call.refs = tuple(moved(ref) for ref in call.refs)
    done.out_leaves = [moved(leaf) for leaf in done.out_leaves]
    done.writes = [write._replace(ref=moved(write.ref)) for write in done.writes]


def number_outputs(done: Recording) -> None:
    """Lists the values that leave the node; an input that leaves bypasses it."""
    refs = [ref for call in done.tail for ref in call.refs]
    refs += [leaf for leaf in done.out_leaves if isinstance(leaf, Ref)]
    refs += [write.ref for write in done.writes]
    for ref in refs:
        if ref.kind == "value" and ref.key not in done.outputs:
            if done.nodes[ref.key].op != "input":
                done.outputs.append(ref.key)


def _is_tail(leaf: Any) -> bool:
    return isinstance(leaf, Ref) and leaf.kind == "tail"


def _map_refs(function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(function, tree, is_leaf=lambda leaf: isinstance(leaf, Ref))
