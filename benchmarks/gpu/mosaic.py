# SPDX-License-Identifier: MIT
"""The mosaic of a batch: tiles in the GPU's memory, one launch, beside one CPU core."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from benchmarks.bench_mosaic import CASES, make_data
from benchmarks.gpu.clock import Clock, device_times, host_times
from benchmarks.gpu.jobs import DeviceBatch, drawn, on_the_cpu

NAMES = ("4 tiles, boxes", "4 tiles, polygons, copy-paste", "4 tiles, boxes, mixup")


def cpu_times(jobs: list[tuple[Any, ...]], out: np.ndarray, count: int) -> list[float]:
    """Milliseconds of the batch on one core."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        on_the_cpu(jobs, out)
        found.append((time.perf_counter() - begin) * 1e3)
    return found


def row(name: str, batch: int, side: int, device: str) -> dict[str, Any]:
    from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic

    clock, hyp = Clock(device), dict(HYP_SCRATCH_HIGH) | CASES[name]
    data = make_data(side, "polygons" in name)
    jobs = drawn(Mosaic(*data, image_size=side, hyp=hyp), batch, seed=1)
    out = np.empty((batch, 3, side, side), np.uint8)
    on_the_cpu(jobs, out)
    times = cpu_times(jobs, out, 5)
    cpu_ms = statistics.median(times) / batch
    found: dict[str, Any] = {"case": name, "batch": batch, "size": side}
    found |= {"cpu_ms": cpu_ms}
    made = DeviceBatch(
        jobs, side, torch.device(device, 0 if device == "cuda" else None)
    )
    found["upload_mb"] = made.upload_bytes / 1e6 / batch
    found["upload_ms"] = statistics.median(device_times(clock, made.upload)) / batch
    if device != "cuda":
        return found
    same = np.array_equal(made.render().cpu().numpy(), out)
    found["bytes_that_differ"] = (
        0 if same else int((made.out.cpu().numpy() != out).sum())
    )
    kernel = statistics.median(device_times(clock, made.render))
    returned, _ = host_times(clock, made.render)
    found |= {"kernel_ms": kernel / batch, "speedup": cpu_ms / (kernel / batch)}
    return found | {"host_ms": statistics.median(returned) / batch}


def run(request: dict[str, Any]) -> dict[str, Any]:
    import yolov9mem

    yolov9mem.set_num_threads(1)
    batch, side = (2, 64) if request["quick"] else (64, 640)
    return {"rows": [row(name, batch, side, request["device"]) for name in NAMES]}
