# SPDX-License-Identifier: MIT
"""The rule of exactness (benchmarks/exactness.py), on any device.

For one case (a module, its inputs, a keep rule and a dtype) the outputs, the gradients
and the batch norm state of our run and of stock's are each compared with a float64 run of
the same module: relative L2 error, pooled over the tensors of the case. The median over
the seeds of ours may be at most twice that of stock.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import yolov9mem.torch as ym

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.exactness import holds, pooled_error

HALF = (torch.float16, torch.bfloat16)
Key = tuple[str, torch.dtype]  # keep, dtype
KINDS = ("outputs", "gradients", "batch norm state")


@dataclass
class Result:
    outputs: list[Tensor]
    gradients: list[Tensor]
    state: list[Tensor]
    calls: list[int]  # of each batch norm: num_batches_tracked


def flatten(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for part in value for leaf in flatten(part)]


def loosen(model: nn.Module, generator: torch.Generator) -> None:
    """Batch norms away from their initial ones and zeros, running statistics too."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            with torch.no_grad():
                m.weight.copy_(torch.rand(m.weight.shape, generator=generator) + 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=generator) * 0.3)
                m.running_mean.normal_(generator=generator)
                m.running_var.uniform_(0.5, 2, generator=generator)


def run(
    model: nn.Module,
    inputs: Sequence[Tensor],
    seed: int,
    dtype: torch.dtype,
    heads: int = 0,
    scale: float = 1.0,
) -> Result:
    """Forward and backward, where the model is, of a random linear loss, times `scale`, on
    the first `heads` outputs (0: all).

    The result is the model's own memory: what is loaded next overwrites it.
    """
    device = next(model.parameters()).device
    leaves = [x.to(device, copy=True).requires_grad_() for x in inputs]
    mixed = dtype in HALF
    with torch.autocast(device.type, dtype if mixed else None, enabled=mixed):
        outputs = flatten(model(*leaves))
    generator = torch.Generator().manual_seed(seed)
    chosen = outputs[:heads] if heads else outputs
    loss = sum(
        (
            o.to(leaves[0]) * torch.randn(o.shape, generator=generator).to(leaves[0])
        ).sum()
        for o in chosen
    )
    (loss * scale).backward()
    gradients = [p.grad for p in [*leaves, *model.parameters()] if p.grad is not None]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    state = [t for m in norms for t in (m.running_mean, m.running_var)]
    calls = [m.num_batches_tracked for m in norms]
    counted = torch.stack(calls).tolist() if calls else []  # one wait for all
    return Result([o.detach() for o in outputs], gradients, state, counted)


def one_seed(
    make: Callable[[], nn.Module],
    shapes: list[tuple[int, ...]],
    seed: int,
    keeps: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    heads: int = 0,
) -> dict[Key, tuple[list[float], list[float]]]:
    """By (keep, dtype): the three errors of ours and of stock."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make().train()
    loosen(model, generator)
    inputs = [torch.randn(s, generator=generator) for s in shapes]
    exact = run(
        copy.deepcopy(model).double(),
        [x.double() for x in inputs],
        seed,
        torch.float64,
        heads,
    )
    found = {}
    for dtype in dtypes:
        stock = run(copy.deepcopy(model), inputs, seed, dtype, heads)
        for keep in keeps:
            swapped = ym.checkpoint(copy.deepcopy(model), keep=keep)
            ours = run(swapped, inputs, seed, dtype, heads)
            assert ours.calls == stock.calls
            found[keep, dtype] = (errors(ours, exact), errors(stock, exact))
            ym.release(swapped)
    return found


def errors(result: Result, exact: Result) -> list[float]:
    return [
        pooled_error(result.outputs, exact.outputs),
        pooled_error(result.gradients, exact.gradients),
        pooled_error(result.state, exact.state),
    ]


def check(
    make: Callable[[], nn.Module],
    shapes: list[tuple[int, ...]],
    *,
    keeps: tuple[str, ...] = ("all", "conv", "min"),
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    seeds: range = range(5),
    heads: int = 0,
    strict: bool = True,
) -> dict[tuple[str, torch.dtype, str], tuple[float, float]]:
    """The medians (ours, stock) by keep, dtype and kind; strict: asserts the rule."""
    runs = [one_seed(make, shapes, s, keeps, dtypes, heads) for s in seeds]
    found = medians(runs)
    for key, (ours, stock) in found.items():
        assert not strict or holds(ours, stock), f"{key}: {ours:.3g}, stock {stock:.3g}"
    return found


def medians(
    runs: Sequence[dict[Key, tuple[list[float], list[float]]]],
) -> dict[tuple[str, torch.dtype, str], tuple[float, float]]:
    """Over the seeds, (ours, stock) by keep, dtype and kind. The first has all keys."""
    return {
        (*key, kind): (
            statistics.median(r[key][0][i] for r in runs if key in r),
            statistics.median(r[key][1][i] for r in runs if key in r),
        )
        for key in runs[0]
        for i, kind in enumerate(KINDS)
    }
