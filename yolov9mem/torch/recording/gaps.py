# SPDX-License-Identifier: MIT
"""Stock calls that can be recomputed in backward, in pieces.

Stock PyTorch keeps what the backwards of these calls read, and a stage the results that it
reads. That can be dropped where the calls are recomputed from what is held of before them,
as torch.utils.checkpoint does: they must not do anything beside their results, nor change
what others have made. Where there are many, as in a transformer, they are cut into pieces,
of which one at a time is recomputed (Chen et al., arXiv:1604.06174).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from .gradient_paths import reached
from .ir import Effects, Recording, Ref, StockCall
from .refs import memory_of_result, results

WORTH = 1 / 4  # of the bytes that a piece hands out: less saved is not worth its time
MOST_PIECES = 16


@dataclass
class Gap:
    """Stock calls, one after the other, between two stages or after the last."""

    calls: range  # their numbers
    reads: list[Ref] = field(default_factory=list)  # made elsewhere
    learns: list[bool] = field(default_factory=list)  # by read: has it a gradient?
    makes: list[Ref] = field(default_factory=list)  # read by other calls, or results
    shares: list[Ref] = field(default_factory=list)  # of these: see light_gaps.py
    feeds: list[Ref] = field(default_factory=list)  # read by stages
    feed_bytes: dict[Ref, int] = field(default_factory=dict)  # that stages alone read
    read_bytes: dict[Ref, int] = field(default_factory=dict)  # of graphs' values
    saved_bytes: int = 0  # made on the way, and kept by autograd for backward
    outer_bytes: int = 0  # handed out, and held elsewhere
    fresh_bytes: int = 0  # of what it reads: nothing else would hold them
    most_bytes: int = 0  # made and not yet let go, while its calls run one by one
    draws: bool = False
    work: int = 0  # of products, up to what autograd keeps last
    feed_work: int = 0  # and from there to what it feeds

    def bytes_of(self, feeds: Collection[Ref]) -> int:
        """Not held for it, if of its feeds these are recomputed."""
        fed = sum(size for ref, size in self.feed_bytes.items() if ref in feeds)
        return self.saved_bytes + fed

    def gain(
        self, feeds: Collection[Ref], held: Collection[Ref], free: Collection[Ref]
    ) -> int:
        """Bytes that are not held then, if of its feeds these are recomputed. Of what it
        reads, ``held`` is there in any case, were it not ``free`` then."""
        saved = self.bytes_of(feeds) - self.fresh_bytes
        for ref, size in self.read_bytes.items():
            saved += size * ((ref in held) - (ref not in free))
        return saved


def gaps_of(done: Recording) -> dict[int, Gap]:
    """By the number of their first call. Without the end of what follows the last stage,
    which is needed first in backward."""
    held = held_by_others(done)
    runs = [Run(done, calls, held) for calls in runs_of(done) if calls]
    has_tail = bool(done.calls) and done.calls[-1].after == len(done.stages)
    end = len(done.calls) if has_tail else None
    found: dict[int, Gap] = {}
    for calls, most in _pieces(runs):
        gap = Gap(calls, most_bytes=most)
        fill_in(done, gap, held)
        if calls.stop != end and can_be_recomputed(done, gap):
            found[calls.start] = gap
    return found


def can_be_recomputed(done: Recording, gap: Gap) -> bool:
    """Does it have a backward, which finds what the gap reads as it was?"""
    carries = any(done.calls[number].carries for number in gap.calls)
    return carries and not _is_changed_after(done, gap)


def _is_changed_after(done: Recording, gap: Gap) -> bool:
    """Is something that it reads changed in place later?"""
    memory = {memory_of_result(done, ref) for ref in gap.reads} - {None}
    return any(
        not memory.isdisjoint(changed_by(call))
        or not set(gap.reads).isdisjoint(call.changed)
        for call in done.calls[gap.calls.stop :]
    )


def runs_of(done: Recording) -> Iterator[range]:
    """Calls after the same stage, of which each can be recomputed."""
    first = 0
    for number, call in enumerate(done.calls):
        if call.after != done.calls[first].after:
            yield range(first, number)
            first = number
        if call.effects.lasting or not _changes_its_own(done, first, call):
            yield range(first, number)
            first = number + 1
    yield range(first, len(done.calls))


def _changes_its_own(done: Recording, first: int, call: StockCall) -> bool:
    """Is what it changes in place of memory that was made from that call on?"""
    changed = changed_by(call)
    if not changed:
        return not call.changes
    not_own = {place for other in done.calls[:first] for place in other.memory}
    return not call.changes and changed.isdisjoint(not_own | {None})


def _read_after(done: Recording, calls: range) -> set[Ref]:
    """By other stock calls, or by the caller."""
    read = {ref for call in done.calls[calls.stop :] for ref in call.refs}
    return read.union(results(done))


def changed_by(call: StockCall) -> set[int | None]:
    """The memory that it changes in place."""
    made = zip(call.made, call.memory)
    return {memory for (kind, _), memory in made if kind == "argument"}


class Run:
    """Calls one after the other, and where to cut them."""

    def __init__(self, done: Recording, calls: range, held: set[Ref]) -> None:
        self.calls = calls
        inside = [done.calls[number] for number in calls]
        outside = _read_after(done, calls)
        first: dict[Any, int] = {}  # by memory: the place of the call that makes it
        last: dict[Any, int] = {}  # and after which it is not read any more
        size: dict[Any, int] = {}
        memory: dict[Ref, Any] = {}
        self.whole: set[int] = set()  # where a cut would part a change from its memory
        for place, call in enumerate(inside):
            for ref in call.refs:
                if ref in memory:
                    last[memory[ref]] = max(last[memory[ref]], place)
            for ref, where, count in made_of(call, calls[place]):
                memory[ref], size[where] = where, count
                first.setdefault(where, place)
                end = len(inside) if ref in outside else place
                last[where] = max(last.get(where, 0), end)
            for where in changed_by(call):
                self.whole.update(range(first[where] + 1, place + 1))
        kept = {where for ref, where in memory.items() if ref in held}
        saved = [call.effects.saved_bytes for call in inside]
        born = [0] * (len(inside) + 1)
        for where, place in first.items():
            saved[place] += size[where] if where in kept else 0
            if last[where] > place:
                born[place + 1] += size[where]
                born[min(last[where] + 1, len(inside))] -= size[where]
        # Bytes made before a place: those that are read after it, and those that autograd
        # keeps.
        self.live = list(accumulate(born))
        self.saved = [0, *accumulate(saved)]
        # That each call makes, what is gone when it returns too.
        self.made = [call.effects.inner_bytes for call in inside]
        for where, place in first.items():
            self.made[place] += size[where]

    @property
    def bytes_saved(self) -> int:
        """Of all of them."""
        return self.saved[-1]

    def cut(self, most: float) -> list[int]:
        """At which places, the ends too, of which autograd keeps about as much."""
        count = max(1, math.ceil(self.bytes_saved / max(most, 1)))
        each = self.bytes_saved / count
        places = [i for i in range(1, len(self.calls)) if i not in self.whole]
        ends = {0, len(self.calls)}
        for k in range(1, count):
            near = [i for i in places if abs(self.saved[i] - k * each) <= each / 2]
            if near:
                ends.add(min(near, key=lambda i: self.live[i]))
        return sorted(ends)

    def most(self, begin: int, end: int) -> int:
        """Bytes made of these places and not yet let go, at most."""
        places = range(begin, end)
        most = max(self.saved[i] + self.live[i] + self.made[i] for i in places)
        return most - self.saved[begin]

    def cost(self, ends: list[int]) -> tuple[int, int]:
        """Bytes held at these cuts, and most that autograd keeps of a piece."""
        held = sum(self.live[i] for i in ends[1:-1])
        return held, max(self.saved[b] - self.saved[a] for a, b in pairwise(ends))


def _pieces(runs: list[Run]) -> Iterator[tuple[range, int]]:
    """Of all runs: pieces of a size at which what is held between them and what autograd
    keeps of one are least together; and the most bytes of each."""
    most = max((run.bytes_saved for run in runs), default=0)

    def cost(k: int) -> int:
        costs = [run.cost(run.cut(most / k)) for run in runs]
        return sum(held for held, _ in costs) + max(piece for _, piece in costs)

    count = min(range(1, MOST_PIECES + 1), key=cost) if runs else 1
    for run in runs:
        for first, end in pairwise(run.cut(most / count)):
            yield run.calls[first:end], run.most(first, end)


def made_of(call: StockCall, number: int) -> Iterator[tuple[Ref, Any, int]]:
    """Its results, the memory of each and its bytes. What others have is there anyway, and
    of what a node became the memory is its own."""
    refs = call.results(number)
    sizes = call.bytes or [0] * len(refs)
    for ref, where, count in zip(refs, call.memory or refs, sizes):
        yield ref, where, 0 if where is None else count


def fill_in(done: Recording, gap: Gap, held: set[Ref]) -> None:
    """All but what its calls are and the most that they make. ``held``: by others."""
    calls = [done.calls[number] for number in gap.calls]
    memory: dict[Ref, Any] = {}  # of all that it makes
    size: dict[Any, int] = {}  # by memory
    for number, call in zip(gap.calls, calls):
        for ref, where, count in made_of(call, number):
            memory[ref], size[where] = where, count
    read = dict.fromkeys(ref for call in calls for ref in call.refs)
    gap.reads = [ref for ref in read if ref not in memory and ref.kind != "constant"]
    values = (ref for ref in gap.reads if ref.kind == "value")
    gap.read_bytes = {ref: done.nodes[ref.key].nbytes for ref in values}
    others = _read_after(done, gap.calls)
    sources = {ref for stage in done.stages for ref in stage.sources}
    gap.makes = [ref for ref in memory if ref in others]
    gap.feeds = [ref for ref in memory if ref in sources]
    learning = reached(zip(gap.calls, calls), gap.makes + gap.feeds)
    gap.learns = [ref in learning for ref in gap.reads]

    def sizes(refs: Iterable[Ref]) -> dict[Any, int]:
        return {memory[ref]: size[memory[ref]] for ref in refs}

    made_for_calls = sizes(gap.makes)
    alone = [ref for ref in gap.feeds if memory[ref] not in made_for_calls]
    gap.feed_bytes = {ref: size[memory[ref]] for ref in alone}
    outer = made_for_calls | sizes(gap.feeds)
    gap.outer_bytes = sum(outer.values())
    kept = sizes(ref for ref in memory if ref in held)
    gap.saved_bytes = sum(call.effects.saved_bytes for call in calls)
    gap.saved_bytes += sum(kept[where] for where in kept.keys() - outer.keys())
    gap.draws = any(call.effects.draws for call in calls)
    _fill_in_work(gap, [call.effects for call in calls])


def _fill_in_work(gap: Gap, calls: list[Effects]) -> None:
    """torch.utils.checkpoint stops when it has made the last of what autograd keeps: of
    what a call is given, or has made."""
    saving = [i for i, does in enumerate(calls) if does.saves or does.saved_bytes]
    last = saving[-1] if saving else -1
    for place, does in enumerate(calls):
        kinds = {kind for kind, _ in does.saves}
        makes_it = does.saved_bytes > 0 or "result" in kinds
        if place < last or (place == last and makes_it):
            gap.work += does.work
        else:
            gap.feed_work += does.work


def held_by_others(done: Recording, keeps: bool = True) -> set[Ref]:
    """What the caller has, and what autograd ``keeps`` for the backward of stock calls."""
    held = set(results(done))
    for number, call in reversed(list(enumerate(done.calls))):
        if keeps:
            held.update(kept_by(call, number))
        made = zip(call.results(number), call.memory)
        views = (ref for ref, memory in made if memory is None)
        if not held.isdisjoint(views):
            held.update(call.refs)
    return held


def kept_by(call: StockCall, number: int) -> Iterator[Ref]:
    """What of its arguments and results autograd keeps for its backward."""
    saves = call.effects.saves
    yield from (ref for i, ref in enumerate(call.refs) if ("argument", i) in saves)
    made = zip(call.results(number), call.made)
    yield from (ref for ref, place in made if place in saves)


def lasting_values(done: Recording) -> set[Ref]:
    """What the caller has, and what is changed in place: it can't be recomputed for those
    who have read it."""
    changed = {ref for call in done.calls for ref in call.changed}
    return held_by_others(done, keeps=False) | changed
