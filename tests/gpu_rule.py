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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rule
import torch
from torch import Tensor, nn

import yolov9mem.torch as ym


@dataclass(frozen=True)
class Place:
    """Where a comparison runs.

    device: of stock and ours. exact: of float64. backend: as ym.checkpoint takes it.
    """

    device: str
    exact: str = "cpu"
    backend: Any = "auto"


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
        self, shape: Sequence[int], seed: int, dtypes: Sequence[torch.dtype]
    ) -> dict[rule.Key, tuple[list[float], list[float]]]:
        """The three errors of ours and of stock, with weights and input of the seed, in
        some of the dtypes."""
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = self.make().train()
        rule.loosen(model, generator)
        inputs = [torch.randn(*shape, generator=generator)]
        doubled = [x.double() for x in inputs]
        state = model.to(self.place.device).state_dict()
        exact = rule.run(load(self.exact, state), doubled, seed, torch.float64)
        scale = below_overflow(exact.gradients)
        for g in exact.gradients:
            g.mul_(scale)
        found = {}
        for dtype in dtypes:
            stock = rule.run(load(self.stock, state), inputs, seed, dtype, scale=scale)
            stock_errors = rule.errors(stock, exact)
            for keep, mine in self.ours[dtype].items():
                made = rule.run(load(mine, state), inputs, seed, dtype, scale=scale)
                # What autocast leaves in float32 may be stock.
                assert ym.report(mine).rows[0].state == "swapped"
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
    seeds: Mapping[torch.dtype, int],
) -> dict[tuple[str, torch.dtype, str], tuple[float, float]]:
    """Medians over the seeds of each dtype (ours, stock) by keep, dtype and kind."""
    compared = Comparison(make, place, keeps, list(seeds))
    runs = [
        compared.errors(shape, seed, [d for d, count in seeds.items() if seed < count])
        for seed in range(max(seeds.values()))
    ]
    compared.release()
    return rule.medians(runs)
