# SPDX-License-Identifier: MIT
"""Host memory as torch's own profiler counts it, allocation by allocation."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which what torch has allocated rose above its level before, at most.

    No dispatch mode, under which a checkpointed module would run in stock PyTorch.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])  # those of one moment stay in order
    return max(itertools.accumulate(size for _, size in changes), default=0)


def held_by(work: Callable[[], object]) -> int:
    """Bytes that torch has allocated more while the result of ``work`` is alive."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    events = seen.profiler.kineto_results.events()
    del result
    return sum(e.nbytes() for e in events if e.name() == "[memory]")
