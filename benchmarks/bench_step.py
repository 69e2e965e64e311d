# SPDX-License-Identifier: MIT
"""Time and peak memory of a training step, in one table.

Times come from one process with every way side by side, each the second of two steps in
a row; peaks from one fresh process a way (benchmarks/bench_memory.py), above the level
before the step.
"""

from __future__ import annotations

from benchmarks import memory, timing
from benchmarks.gpu.names import CONV, EAGER, LAST, MIN
from benchmarks.step import DTYPES, WAYS, Step

TITLE = "Training step: forward, loss, backward"
COLUMNS = [
    *timing.COLUMNS,
    ("speed", "speed, of eager's", ".2f"),
    ("speed_nhwc", "of channels_last's", ".2f"),
    ("peak_mb", "peak, MB", ".0f"),
    ("peak_ratio", "peak, of eager's", ".2f"),
    *timing.TARGET_COLUMNS,
]
TARGET_CASE = "yolov9-s"
# Of the speed of eager and channels_last at least, of eager's peak at most.
TARGETS = {
    (CONV, "fp32"): {"speed": 1.25, "speed_nhwc": 0.95, "peak_ratio": 0.40},
    (MIN, "fp32"): {"speed_nhwc": 0.95, "peak_ratio": 0.25},
    (CONV, "bf16"): {"speed": 0.7, "peak_ratio": 0.40},
    (MIN, "bf16"): {"speed": 0.7, "peak_ratio": 0.25},
}
WORDS = {
    "speed": "{:.2f} x eager",
    "speed_nhwc": "{:.2f} x channels_last",
    "peak_ratio": "peak {:.2f}",
}


def cases(name: str, batch: int, size: int, dtype: str) -> dict[str, timing.Case]:
    steps = {way: Step(way, name, batch, size, dtype) for way in WAYS}
    return {way: timing.Case(step, step.clear) for way, step in steps.items()}


def peak_bytes(way: str, name: str, batch: int, size: int, dtype: str) -> int:
    """Of a process that does nothing else."""
    what = {"way": way, "name": name, "batch": batch, "size": size, "dtype": dtype}
    return memory.in_fresh_process("benchmarks.bench_memory", what)["peak_bytes"]


def judge(row: dict, wanted: dict[str, float]) -> dict:
    """The row with what was wanted and whether it is so."""
    met = all(
        row[key] <= value if key == "peak_ratio" else row[key] >= value
        for key, value in wanted.items()
    )
    text = ", ".join(WORDS[key].format(value) for key, value in wanted.items())
    return row | {"target": text, "met": "met" if met else "not met"}


def _case_rows(name: str, batch: int, size: int, dtype: str) -> list[dict]:
    peaks = {way: peak_bytes(way, name, batch, size, dtype) for way in WAYS}
    timings = timing.compare(cases(name, batch, size, dtype), leading=1)
    made = []
    for row in timing.rows(
        f"{name}, batch {batch}, {size} px, {dtype}", timings, EAGER
    ):
        way = row["implementation"]
        row["speed"] = 1 / row["ratio"]
        row["speed_nhwc"] = 1 / timing.paired_ratio(timings[way], timings[LAST])
        row["peak_mb"] = peaks[way] / 1e6
        row["peak_ratio"] = peaks[way] / peaks[EAGER]
        wanted = TARGETS.get((way, dtype)) if name == TARGET_CASE else None
        made.append(judge(row, wanted) if wanted else row)
        print(
            f"  {row['case']}, {way}: {row['median_ms']:.0f} ms, {row['speed']:.2f} and "
            f"{row['speed_nhwc']:.2f} x, peak {row['peak_ratio']:.2f}",
            flush=True,
        )
    return made


def rows(quick: bool) -> list[dict]:
    """quick: yolov9-t, batch 2, 160 px instead of yolov9-s and -t, batch 8, 320 px."""
    models = [("yolov9-t", 2, 160)]
    if not quick:
        models = [(TARGET_CASE, 8, 320), ("yolov9-t", 8, 320)]
    return [row for m in models for d in DTYPES for row in _case_rows(*m, d)]
