# SPDX-License-Identifier: MIT
"""The stock calls between two stages, as what can be made again in backward.

Stock PyTorch keeps what the backwards of these calls read, and a stage the results that it
reads. That can be dropped where the calls are made again from what the stage before has
handed out, as torch.utils.checkpoint does: they must not do anything beside their results,
nor change what others have made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from .ir import Recording, Ref, StockCall
from .refs import results

WORTH = 1 / 4  # of the bytes that a gap hands out: less saved is not worth its time


@dataclass
class Gap:
    """Stock calls that follow one stage and come before the next."""

    calls: range  # their numbers
    reads: list[Ref] = field(default_factory=list)  # made elsewhere
    makes: list[Ref] = field(default_factory=list)  # read by other calls, or results
    feeds: list[Ref] = field(default_factory=list)  # read by stages
    feed_bytes: dict[Ref, int] = field(default_factory=dict)  # that stages alone read
    read_bytes: dict[Ref, int] = field(default_factory=dict)  # that else nothing holds
    inner_bytes: int = 0  # made on the way
    saved_bytes: int = 0  # of these: autograd keeps them for backward
    outer_bytes: int = 0  # handed out
    draws: bool = False
    multiplies: bool = False

    def is_worth_it(self, again: Collection[Ref]) -> bool:
        """Does it save enough, if of its feeds only these are made again?"""
        fed = sum(size for ref, size in self.feed_bytes.items() if ref in again)
        saved = self.saved_bytes + fed - sum(self.read_bytes.values())
        return saved >= max(1, WORTH * self.outer_bytes)


def gaps_of(done: Recording) -> dict[int, Gap]:
    """By the stage that they follow, those that can be made again."""
    found: dict[int, Gap] = {}
    for number, call in enumerate(done.calls):
        if 0 < call.after < len(done.stages):
            gap = found.setdefault(call.after, Gap(range(number, number)))
            gap.calls = range(gap.calls.start, number + 1)
    can = {after: gap for after, gap in found.items() if _can_be_made(done, gap)}
    held = _held(done)
    for gap in can.values():
        _fill_in(done, gap, held)
    return {after: gap for after, gap in can.items() if _is_unchanged(done, gap)}


def _can_be_made(done: Recording, gap: Gap) -> bool:
    calls = [done.calls[number] for number in gap.calls]
    carries = any(call.carries for call in calls)
    lasting = any(call.effects.lasting for call in calls)
    return carries and not lasting and _changes_its_own(done, gap, calls)


def _changes_its_own(done: Recording, gap: Gap, calls: list[StockCall]) -> bool:
    """Is what changes in place of memory that the gap has made?"""
    before = done.calls[: gap.calls.start]
    not_own = {place for call in before for place in call.memory} | {None}
    for call in calls:
        made = zip(call.made, call.memory)
        changed = {memory for (kind, _), memory in made if kind == "argument"}
        if call.changes or not changed.isdisjoint(not_own):
            return False
    return True


def _is_unchanged(done: Recording, gap: Gap) -> bool:
    """Is what the gap reads the same in backward? Calls that follow it may change that."""
    changed: set[Ref] = set()
    for call in done.calls[gap.calls.stop :]:
        changed.update(call.refs[i] for kind, i in call.made if kind == "argument")
        changed.update(call.changes)
    return changed.isdisjoint(gap.reads)


def _fill_in(done: Recording, gap: Gap, held: set[Ref]) -> None:
    calls = [done.calls[number] for number in gap.calls]
    memory: dict[Ref, Any] = {}  # of all that it makes
    size: dict[Any, int] = {}  # by memory
    for number, call in zip(gap.calls, calls):
        made = [Ref("stock", (number, leaf)) for leaf in range(len(call.made))]
        places = call.memory or made  # of what a node became it is the result's own
        memory |= dict(zip(made, places))
        size |= dict(zip(places, call.bytes))
    size[None] = 0  # of others, which is there anyway
    read = dict.fromkeys(ref for call in calls for ref in call.refs)
    gap.reads = [ref for ref in read if ref not in memory and ref.kind != "constant"]
    values = (ref for ref in gap.reads if ref.kind == "value" and ref not in held)
    gap.read_bytes = {ref: done.nodes[ref.key].nbytes for ref in values}
    others = {ref for call in done.calls[gap.calls.stop :] for ref in call.refs}
    others.update(results(done))
    sources = {ref for stage in done.stages for ref in stage.sources}
    gap.makes = [ref for ref in memory if ref in others]
    gap.feeds = [ref for ref in memory if ref in sources]

    def sizes(refs: Iterable[Ref]) -> dict[Any, int]:
        return {memory[ref]: size.get(memory[ref], 0) for ref in refs}

    made_for_calls = sizes(gap.makes)
    alone = [ref for ref in gap.feeds if memory[ref] not in made_for_calls]
    gap.feed_bytes = {ref: size.get(memory[ref], 0) for ref in alone}
    outer = made_for_calls | sizes(gap.feeds)
    gap.outer_bytes = sum(outer.values())
    all_made = sum(size.values()) + sum(call.effects.inner_bytes for call in calls)
    gap.inner_bytes = all_made - gap.outer_bytes
    kept = sizes(ref for ref in memory if ref in held)
    gap.saved_bytes = sum(call.effects.saved_bytes for call in calls)
    gap.saved_bytes += sum(kept[place] for place in kept.keys() - outer.keys())
    gap.draws = any(call.effects.draws for call in calls)
    gap.multiplies = any(call.effects.multiplies for call in calls)


def _held(done: Recording) -> set[Ref]:
    """What autograd keeps for the backward of stock calls, and what the caller has."""
    held = set(results(done))
    for number, call in reversed(list(enumerate(done.calls))):
        saves = call.effects.saves
        held.update(ref for i, ref in enumerate(call.refs) if ("argument", i) in saves)
        made = [Ref("stock", (number, leaf)) for leaf in range(len(call.made))]
        held.update(ref for ref, place in zip(made, call.made) if place in saves)
        views = (ref for ref, memory in zip(made, call.memory) if memory is None)
        if not held.isdisjoint(views):
            held.update(call.refs)
    return held
