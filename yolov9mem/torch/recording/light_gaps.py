# SPDX-License-Identifier: MIT
"""Gaps without the products that take long: norms, activations and copies between them.

A gap with large products is not worth its time where convolutions are not run again either.
What stands between its products is: `F.linear` keeps the result of a layer norm or of GELU
for its own backward, which is recomputed from what these have read. Such a result is
*shared*: only stock calls have it, and autograd saves it for them as a promise to recompute
it (running/recompute.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .effects import is_cheap
from .gaps import (
    Gap,
    Run,
    can_be_recomputed,
    changed_by,
    fill_in,
    held_by_others,
    made_of,
    runs_of,
)
from .ir import Recording, Ref, StockCall
from .refs import results

MOST_CALLS = 64  # among which the best are searched: the time grows with the square


@dataclass
class _Memory:
    """What stock calls make, by memory."""

    size: int
    born: int  # the call that makes it
    last: int  # call that has to make it again with it: it reads it and is light
    is_bound: bool  # others than stock calls have it, or no gradient flows to it
    is_kept: bool = False  # by stock PyTorch's autograd


class _Best(NamedTuple):
    """Of calls one after the other, those that save most."""

    calls: range
    gain: int
    released: int  # bytes that are not held any more
    fresh: int  # bytes that are held for them alone


@dataclass
class _Memories:
    """All of a recording."""

    done: Recording
    light: set[int]  # calls that can be made again in little time
    held: set[Ref]  # in stock PyTorch
    of: dict[Ref, Any] = field(default_factory=dict)
    known: dict[Any, _Memory] = field(default_factory=dict)
    ends: dict[int, list[_Memory]] = field(default_factory=dict)  # by their last call

    def __post_init__(self) -> None:
        done = self.done
        for number, call in enumerate(done.calls):
            for ref in call.refs:
                self._read(ref, number)
            self._make(call, number)
        bound = [*results(done), *(ref for s in done.stages for ref in s.sources)]
        for ref in bound:
            if ref in self.of:
                self.known[self.of[ref]].is_bound = True
        for ref in self.held:
            if ref in self.of:
                self.known[self.of[ref]].is_kept = True
        for memory in self.known.values():
            self.ends.setdefault(memory.last, []).append(memory)

    def _read(self, ref: Ref, number: int) -> None:
        if ref in self.of and number in self.light:
            self.known[self.of[ref]].last = number

    def _make(self, call: StockCall, number: int) -> None:
        for ref, where, size in made_of(call, number):
            if where is None:  # a view of what others have
                continue
            self.of[ref] = where
            memory = self.known.get(where)
            if memory is None:
                self.known[where] = _Memory(size, number, number, not call.carries)
            elif where in changed_by(call):
                memory.last = number

    def read_by(self, call: StockCall) -> Iterator[_Memory]:
        """Of stock calls."""
        return (self.known[self.of[ref]] for ref in call.refs if ref in self.of)

    def released(self, calls: range, first: int) -> Iterator[_Memory]:
        """What is whole with these calls, made from the ``first`` on, and held by nobody
        if it is made again."""
        for number in calls:
            for memory in self.ends.get(number, ()):
                free = memory.is_kept and not memory.is_bound
                if free and memory.born >= first:
                    yield memory


def is_light(call: StockCall) -> bool:
    """Do its products, if it has any, take less time than what it writes?"""
    return is_cheap(call.effects.work, sum(call.bytes))


def light_gaps_of(done: Recording) -> dict[int, Gap]:
    """By the number of their first call. Without the last after all stages, which is
    needed first in backward."""
    held = held_by_others(done)
    runs = [calls for calls in runs_of(done) if calls]
    every = (number for calls in runs for number in calls)
    light = {number for number in every if is_light(done.calls[number])}
    memories = _Memories(done, light, held)
    found: dict[int, Gap] = {}
    for calls in runs:
        run = Run(done, calls, held)
        for cheap in _light(calls, light):
            for best in _bests(memories, run, cheap):
                gap = _gap(memories, run, best)
                if can_be_recomputed(done, gap):
                    found[gap.calls.start] = gap
    last = max(found, default=0)
    if found and done.calls[last].after == len(done.stages):
        del found[last]
    return found


def _light(calls: range, light: set[int]) -> Iterator[range]:
    """Those alone of the calls, at most so many at once."""
    first = calls.start
    for number in calls:
        if number not in light:
            yield range(first, number)
            first = number + 1
        elif number - first == MOST_CALLS:
            yield range(first, number)
            first = number
    yield range(first, calls.stop)


def _bests(memories: _Memories, run: Run, calls: range) -> Iterator[_Best]:
    """The calls that save most, and those of what is left before and after them."""
    best = _best(memories, run, calls)
    if best is not None:
        yield from _bests(memories, run, range(calls.start, best.calls.start))
        yield best
        yield from _bests(memories, run, range(best.calls.stop, calls.stop))


def _best(memories: _Memories, run: Run, calls: range) -> _Best | None:
    """The fewest of those that save most; none, if all hold more than they save."""
    every = memories.done.calls
    best: _Best | None = None
    for first in calls:
        if first - run.calls.start in run.whole:
            continue
        released = fresh = 0
        seen: set[int] = set()
        for number in range(first, calls.stop):
            call = every[number]
            for memory in memories.read_by(call):
                new = memory.born < first and not memory.is_kept
                if new and id(memory) not in seen:
                    seen.add(id(memory))
                    fresh += memory.size
            released += call.effects.saved_bytes
            whole = memories.released(range(number, number + 1), first)
            released += sum(memory.size for memory in whole)
            gain = released - fresh
            can_end = number + 1 - run.calls.start not in run.whole
            least = 0 if best is None else best.gain
            is_shorter = best is not None and number + 1 - first < len(best.calls)
            if can_end and (gain > least or (gain == least and is_shorter)):
                best = _Best(range(first, number + 1), gain, released, fresh)
    return best


def _gap(memories: _Memories, run: Run, best: _Best) -> Gap:
    first = run.calls.start
    most = run.most(best.calls.start - first, best.calls.stop - first)
    gap = Gap(best.calls, most_bytes=most)
    fill_in(memories.done, gap, memories.held)
    whole = memories.released(best.calls, best.calls.start)
    shared = {id(memory) for memory in whole}
    gap.shares = [
        ref
        for ref in gap.makes
        if ref in memories.of and id(memories.known[memories.of[ref]]) in shared
    ]
    handed = {memories.of[ref] for ref in gap.shares}
    gap.outer_bytes -= sum(memories.known[where].size for where in handed)
    gap.saved_bytes, gap.fresh_bytes = best.released, best.fresh
    return gap
