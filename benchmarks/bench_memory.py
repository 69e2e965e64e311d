# SPDX-License-Identifier: MIT
"""The memory of a training step of yolov9-s: what the system counts, per process."""

from __future__ import annotations

import json
import sys

from benchmarks import memory
from benchmarks.gpu.names import EAGER
from benchmarks.step import DTYPES, WAYS, Step

TITLE = "Memory of a training step above its level before it (VmHWM, VmRSS)"
COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("held_mb", "held after forward, MB", ".0f"),
    ("held_ratio", "of the first", ".2f"),
    ("peak_mb", "peak, MB", ".0f"),
    ("peak_ratio", "of the first", ".2f"),
]


def _level() -> int:
    """The resident set without the workspace that yolov9mem keeps between calls.

    So the workspace counts as memory of the step, as stock's temporaries do.
    """
    arenas = sys.modules.get("yolov9mem.torch.running.arenas")
    if arenas is not None:
        arenas.drop_workspace()
    return memory.resident_bytes()


def measure(way: str, name: str, batch: int, size: int, dtype: str) -> dict:
    """The peak of the third step, and what the fourth holds between its two halves."""
    step = Step(way, name, batch, size, dtype)
    for _ in range(2):
        step()
        step.clear()
    _level()
    peak = memory.peak_of(step)
    step.clear()
    before = _level()
    loss = step.forward()
    held = _level() - before
    loss.backward()
    return {"held_bytes": held, "peak_bytes": peak}


def rows(quick: bool) -> list[dict]:
    """quick: yolov9-t, batch 2, 160 px instead of yolov9-s, batch 2, 640 px."""
    name, batch, size = ("yolov9-t", 2, 160) if quick else ("yolov9-s", 2, 640)
    made = []
    for dtype in DTYPES:
        found = {
            way: memory.in_fresh_process(
                "benchmarks.bench_memory",
                {
                    "way": way,
                    "name": name,
                    "batch": batch,
                    "size": size,
                    "dtype": dtype,
                },
            )
            for way in WAYS
        }
        for way, figures in found.items():
            row = {
                "case": f"{name}, batch {batch}, {size} px, {dtype}",
                "implementation": way,
            }
            for kind in ("held", "peak"):
                value = figures[f"{kind}_bytes"]
                row[f"{kind}_mb"] = value / 1e6
                row[f"{kind}_ratio"] = value / found[EAGER][f"{kind}_bytes"]
            made.append(row)
    return made


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
