# SPDX-License-Identifier: MIT
"""Two trainings from the same state, deterministic algorithms asked for: the same bits?

A request names, for a rehearsal, quick. Steps are full ones in half precision, as step.py
makes them; an operation that PyTorch cannot run deterministically is an error here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.names import GRAPHS, MIN_GRAPHS
from benchmarks.gpu.step import Training
from benchmarks.gpu.ways import plan_bytes

STEPS = 3
KINDS = ("outputs", "weights", "state")
FULL = {"model": "yolov9-s", "batch": 8, "size": 640}
QUICK = {"model": "yolov9-t", "batch": 2, "size": 64}
SETTINGS = {"objects": 7, "deterministic": True, "multi_scale": False}


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [leaf for part in value for leaf in leaves(part)]


def trained(request: dict[str, Any]) -> dict[str, list[Tensor]]:
    """By KINDS, after the steps; outputs are those of all steps.

    Raises:
        RuntimeError: the weights did not move or an output is not finite, or something
            ran in stock PyTorch: equal bits would mean nothing.
    """
    training = Training(request)
    torch.use_deterministic_algorithms(True)  # not only as far as possible
    training.add_optimizer()
    forward, outputs = training.runner, []

    def noted(images: Tensor) -> Any:
        output = forward(images)
        outputs.extend(t.detach().clone() for t in leaves(output))
        return output

    training.runner = noted
    weights = list(training.model.parameters())
    before = [p.detach().clone() for p in weights]
    for _ in range(STEPS):
        training.full()
    plan_bytes(training.model)
    weights = [p.detach().clone() for p in weights]
    if not bytes_that_differ(before, weights):
        raise RuntimeError("the weights did not move: equal bits would mean nothing")
    if not all(bool(torch.isfinite(t).all()) for t in (*outputs, *weights)):
        raise RuntimeError("an output is not finite: equal bits would mean nothing")
    state = [b.detach().clone() for b in training.model.buffers()]
    return {"outputs": outputs, "weights": weights, "state": state}


def as_bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


def bytes_that_differ(some: list[Tensor], others: list[Tensor]) -> int:
    """Of all tensors; -0 is not 0 here."""
    counts = [
        (as_bytes(a) != as_bytes(b)).sum() for a, b in zip(some, others, strict=True)
    ]
    return int(torch.stack(counts).sum())


def run(request: dict[str, Any]) -> dict[str, Any]:
    asked = (QUICK if request["quick"] else FULL) | SETTINGS
    half = "float16" if request["device"] == "cuda" else "bfloat16"
    case = f"{asked['model']}, {asked['size']} px, batch {asked['batch']}, {half}"
    rows = []
    for way in (GRAPHS, MIN_GRAPHS):
        asked |= {"way": way, "device": request["device"]}
        first, second = trained(asked), trained(asked)
        row: dict[str, Any] = {"case": case, "implementation": way, "steps": STEPS}
        for kind in KINDS:
            row[f"{kind}_differ"] = bytes_that_differ(first[kind], second[kind])
        rows.append(row)
    return {"rows": rows}
