# SPDX-License-Identifier: MIT
"""The rule of exactness of one detector on the GPU: see tests/gpu_rule.py.

A request names model and, for a rehearsal, quick. Float64 runs on the GPU as well, by
stock PyTorch, and the errors are computed there. TF32 is off, so that float32 is what it
says.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.exactness import ROUNDINGS, holds
from benchmarks.models import detection_model, make_importable

KEEPS = ("conv", "min")
SIZE, BATCH = 128, 2
# Medians of three by stock PyTorch in two layouts were 3.5 apart: bench_rule.py says why,
# and of which detectors in float32 half of the seeds have it.
SEEDS, SEEDS_OF_LARGEST, SEEDS_OF_MAXIMA = 9, 5, 49
NO_BF16 = (8, 0)  # GPUs below have none


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """Those that plans run in there."""
    if device == "cpu":
        return (torch.float32, torch.bfloat16)
    half = (torch.float32, torch.float16)
    has_bf16 = torch.cuda.get_device_capability() >= NO_BF16
    return (*half, torch.bfloat16) if has_bf16 else half


def seeds(model: str, dtype: torch.dtype, quick: bool) -> int:
    """How many the median is of."""
    if quick:
        return 1
    if dtype == torch.float32 and model.endswith("-c"):
        return SEEDS_OF_MAXIMA
    return SEEDS_OF_LARGEST if model.endswith("-e") else SEEDS


def run(request: dict[str, Any]) -> dict[str, Any]:
    make_importable("tests")
    import gpu_rule

    device, name = request["device"], request["model"]
    counts = {d: seeds(name, d, request["quick"]) for d in dtypes(device)}
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    found = gpu_rule.medians(
        lambda: detection_model(name, 3),
        (BATCH, 3, SIZE, SIZE),
        gpu_rule.Place(device, exact=device),
        keeps=KEEPS,
        seeds=counts,
    )
    rows = [
        {
            "case": f"{name}, {str(dtype).removeprefix('torch.')}",
            "implementation": f"yolov9mem {keep}",
            "kind": kind,
            "seeds": counts[dtype],
            "ours": ours,
            "stock": stock,
            "ratio": ours / max(stock, 1e-30),
            "holds": holds(ours, stock, ROUNDINGS),
        }
        for (keep, dtype, kind), (ours, stock) in found.items()
    ]
    return {"rows": rows}
