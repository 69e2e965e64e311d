# SPDX-License-Identifier: MIT
"""Training samples at 640 px on one core: the official chain and the one pass.

Both draw the same numbers and make the same bytes (tests/test_mosaic.py). Tiles are in
memory, already resized. Bytes are what a sample allocates at most beside tiles and
result.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from benchmarks import timing
from benchmarks.official import Chain
from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic

TITLE = "Mosaic: one 640 px sample on one core"
COLUMNS = [
    *timing.COLUMNS,
    ("speedup", "times as fast", ".2f"),
    ("temporary_mb", "temporaries, MB", ".2f"),
    *timing.TARGET_COLUMNS,
]
TARGETS = {
    "4 tiles, boxes": 1.8,
    "4 tiles, polygons, copy-paste": 6.0,
    "4 tiles, boxes, mixup": 3.0,
}
CHAIN = "official chain (OpenCV, NumPy)"
OURS = "yolov9mem"
BATCH = 16  # samples of one repetition

# The recipe of hyp.scratch-high with one thing at a time.
CASES: dict[str, dict[str, float]] = {
    "4 tiles, boxes": {"mixup": 0.0, "copy_paste": 0.0},
    "4 tiles, polygons, copy-paste": {"mixup": 0.0},
    "4 tiles, boxes, mixup": {"mixup": 1.0, "copy_paste": 0.0},
    "4 tiles, rotation, shear": {
        "mixup": 0.0,
        "copy_paste": 0.0,
        "degrees": 10.0,
        "shear": 5.0,
    },
    "4 tiles, perspective": {"mixup": 0.0, "copy_paste": 0.0, "perspective": 0.0005},
    "letterbox": {"mosaic": 0.0},
}


def make_data(
    size: int, polygons: bool, count: int = 12
) -> tuple[list[np.ndarray], list[np.ndarray], list[list[np.ndarray]]]:
    """Photograph-like tiles with 7 objects each, as COCO has on average."""
    rng = np.random.default_rng(0)
    images, labels, segments = [], [], []
    for i in range(count):
        shape = (size, size * 3 // 4) if i % 3 == 0 else (size * 2 // 3, size)
        coarse = rng.integers(0, 256, (shape[0] // 16, shape[1] // 16, 3), np.uint8)
        images.append(cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC))
        middle = rng.uniform(0.15, 0.85, (7, 1, 2))
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        around = np.stack((np.cos(angle), np.sin(angle)), 1)
        radius = rng.uniform(0.03, 0.25, (7, 1, 1)) * rng.uniform(0.6, 1, (7, 40, 1))
        outlines = (middle + radius * around).clip(0, 1).astype(np.float32)
        low, high = outlines.min(1), outlines.max(1)
        kinds = rng.integers(0, 80, (7, 1)).astype(np.float32)
        labels.append(np.concatenate((kinds, (low + high) / 2, high - low), 1))
        segments.append(list(outlines) if polygons else [])
    return images, labels, segments


def make_batch(sample: Callable[[int], Any]) -> Callable[[], None]:
    """BATCH samples of the same draws every time."""

    def run() -> None:
        random.seed(1)
        np.random.seed(1)
        for i in range(BATCH):
            sample(i % 12)

    return run


def cases(name: str, size: int = 640) -> dict[str, timing.Case]:
    """Both implementations on one of CASES."""
    cv2.setNumThreads(0)
    hyp = dict(HYP_SCRATCH_HIGH) | CASES[name]
    data = make_data(size, "polygons" in name)
    chain = Chain(*data, size, hyp)
    ours = Mosaic(*data, image_size=size, hyp=hyp)
    return {
        CHAIN: timing.Case(make_batch(chain.sample)),
        OURS: timing.Case(make_batch(ours.sample)),
    }


def temporary_bytes(run: Callable[[], object], result_bytes: int) -> int:
    """What `run` allocates at most, less one result."""
    run()
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - result_bytes


def rows(quick: bool) -> list[dict]:
    """quick: 320 px."""
    size = 320 if quick else 640
    made = []
    for name in CASES:
        both = cases(name, size)
        timings = timing.compare(both, repetitions=7 if quick else 15)
        for row in timing.rows(name, timings, CHAIN):
            for key in ("median_ms", "low_ms", "high_ms"):
                row[key] /= BATCH
            row["speedup"] = 1 / row["ratio"]
            run = both[row["implementation"]].run
            row["temporary_mb"] = temporary_bytes(run, 3 * size * size) / 1e6
            if row["implementation"] == OURS and name in TARGETS:
                row = timing.at_least(row, TARGETS[name], row["speedup"])
            made.append(row)
    return made
