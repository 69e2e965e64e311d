# SPDX-License-Identifier: MIT
"""Where the GPU's time goes in a training step: its kernels by kind, and how long it waits
for the host; and which functions of the host take longest.

A request is one of step.py, of full steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.clock import Clock, Kernel, costly, kernels
from benchmarks.gpu.step import WARM_UP, Training, prepare_allocator

STEPS = 5
LONGEST = 20  # kernels that a record names
LETTERS = 160  # of a kernel's name

# Kind -> words, one of which is in a kernel's name; the first kind that fits has it.
KINDS = {
    "copies and fills by the driver": ("memcpy", "memset"),
    "batch norm in cuDNN": ("bn_fw", "bn_bw", "batchnorm"),
    "PyTorch's kernels": ("at::", "cub::", "aten::"),
    "torch.compile's kernels": ("triton_",),
    "convolutions": ("cudnn", "xmma", "cutlass", "gemm", "conv", "wgrad", "dgrad"),
    "yolov9mem's optimizer": ("sgd_",),
    "yolov9mem's kernels": ("_kernel",),
}
OTHERS = "others"


def kind_of(name: str) -> str:
    lower = name.lower()
    fits = (kind for kind, words in KINDS.items() if any(w in lower for w in words))
    return next(fits, OTHERS)


def busy_us(launches: Iterable[Kernel]) -> float:
    """The time in which at least one kernel runs."""
    busy, until = 0.0, float("-inf")
    for kernel in sorted(launches, key=lambda k: k.start_us):
        busy += max(0.0, kernel.end_us - max(until, kernel.start_us))
        until = max(until, kernel.end_us)
    return busy


def by_kind(launches: list[Kernel], steps: int) -> list[dict[str, Any]]:
    """A row for all kernels and one for each kind, of one step of `steps`."""
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in launches:
        groups[kind_of(kernel.name)].append(kernel)
    busy = busy_us(launches) / steps
    first, last = min(k.start_us for k in launches), max(k.end_us for k in launches)
    whole = {"kind": "all", "launches": len(launches) / steps, "ms": busy / 1e3}
    rows = [whole | {"waits_ms": ((last - first) / steps - busy) / 1e3}]
    for kind in (*KINDS, OTHERS):
        of_kind = groups.get(kind, [])
        took = sum(k.end_us - k.start_us for k in of_kind) / steps / 1e3
        if of_kind:
            rows.append({"kind": kind, "launches": len(of_kind) / steps, "ms": took})
    return rows


def longest(launches: list[Kernel], steps: int) -> list[dict[str, Any]]:
    """The kernels that take most of a step, by name."""
    groups: dict[str, list[float]] = defaultdict(list)
    for kernel in launches:
        groups[kernel.name[:LETTERS]].append(kernel.end_us - kernel.start_us)
    found = [
        {"name": name, "launches": len(took) / steps, "ms": sum(took) / steps / 1e3}
        for name, took in groups.items()
    ]
    return sorted(found, key=lambda row: -row["ms"])[:LONGEST]


def run(request: dict[str, Any]) -> dict[str, Any]:
    prepare_allocator(request)
    training = Training(request)
    training.add_optimizer()
    for _ in range(WARM_UP):
        training.full()
    found = kernels(Clock(request["device"]), training.full, STEPS)
    if not found:
        raise RuntimeError("the profiler sees no kernel on this machine")
    rows = [{"implementation": request["way"]} | row for row in by_kind(found, STEPS)]
    host = costly(training.full)
    return {"rows": rows, "longest": longest(found, STEPS), "costly": host}
