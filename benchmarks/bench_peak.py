# SPDX-License-Identifier: MIT
"""Is the planned peak what the system counts? The third step of a detector.

The plan's peak is `saved` and workspace. Beside it a step holds what PyTorch owns and any
trainer has: the outputs and the parameters' gradients, whose bytes are exact too. The
gradients of the outputs and the image are there before the step begins, and those of the
parameters before a later micro-batch: backward adds to them.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import torch

from benchmarks import memory
from benchmarks.models import detection_model

TITLE = "Planned and measured peak of a training step (VmHWM minus VmRSS before)"
COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("plan_mb", "plan: saved and workspace, MB", ".1f"),
    ("torch_mb", "outputs and parameter gradients, MB", ".1f"),
    ("measured_mb", "measured, MB", ".1f"),
    ("ratio", "measured of predicted", ".3f"),
]


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for part in value for leaf in tensors(part)]


def measure(
    name: str, batch: int, size: int, keep: str, later: bool
) -> dict[str, float]:
    """Bytes planned, owned by PyTorch, and measured in this process.

    later: of a micro-batch whose gradients are added to those of others.
    """
    from yolov9mem.torch import checkpoint, report
    from yolov9mem.torch.running.arenas import drop_workspace

    torch.manual_seed(0)
    model = checkpoint(detection_model(name), keep=keep)
    image = torch.rand(batch, 3, size, size).contiguous(
        memory_format=torch.channels_last
    )
    given: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def step() -> None:
        outputs[:] = tensors(model(image))
        if not given:
            given.extend(torch.randn_like(y) for y in outputs)
        torch.autograd.backward(outputs, given)

    def clear() -> None:
        outputs.clear()
        model.zero_grad(set_to_none=not later)
        drop_workspace()

    for _ in range(2):
        step()
        clear()
    measured = memory.peak_of(step)
    made = [] if later else list(model.parameters())
    gradients = sum(p.numel() * 4 for p in made if p.requires_grad)
    (row,) = report(model).rows
    input_bytes = image.numel() * 4  # counted by the report, there before the step
    return {
        "plan_bytes": row.peak_bytes - input_bytes,
        "torch_bytes": sum(y.numel() * 4 for y in outputs) + gradients,
        "measured_bytes": measured,
    }


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: yolov9-t, 2 images of 320 px instead of yolov9-s, 4 of 640 px."""
    name, batch, size = ("yolov9-t", 2, 320) if quick else ("yolov9-s", 4, 640)
    made = []
    for keep, later in itertools.product(("conv", "min"), (False, True)):
        what = {"name": name, "batch": batch, "size": size, "keep": keep}
        found = memory.in_fresh_process(
            "benchmarks.bench_peak", what | {"later": later}
        )
        predicted = found["plan_bytes"] + found["torch_bytes"]
        made.append(
            {
                "case": f"{name}, batch {batch}, {size} px, fp32"
                + (", a later micro-batch" if later else ""),
                "implementation": f"yolov9mem {keep}",
                "plan_mb": found["plan_bytes"] / 1e6,
                "torch_mb": found["torch_bytes"] / 1e6,
                "measured_mb": found["measured_bytes"] / 1e6,
                "ratio": found["measured_bytes"] / predicted,
            }
        )
    return made


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
