# SPDX-License-Identifier: MIT
"""The rule of exactness: at most twice the error that stock PyTorch makes.

For one case (a module, its inputs, a keep rule and a dtype) the outputs, the gradients
and the batch norm state of our run and of stock's are each compared with a float64 run of
the same module: relative L2 error, pooled over the tensors of the case. The median over
the seeds of ours may be at most twice that of stock.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import yolov9mem.torch as ym

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
    model: nn.Module, inputs: list[Tensor], seed: int, dtype: torch.dtype, heads: int
) -> Result:
    """Forward and backward of a random linear loss on the first `heads` outputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = flatten(model(*leaves))
    generator = torch.Generator().manual_seed(seed)
    chosen = outputs[:heads] if heads else outputs
    loss = sum(
        (o.to(leaves[0].dtype) * torch.randn(o.shape, generator=generator)).sum()
        for o in chosen
    )
    loss.backward()
    gradients = [p.grad for p in [*leaves, *model.parameters()] if p.grad is not None]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    state = [t for m in norms for t in (m.running_mean, m.running_var)]
    calls = [int(m.num_batches_tracked) for m in norms]
    return Result([o.detach() for o in outputs], gradients, state, calls)


def pooled_error(tensors: list[Tensor], exact: list[Tensor]) -> float:
    """Relative L2, summed where `exact` lies: on a GPU with one wait for all tensors."""
    assert len(tensors) == len(exact)
    if not exact:  # a module without batch norm
        return 0.0
    wrong = [
        (t.to(e.device, torch.float64) - e).square().sum()
        for t, e in zip(tensors, exact)
    ]
    size = torch.stack([e.square().sum() for e in exact]).sum()
    return float((torch.stack(wrong).sum() / size.clamp(min=1e-300)).sqrt())


def one_seed(
    make: Callable[[], nn.Module],
    shapes: list[tuple[int, ...]],
    seed: int,
    keeps: tuple[str, ...],
    dtypes: tuple[torch.dtype, ...],
    heads: int = 0,
) -> dict[tuple[str, torch.dtype], tuple[list[float], list[float]]]:
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
    medians = {}
    for key in runs[0]:
        for i, kind in enumerate(KINDS):
            ours = statistics.median(r[key][0][i] for r in runs)
            stock = statistics.median(r[key][1][i] for r in runs)
            medians[(*key, kind)] = (ours, stock)
            if strict:
                assert ours <= 2 * stock, f"{key} {kind}: {ours:.3g}, stock {stock:.3g}"
    return medians
