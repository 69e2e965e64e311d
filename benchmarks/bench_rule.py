# SPDX-License-Identifier: MIT
"""The rule of exactness on all ten detectors: see tests/rule.py for what is compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import detection_model

TITLE = (
    "Error of outputs, gradients and batch norm state against float64, 64 px, batch 2"
)
COLUMNS = [
    ("case", "model", ""),
    ("implementation", "implementation", ""),
    ("kind", "of", ""),
    ("ours", "ours, median of seeds", ".2e"),
    ("stock", "stock PyTorch", ".2e"),
    ("ratio", "ratio", ".2f"),
]
NAMES = [f"{family}-{size}" for size in "tsmce" for family in ("yolov9", "gelan")]


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: yolov9-t with one seed, instead of all ten with five."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    import rule

    made = []
    for name in NAMES[:1] if quick else NAMES:
        found = rule.check(
            lambda name=name: detection_model(name, 3),
            [(2, 3, 64, 64)],
            keeps=("conv", "min"),
            dtypes=(torch.float32, torch.bfloat16),
            seeds=range(1 if quick else 5),
        )
        for (keep, dtype, kind), (ours, stock) in found.items():
            made.append(
                {
                    "case": f"{name}, {str(dtype).removeprefix('torch.')}",
                    "implementation": f"yolov9mem {keep}",
                    "kind": kind,
                    "ours": ours,
                    "stock": stock,
                    "ratio": ours / stock,
                }
            )
        print(name, *(f"{row['ratio']:.2f}" for row in made[-12:]), flush=True)
    return made
