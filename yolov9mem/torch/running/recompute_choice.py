# SPDX-License-Identifier: MIT
"""Which gaps are recomputed in backward, and which outputs of stages for stock calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

from yolov9mem._keep import Keep

from ..recording.effects import SHORT_SUM, is_cheap
from ..recording.gaps import WORTH, Gap, held_by_others, kept_by, lasting_values
from ..recording.ir import Recording, Ref
from ..versions import TELLS_OF_HOOKS
from .planned import TorchPlan

# Times as many are worth it for what has MANY times the bytes of all that is made with it,
# as attention's weights: nn.MultiheadAttention multiplies twice, and its input before.
FOR_MANY, MANY = 4, 8


class Recompute(NamedTuple):
    """What of one forward is recomputed in backward."""

    gaps: dict[int, Gap]  # by their first call
    feeds: set[Ref]  # inputs of graphs that are not held
    outputs: set[Ref]  # values of graphs that are not held for stock calls

    @property
    def saved_bytes(self) -> int:
        """That autograd would keep for the calls."""
        return sum(gap.saved_bytes for gap in self.gaps.values())

    @property
    def most_bytes(self) -> int:
        """Of one gap, while its backward runs."""
        gaps = self.gaps.values()
        return max((_alive_bytes(gap, self.outputs) for gap in gaps), default=0)

    def left_bytes(self, recording: Recording) -> int:
        """That autograd keeps for the calls of gaps which are not recomputed."""
        left = (gap for n, gap in recording.gaps.items() if self.gaps.get(n) is not gap)
        return sum(max(0, gap.saved_bytes - self._saved_in(gap.calls)) for gap in left)

    def _saved_in(self, calls: range) -> int:
        """By light gaps that begin there."""
        gaps = self.gaps.values()
        return sum(gap.saved_bytes for gap in gaps if gap.calls.start in calls)

    def read_bytes(self, others: set[Ref]) -> int:
        """Held for the gaps, and neither for these ``others`` nor recomputed."""
        gaps = self.gaps.values()
        read = {ref: size for gap in gaps for ref, size in gap.read_bytes.items()}
        free = others | self.outputs
        values = sum(size for ref, size in read.items() if ref not in free)
        return values + sum(gap.fresh_bytes for gap in gaps)


def choose_recompute(
    recording: Recording, keep: Keep, plans: Sequence[TorchPlan]
) -> Recompute:
    """With these plans of its graphs, the first so many: with "min" every gap that saves
    memory is recomputed, with "all" none, else those that are cheap."""
    if keep.rule == "all":
        return Recompute({}, set(), set())
    graphs = _Graphs(recording, keep, plans)
    gaps = graphs.worth_it(recording.gaps)
    light = graphs.worth_it(recording.light_gaps) if TELLS_OF_HOOKS else {}
    if keep.rule != "min":
        gaps = {
            n: gap
            for n, gap in gaps.items()
            if graphs.is_cheap(gap) and graphs.saves_more_than(gap, light)
        }
    taken = {number for gap in gaps.values() for number in gap.calls}
    gaps |= {n: gap for n, gap in light.items() if taken.isdisjoint(gap.calls)}
    fed = {ref for gap in gaps.values() for ref in graphs.feeds(gap)}
    read = {ref for gap in gaps.values() for ref in gap.read_bytes}
    return Recompute(gaps, fed, graphs.free & (graphs.kept | read))


class _Graphs:
    """What graphs with these plans hold of what stock calls make and read."""

    def __init__(
        self, recording: Recording, keep: Keep, plans: Sequence[TorchPlan]
    ) -> None:
        self._keep = keep
        own: set[Ref] = set()
        read: set[Ref] = set()
        outputs: set[Ref] = set()
        for plan in plans:
            part = plan.program.part
            own.update(compress(part.sources, plan.own))
            read.update(compress(part.sources, plan.read_back))
            values = [value for stage in part.stages for value in stage.values]
            if TELLS_OF_HOOKS:
                refs = (Ref("value", value) for value in values)
                outputs.update(compress(refs, plan.recompute_needs))
        sources = [ref for part in recording.parts for ref in part.sources]
        # What is recomputed is handed out once: not to two graphs.
        own -= {ref for ref, count in Counter(sources).items() if count > 1}
        planned = {ref for plan in plans for ref in plan.program.part.sources}
        inputs = (read | (set(sources) - planned)) - own
        self._own = own
        self.kept = held_by_others(recording)
        self.free = outputs - lasting_values(recording) - inputs
        # A view of a value may be a copy, for values are channels_last: of what is kept in
        # views, the value is free for gaps alone.
        calls = enumerate(recording.calls)
        plainly = {ref for number, call in calls for ref in kept_by(call, number)}
        in_views = self.kept - plainly
        self._held = (self.kept | inputs) - (self.free - in_views)

    def feeds(self, gap: Gap) -> set[Ref]:
        """Which are recomputed of those that graphs alone hold: all, if they are cheap."""
        feeds = self._own.intersection(gap.feeds)
        fed = gap.bytes_of(feeds) - gap.saved_bytes
        is_min = self._keep.rule == "min"
        return feeds if is_min or is_cheap(gap.feed_work, fed) else set()

    def worth_it(self, gaps: dict[int, Gap]) -> dict[int, Gap]:
        """Those that save enough."""
        return {
            first: gap
            for first, gap in gaps.items()
            if self._gain(gap) >= max(1, WORTH * gap.outer_bytes)
        }

    def saves_more_than(self, gap: Gap, light: dict[int, Gap]) -> bool:
        """More than those ``light`` ones together that have calls of it."""
        others = (x for x in light.values() if not set(x.calls).isdisjoint(gap.calls))
        return self._gain(gap) > sum(map(self._gain, others))

    def _gain(self, gap: Gap) -> int:
        return gap.gain(self.feeds(gap), self._held, self.free)

    def is_cheap(self, gap: Gap) -> bool:
        """Are its products, for what it saves?"""
        feeds = self.feeds(gap)
        many = gap.saved_bytes >= MANY * gap.outer_bytes
        work = gap.work + gap.feed_work * bool(feeds)
        sums = SHORT_SUM * (FOR_MANY if many else 1)
        return is_cheap(work, gap.bytes_of(feeds), sums)


def _alive_bytes(gap: Gap, free: set[Ref]) -> int:
    """What is alive while it is recomputed."""
    read = sum(size for ref, size in gap.read_bytes.items() if ref in free)
    return gap.most_bytes + read
