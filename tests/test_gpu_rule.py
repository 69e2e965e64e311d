# SPDX-License-Identifier: MIT
"""The rule of exactness on a GPU: at most twice stock PyTorch's distance from float64.

The same cases as test_rule.py, with stock and ours on the GPU and float64 on the CPU.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable

import pytest
import rule
import torch
from gpu_machine import (  # noqa: F401
    DEVICE,
    NAMES,
    backend,
    dtypes,
    exact_float32,
    needs_gpu,
    rehearsal,
)
from test_rule import LAYERS
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9.model import DetectionModel

pytestmark = needs_gpu


def run(
    model: nn.Module,
    inputs: list[Tensor],
    seed: int,
    dtype: torch.dtype,
    scale: float = 1.0,
) -> rule.Result:
    """A step on the model's device, its loss times `scale`; moved to the CPU."""
    device = next(model.parameters()).device
    leaves = [x.to(device).requires_grad_() for x in inputs]
    mixed = dtype in (torch.float16, torch.bfloat16)
    with torch.autocast(device.type, dtype if mixed else None, enabled=mixed):
        outputs = rule.flatten(model(*leaves))
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (o.to(leaves[0].dtype) * torch.randn(o.shape, generator=generator).to(o)).sum()
        for o in outputs
    )
    (loss * scale).backward()
    grads = [p.grad for p in [*leaves, *model.parameters()] if p.grad is not None]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    state = [t for m in norms for t in (m.running_mean, m.running_var)]
    calls = [int(m.num_batches_tracked) for m in norms]
    parts = [[t.detach().cpu() for t in part] for part in (outputs, grads, state)]
    return rule.Result(*parts, calls)


def below_overflow(gradients: list[Tensor]) -> float:
    """A power of two, at most 1, that keeps fp16 gradients far below their largest."""
    most = max(float(g.abs().max()) for g in gradients)
    return min(1.0, 2.0 ** math.floor(math.log2(1024 / max(most, 1e-30))))


def one_seed(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    seed: int,
    name: str,
    keeps: tuple[str, ...],
) -> dict[tuple, tuple[list[float], list[float]]]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make().train()
    rule.loosen(model, generator)
    inputs = [torch.randn(shape, generator=generator)]
    doubled = [x.double() for x in inputs]
    exact = run(copy.deepcopy(model).double(), doubled, seed, torch.float64)
    scale = below_overflow(exact.gradients)
    exact.gradients = [g * scale for g in exact.gradients]
    found = {}
    for dtype in dtypes():
        stock = run(copy.deepcopy(model).to(DEVICE), inputs, seed, dtype, scale)
        for keep in keeps:
            mine = copy.deepcopy(model).to(DEVICE)
            ym.checkpoint(mine, keep=keep, backend=backend(name))
            ours = run(mine, inputs, seed, dtype, scale)
            assert [r.state for r in ym.report(mine).rows] == ["swapped"]
            assert ours.calls == stock.calls
            found[keep, dtype] = (rule.errors(ours, exact), rule.errors(stock, exact))
            ym.release(mine)
    return found


def check(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    name: str,
    seeds: int = 5,
    keeps: tuple[str, ...] = ("all", "conv", "min"),
) -> None:
    runs = [one_seed(make, shape, seed, name, keeps) for seed in range(seeds)]
    for key in runs[0]:
        for i, kind in enumerate(rule.KINDS):
            ours = statistics.median(r[key][0][i] for r in runs)
            stock = statistics.median(r[key][1][i] for r in runs)
            # A few bits where stock makes (almost) no error at all.
            assert ours <= 2 * stock + 1e-7, (key, kind, ours, stock)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_types(layer: str, name: str) -> None:
    fewer = {"seeds": 3, "keeps": ("conv", "min")} if "plain" in name else {}
    check(LAYERS[layer], (2, 8, 13, 17), name, **fewer)


def test_whole_detector() -> None:
    make = lambda: DetectionModel("yolov9-t", nc=3)  # noqa: E731
    check(make, (2, 3, 128, 128), NAMES[0])


@pytest.mark.parametrize("model", ["yolov9-s", "yolov9-m", "yolov9-c", "gelan-c"])
def test_larger_detectors(model: str) -> None:
    """Three seeds."""
    make = lambda: DetectionModel(model, nc=3)  # noqa: E731
    check(make, (2, 3, 128, 128), NAMES[0], 3, ("conv", "min"))
