# SPDX-License-Identifier: MIT
"""The time of a training step of yolov9-s."""

from __future__ import annotations

from benchmarks import timing
from benchmarks.step import DTYPES, STOCK, WAYS, Step

TITLE = "Training step: forward, loss, backward"
COLUMNS = timing.COLUMNS


def cases(name: str, batch: int, size: int, dtype: str) -> dict[str, timing.Case]:
    steps = {way: Step(way, name, batch, size, dtype) for way in WAYS}
    return {way: timing.Case(step, step.clear) for way, step in steps.items()}


def rows(quick: bool) -> list[dict]:
    """quick: yolov9-t, batch 2, 160 px instead of yolov9-s, batch 8, 320 px."""
    name, batch, size = ("yolov9-t", 2, 160) if quick else ("yolov9-s", 8, 320)
    made = []
    for dtype in DTYPES:
        timings = timing.compare(cases(name, batch, size, dtype))
        case = f"{name}, batch {batch}, {size} px, {dtype}"
        made += timing.rows(case, timings, STOCK)
    return made
