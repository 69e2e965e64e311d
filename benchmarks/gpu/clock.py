# SPDX-License-Identifier: MIT
"""Times and memory of a device; on the CPU, for rehearsals, the same calls with less."""

from __future__ import annotations

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

COSTLY = 20  # functions that a record names
COVER_CYCLES = 40_000_000  # of the GPU's clock, 20 ms or more


class Clock:
    """Marks on the current stream.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Milliseconds; both marks must have passed."""
        return first.elapsed_time(last) if self.on_gpu else (last - first) * 1e3

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def cover(self) -> None:
        """Keeps the GPU busy for a while, so that what is queued next waits for nobody."""
        if self.on_gpu:
            torch.cuda._sleep(COVER_CYCLES)


def device_times(
    clock: Clock,
    work: Callable[[], object],
    prepare: Callable[[], object] = lambda: None,
    repetitions: int = 15,
) -> list[float]:
    """Milliseconds of the GPU's own time for `work`, by events, behind a covering kernel.

    That is the time without the host's, if `work` does not wait for the GPU inside.
    """
    found = []
    for _ in range(repetitions):
        prepare()
        clock.wait()
        clock.cover()
        first = clock.mark()
        work()
        last = clock.mark()
        clock.wait()
        found.append(clock.between(first, last))
    return found


def host_times(
    clock: Clock,
    work: Callable[[], object],
    prepare: Callable[[], object] = lambda: None,
    repetitions: int = 15,
) -> tuple[list[float], list[float]]:
    """Milliseconds until `work` returns, and until the GPU is done with it."""
    returned, done = [], []
    for _ in range(repetitions):
        prepare()
        clock.wait()
        begin = time.perf_counter()
        work()
        middle = time.perf_counter()
        clock.wait()
        returned.append((middle - begin) * 1e3)
        done.append((time.perf_counter() - begin) * 1e3)
    return returned, done


def costly(work: Callable[[], object]) -> list[list[Any]]:
    """[function, calls, milliseconds of its own] on the host, the longest first. The
    profiler's time is in them; other threads, as that of a backward, from Python 3.12 on.
    """
    with cProfile.Profile() as profile:
        work()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    found = [
        [f"{place.rpartition('/')[2]}:{line} {name}", calls, round(own * 1e3, 3)]
        for (place, line, name), (_, calls, own, _, _) in stats.items()
    ]
    return sorted(found, key=lambda each: -each[2])[:COSTLY]


class Kernel(NamedTuple):
    """One launch; microseconds."""

    name: str
    start_us: float
    end_us: float


def kernels(clock: Clock, work: Callable[[], object], repetitions: int) -> list[Kernel]:
    """What `work` launches when it is repeated, as PyTorch's profiler sees it, within CUDA
    graphs too; on the CPU PyTorch's operations stand in for kernels."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = clock.on_gpu
    clock.wait()
    what = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[what]) as profiler:
        for _ in range(repetitions):
            work()
        clock.wait()
    return [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if (event.device_type.name == "CUDA") == on_gpu
    ]


def spread(times: list[float]) -> dict[str, float]:
    """Median and quartiles, as a record keeps them."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": middle, "low_ms": low, "high_ms": high, "count": len(times)}


def memory(device: str) -> dict[str, int]:
    """Bytes: peaks of torch's allocator since the last reset, and of the whole device,
    where what is not torch's counts as it is now."""
    if device != "cuda":
        return {"allocated": 0, "reserved": 0, "device": 0, "retries": 0}
    free, total = torch.cuda.mem_get_info()
    counted = torch.cuda.memory_stats()
    reserved = torch.cuda.max_memory_reserved()
    return {
        "retries": counted.get("num_alloc_retries", 0),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": reserved,
        "device": total - free - torch.cuda.memory_reserved() + reserved,
    }


def forget_peaks(device: str) -> None:
    """After a warm-up."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def forget_blocks(device: str) -> None:
    """Before a warm-up: what came before has left nothing reserved."""
    if device == "cuda":
        torch.cuda.empty_cache()
