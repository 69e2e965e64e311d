# SPDX-License-Identifier: MIT
"""Which gaps are recomputed in backward, and which outputs of stages for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

from yolov9mem._keep import Keep

from ..recording.gaps import Gap, held_by_others
from ..recording.ir import Recording, Ref
from ..versions import TELLS_OF_HOOKS
from .planned import TorchPlan

# Numbers in each sum of a product of matrices that takes about as long as its results are
# written and read: a head of attention in a detector has 32.
SHORT_SUM = 32
# Times as many are worth it for what has MANY times the bytes of all that is made with it,
# as attention's weights: nn.MultiheadAttention multiplies twice, and its input before.
FOR_MANY, MANY = 4, 8


class Recompute(NamedTuple):
    """What of one forward is recomputed in backward."""

    gaps: dict[int, Gap]  # by their first call
    feeds: set[Ref]  # inputs of graphs that are not held
    outputs: set[Ref]  # values of graphs that are not held for these gaps

    @property
    def saved_bytes(self) -> int:
        """That autograd would keep for the calls."""
        return sum(gap.saved_bytes for gap in self.gaps.values())

    @property
    def most_bytes(self) -> int:
        """Of one gap, while its backward runs."""
        gaps = self.gaps.values()
        return max((_bytes(gap, self.outputs) for gap in gaps), default=0)

    def left_bytes(self, recording: Recording) -> int:
        """That autograd keeps for the calls of gaps which are not recomputed."""
        gaps = recording.gaps.items()
        return sum(gap.saved_bytes for n, gap in gaps if n not in self.gaps)

    def read_bytes(self, others: set[Ref]) -> int:
        """Held for the gaps, and neither for these ``others`` nor recomputed."""
        gaps = self.gaps.values()
        read = {ref: size for gap in gaps for ref, size in gap.read_bytes.items()}
        free = others | self.outputs
        return sum(size for ref, size in read.items() if ref not in free)


def _is_cheap(work: int, saved_bytes: int, sums: int = SHORT_SUM) -> bool:
    """For so many bytes, is the time small that their products take?"""
    return work <= 2 * sums * saved_bytes


def _feeds(gap: Gap, keep: Keep, own: set[Ref]) -> set[Ref]:
    """Which are recomputed of those that graphs alone hold: all, if they are cheap."""
    feeds = own.intersection(gap.feeds)
    fed = gap.bytes_of(feeds) - gap.bytes_of(set())
    return feeds if keep.rule == "min" or _is_cheap(gap.feed_work, fed) else set()


def _is_considered(gap: Gap, keep: Keep, feeds: set[Ref]) -> bool:
    """With "min" every gap is, with "all" none, else those that are cheap."""
    if keep.rule in ("min", "all"):
        return keep.rule == "min"
    many = gap.saved_bytes >= MANY * gap.outer_bytes
    sums = SHORT_SUM * (FOR_MANY if many else 1)
    work = gap.work + gap.feed_work * bool(feeds)
    return _is_cheap(work, gap.bytes_of(feeds), sums)


def choose_recompute(
    recording: Recording, keep: Keep, plans: Sequence[TorchPlan]
) -> Recompute:
    """With these plans of its graphs, the first so many."""
    own: set[Ref] = set()
    read: set[Ref] = set()
    outputs: set[Ref] = set()
    for plan in plans:
        part = plan.program.part
        own.update(compress(part.sources, plan.own))
        read.update(compress(part.sources, plan.read_back))
        values = [
            Ref("value", value) for stage in part.stages for value in stage.values
        ]
        if TELLS_OF_HOOKS:
            outputs.update(compress(values, plan.recompute))
    sources = [ref for part in recording.parts for ref in part.sources]
    # What is recomputed is handed out once: not to two graphs.
    own -= {ref for ref, count in Counter(sources).items() if count > 1}
    feeds = {first: _feeds(gap, keep, own) for first, gap in recording.gaps.items()}
    gaps = {
        first: gap
        for first, gap in recording.gaps.items()
        if _is_considered(gap, keep, feeds[first])
    }
    planned = {ref for plan in plans for ref in plan.program.part.sources}
    later = set(sources) - planned
    inputs = (read | later) - own
    held = held_by_others(recording) | inputs
    chosen: dict[int, Gap] = {}
    free: set[Ref] = set()
    while chosen != gaps:  # one that is left out holds what others counted on
        chosen = gaps
        freed = {number for gap in chosen.values() for number in gap.calls}
        free = outputs - held_by_others(recording, freed) - inputs
        gaps = {
            first: gap
            for first, gap in chosen.items()
            if gap.is_worth_it(feeds[first], held, free)
        }
    free &= {ref for gap in gaps.values() for ref in gap.read_bytes}
    return Recompute(gaps, {ref for first in gaps for ref in feeds[first]}, free)


def _bytes(gap: Gap, free: set[Ref]) -> int:
    """What is alive while it is recomputed."""
    read = sum(size for ref, size in gap.read_bytes.items() if ref in free)
    return gap.most_bytes + read
