# SPDX-License-Identifier: MIT
"""The optimizer step of yolov9-c with a moving average, clip and GradScaler on the GPU.

Stock: unscale_, clip_grad_norm_, scaler.step(SGD), update, zero_grad(set_to_none=False),
EMA, with torch.optim.SGD as a loop, foreach and fused. Ours: AccumulatingSGD.step(scaler).
The floor: every byte that must move once, at the speed of a copy measured beside it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.bench_sgd import RATES
from benchmarks.gpu.bandwidth import copy_bandwidth
from benchmarks.gpu.clock import Clock, costly, device_times, host_times
from benchmarks.models import detection_model, moving_average

OURS = "yolov9mem AccumulatingSGD"
STOCK = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
}
BYTES = 36  # a parameter: read g; read p, g, m, e; write p, g, m, e
BUFFER_BYTES = 12  # a float of a buffer: read it and its average, write that
MAX_NORM = 10.0


def float_tensors(model: nn.Module) -> dict[str, int]:
    """How many tensors the step touches, and the bytes that it must move."""
    floats = [v for v in model.state_dict().values() if v.is_floating_point()]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    others = sum(v.numel() for v in floats) - parameters
    bytes_ = BYTES * parameters + BUFFER_BYTES * others
    return {"tensors": len(floats), "parameters": parameters, "bytes": bytes_}


class Scaled:
    """A scaler with gradients waiting for it."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.scaler = torch.amp.GradScaler(device, init_scale=128.0)
        self.scaler.scale(torch.ones((), device=device))  # makes its scalars
        self.grads = []
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.empty_like(p)
                self.grads.append(p.grad)

    def fill(self) -> None:
        for grad in self.grads:
            grad.fill_(1e-2)


def stock(
    model: nn.Module, device: str, kind: dict[str, bool]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(step, prepare)."""
    ready, ema = Scaled(model, device), moving_average(model)
    optimizer = torch.optim.SGD(model.parameters(), **RATES, **kind)

    def step() -> None:
        ready.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        ready.scaler.step(optimizer)
        ready.scaler.update()
        optimizer.zero_grad(set_to_none=False)
        ema.update(model)

    return step, ready.fill


def ours(
    model: nn.Module, device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    from yolov9mem.torch import AccumulatingSGD

    ready = Scaled(model, device)
    optimizer = AccumulatingSGD(
        model.parameters(),
        **RATES,
        max_norm=MAX_NORM,
        ema=moving_average(model),
        model=model,
    )

    def step() -> None:
        optimizer.step(scaler=ready.scaler)
        ready.scaler.update()

    return step, ready.fill


def row(name: str, model_name: str, device: str) -> dict[str, Any]:
    clock = Clock(device)
    torch.manual_seed(0)
    model = detection_model(model_name).to(device)
    kind = STOCK.get(name)
    step, prepare = ours(model, device) if kind is None else stock(model, device, kind)
    for _ in range(3):
        prepare()
        step()
    returned, done = host_times(clock, step, prepare, 9)
    found: dict[str, Any] = {
        "implementation": name,
        "host_ms": statistics.median(returned),
        "whole_ms": statistics.median(done),
        "least_host_ms": min(returned),
    }
    if kind is None:  # stock's scaler.step waits inside, which device_times can't have
        events = device_times(clock, step, prepare, 9)
        found["gpu_ms"] = statistics.median(events)
        prepare()
        found["costly"] = costly(step)
    return found | float_tensors(model)


def run(request: dict[str, Any]) -> dict[str, Any]:
    device = request["device"]
    name = "yolov9-t" if request["quick"] else "yolov9-c"
    rows = []
    for way in (*STOCK, OURS):
        rows.append(row(way, name, device))
        gc.collect()
    copied = copy_bandwidth(device, 1 << 20 if request["quick"] else 1 << 29)
    return {"case": name, "rows": rows, "copy_gb_s": copied}
