# SPDX-License-Identifier: MIT
"""Planned bytes of whole detectors at 640 px beside what autograd keeps in stock."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models import detection_model

TITLE = "Planned memory of a training step, one image of 640 px, fp32"
COLUMNS = [
    ("case", "model", ""),
    ("implementation", "implementation", ""),
    ("held_mb", "held between forward and backward, MB", ".0f"),
    ("held_ratio", "of stock's", ".3f"),
    ("peak_mb", "planned peak, MB", ".0f"),
    ("peak_ratio", "of stock's held", ".3f"),
    ("rerun", "convolutions run again", ""),
]


def held_by_stock(model: torch.nn.Module, image: torch.Tensor) -> int:
    """Bytes of the distinct storages that autograd saves, parameters excluded."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known:
            held[address] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        output = model(image)
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del output
    return total


def rerun(made: Any) -> int:
    """Convolutions that the plan of a whole model runs again."""
    return sum(v["rebuilds"] for v in made.tables[""] if v["op"] == "conv")


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: yolov9-t alone, at 320 px."""
    from yolov9mem.torch import checkpoint, report

    names = ["yolov9-t"] if quick else ["yolov9-t", "yolov9-s", "yolov9-c"]
    size = 320 if quick else 640
    made = []
    for name in names:
        torch.manual_seed(0)
        model = detection_model(name)
        image = torch.rand(1, 3, size, size)
        stock = held_by_stock(model, image)
        made.append({"case": name, "implementation": "torch eager"})
        made[-1] |= {"held_mb": stock / 1e6, "held_ratio": 1.0}
        for keep in ("all", "conv", "min"):
            checkpoint(model, keep=keep)
            model(image)
            (row,) = report(model).rows
            made.append(
                {
                    "case": name,
                    "implementation": f"yolov9mem {keep}",
                    "held_mb": row.held_bytes / 1e6,
                    "held_ratio": row.held_bytes / stock,
                    "peak_mb": row.peak_bytes / 1e6,
                    "peak_ratio": row.peak_bytes / stock,
                    "rerun": rerun(report(model)),
                }
            )
    return made
