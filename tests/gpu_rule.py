# SPDX-License-Identifier: MIT
"""The rule of exactness on any device: see rule.py for what is compared.

Stock and ours run on the device, float64 there or on the CPU. Each way has one module for
all seeds, so that it is recorded once. Results stay where they were made and errors are
computed where float64 ran: a detector has a thousand tensors and sixty runs, too much to
be moved about.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rule
import torch
from torch import Tensor, nn

import yolov9mem.torch as ym

HALF = (torch.float16, torch.bfloat16)
Key = tuple[str, torch.dtype]  # keep, dtype


@dataclass(frozen=True)
class Place:
    """Where a comparison runs.

    device: of stock and ours. exact: of float64. backend: as ym.checkpoint takes it.
    """

    device: str
    exact: str = "cpu"
    backend: Any = "auto"


def run(
    model: nn.Module,
    inputs: Sequence[Tensor],
    seed: int,
    dtype: torch.dtype,
    scale: float = 1.0,
) -> rule.Result:
    """A step on the model's device, its loss times `scale`.

    The result is the model's own memory: what is loaded next overwrites it.
    """
    device = next(model.parameters()).device
    leaves = [x.to(device, copy=True).requires_grad_() for x in inputs]
    mixed = dtype in HALF
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
    calls = [m.num_batches_tracked for m in norms]
    counted = torch.stack(calls).tolist() if calls else []  # one wait for all
    return rule.Result([o.detach() for o in outputs], grads, state, counted)


def below_overflow(gradients: list[Tensor]) -> float:
    """A power of two, at most 1, that keeps fp16 gradients far below their largest."""
    most = float(torch.stack([g.abs().max() for g in gradients]).max())
    return min(1.0, 2.0 ** math.floor(math.log2(1024 / max(most, 1e-30))))


def load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)
    return model


class Comparison:
    """A module in every way on one place."""

    def __init__(
        self,
        make: Callable[[], nn.Module],
        place: Place,
        keeps: Sequence[str],
        dtypes: Sequence[torch.dtype],
    ) -> None:
        self.make, self.place = make, place
        self.stock = make().train().to(place.device)
        self.exact = copy.deepcopy(self.stock).to(place.exact).double()
        self.ours: dict[torch.dtype, dict[str, nn.Module]] = {
            dtype: {
                keep: ym.checkpoint(
                    copy.deepcopy(self.stock), keep=keep, backend=place.backend
                )
                for keep in keeps
            }
            for dtype in dtypes
        }

    def errors(
        self, shape: Sequence[int], seed: int
    ) -> dict[Key, tuple[list[float], list[float]]]:
        """The three errors of ours and of stock, with weights and input of the seed."""
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = self.make().train()
        rule.loosen(model, generator)
        inputs = [torch.randn(*shape, generator=generator)]
        doubled = [x.double() for x in inputs]
        state = model.to(self.place.device).state_dict()
        exact = run(load(self.exact, state), doubled, seed, torch.float64)
        scale = below_overflow(exact.gradients)
        for g in exact.gradients:
            g.mul_(scale)
        found = {}
        for dtype, kept in self.ours.items():
            stock = run(load(self.stock, state), inputs, seed, dtype, scale)
            stock_errors = rule.errors(stock, exact)
            for keep, mine in kept.items():
                made = run(load(mine, state), inputs, seed, dtype, scale)
                assert [r.state for r in ym.report(mine).rows] == ["swapped"]
                assert made.calls == stock.calls
                found[keep, dtype] = (rule.errors(made, exact), stock_errors)
        return found

    def release(self) -> None:
        for kept in self.ours.values():
            for mine in kept.values():
                ym.release(mine)


def medians(
    make: Callable[[], nn.Module],
    shape: Sequence[int],
    place: Place,
    *,
    keeps: Sequence[str],
    dtypes: Sequence[torch.dtype],
    seeds: int,
) -> dict[tuple[str, torch.dtype, str], tuple[float, float]]:
    """Medians over the seeds (ours, stock) by keep, dtype and kind."""
    compared = Comparison(make, place, keeps, dtypes)
    runs = [compared.errors(shape, seed) for seed in range(seeds)]
    compared.release()
    found = {}
    for key in runs[0]:
        for i, kind in enumerate(rule.KINDS):
            ours, stock = (
                statistics.median(r[key][k][i] for r in runs) for k in (0, 1)
            )
            found[(*key, kind)] = (ours, stock)
    return found


def holds(ours: float, stock: float) -> bool:
    """The rule, but for four roundings where stock makes (almost) no error at all."""
    return ours <= 2 * stock + 1e-7
