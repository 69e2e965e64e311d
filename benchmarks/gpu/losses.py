# SPDX-License-Identifier: MIT
"""The losses of 50 iterations on the GPU beside stock's: see benchmarks/bench_losses.py.

A request names, for a rehearsal, quick. The settings are the script's, deterministic where
PyTorch can be, so that stock alone gives the same losses again; TF32 is off.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import bench_losses
from benchmarks.models import make_importable

# Seeds of running freely, fewer where the task would take longer.
SEEDS, SECONDS = 3, 40.0


def run(request: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    make_importable("examples")
    from yolov9.environment import seed_everything

    seed_everything(0)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    size, batch, iterations = bench_losses.sizes(request["quick"])
    batches = bench_losses.Batches(size, batch)
    case = bench_losses.Case(iterations, device=request["device"])
    seeds = 1 if request["quick"] else SEEDS
    rows = bench_losses.step_by_step(batches, case)
    left = SECONDS - (time.perf_counter() - begin)
    rows += bench_losses.running_freely(batches, case, seeds, left)
    name = f"{bench_losses.NAME}, {size} px, batch {batch}, float32"
    return {"case": name, "rows": rows}
