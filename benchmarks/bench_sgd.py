# SPDX-License-Identifier: MIT
"""The optimizer step of yolov9-c: 51.2 million parameters in 746 tensors, and EMA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import timing
from benchmarks.models import detection_model, moving_average

TITLE = "Optimizer step: clip, SGD with Nesterov momentum, moving average, zero"
COLUMNS = [
    *timing.COLUMNS,
    ("speed", "times as fast", ".2f"),
    ("of_copy", "time, of the copy's", ".2f"),
    *timing.TARGET_COLUMNS,
]
TIMES_AS_FAST, TIMES_A_COPY = 3.5, 1.4  # wanted
OURS = "yolov9mem AccumulatingSGD"
LOOP = "torch for-loop"
COPY = "plain copy of the same bytes"
IMPLEMENTATIONS = (LOOP, "torch foreach", "torch fused", OURS, COPY)
RATES = {"lr": 1e-3, "momentum": 0.937, "nesterov": True, "weight_decay": 5e-4}
BYTES_PER_PARAMETER = 36  # read g; read p, g, m, e; write p, g, m, e


def _fill_gradients(model: nn.Module) -> Callable[[], None]:
    def fill() -> None:
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.empty_like(p) if p.grad is None else p.grad
                p.grad.fill_(1e-4)

    return fill


def stock_case(model: nn.Module, **kind: Any) -> timing.Case:
    """The official trainer's lines with torch.optim.SGD(**kind)."""
    ema = moving_average(model)
    optimizer = torch.optim.SGD(model.parameters(), **RATES, **kind)

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        ema.update(model)

    return timing.Case(step, _fill_gradients(model))


def our_case(model: nn.Module) -> timing.Case:
    from yolov9mem.torch.optimizer.sgd import AccumulatingSGD

    optimizer = AccumulatingSGD(
        model.parameters(),
        **RATES,
        max_norm=10.0,
        ema=moving_average(model),
        model=model,
    )
    return timing.Case(optimizer.step, _fill_gradients(model))


def copy_case(parameters: int) -> timing.Case:
    """Reads and writes together as many bytes as the two passes."""
    source = torch.ones(parameters * BYTES_PER_PARAMETER // 8)
    target = torch.empty_like(source)
    return timing.Case(lambda: target.copy_(source))


def cases(name: str) -> dict[str, timing.Case]:
    """Every implementation on its own copy of the model called `name`."""
    model = detection_model(name)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    made = (
        stock_case(copy.deepcopy(model), foreach=False),
        stock_case(copy.deepcopy(model), foreach=True),
        stock_case(copy.deepcopy(model), fused=True),
        our_case(model),
        copy_case(parameters),
    )
    return dict(zip(IMPLEMENTATIONS, made, strict=True))


def rows(quick: bool) -> list[dict]:
    """quick: yolov9-s instead of yolov9-c."""
    name = "yolov9-s" if quick else "yolov9-c"
    timings = timing.compare(cases(name), repetitions=7 if quick else 25, warmup=2)
    made = timing.rows(name, timings, LOOP)
    for row in made:
        found = timings[row["implementation"]]
        row["speed"] = 1 / row["ratio"]
        row["of_copy"] = timing.paired_ratio(found, timings[COPY])
        if row["implementation"] == OURS:
            met = row["speed"] >= TIMES_AS_FAST and row["of_copy"] <= TIMES_A_COPY
            row["target"] = f"{TIMES_AS_FAST} x, {TIMES_A_COPY} of a copy"
            row["met"] = "met" if met else "not met"
    return made
