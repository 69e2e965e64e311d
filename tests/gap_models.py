# SPDX-License-Identifier: MIT
"""Modules of stages with stock calls between, beside a copy of them in stock."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from models_for_tests import Brick, Elan
from torch import Tensor, nn

import yolov9mem.torch as ym

CHANNELS = 8


class Rows(nn.Module):
    """``each`` between a convolution and an activation, in ``depth`` rows."""

    def __init__(self, each: Callable[[], nn.Module], depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, CHANNELS, 3, 1, 1)
        self.rows = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, bias=False), each(), nn.SiLU()
            )
            for _ in range(depth)
        )
        self.head = Brick(CHANNELS, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for row in self.rows:
            x = row(x)
        return self.head(x)


class Call(nn.Module):
    """A function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def pair(
    each: Callable[[], nn.Module], depth: int = 3, **how: object
) -> tuple[nn.Module, nn.Module]:
    stock = Rows(each, depth)
    return ym.checkpoint(copy.deepcopy(stock), strict=False, **how), stock


COUNTED: list[int] = []


# With its schema, which PyTorch 2.4 does not read from annotations that are text.
@torch.library.custom_op(
    "yolov9mem_tests::counted", mutates_args=(), schema="(Tensor x) -> Tensor"
)
def counted(x: Tensor) -> Tensor:
    COUNTED.append(1)
    return x.sin()


counted.register_fake(lambda x: torch.empty_like(x))
counted.register_autograd(
    lambda ctx, grad: grad * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


Between = Callable[[Tensor], Tensor]


class Two(nn.Module):
    """Two stages: ``between`` is made of the first one's result, which also goes on."""

    def __init__(self, between: Between = torch.tan) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = Elan(3, 8, 8), Elan(8, 8, 8)
        self.early, self.late = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)
        self.between = between

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.first(x)
        between = self.between(x)
        y = self.second(x + between)
        return self.early(x), between, self.late(y)


def two(between: Between = torch.tan, **how: object) -> tuple[nn.Module, nn.Module]:
    stock = Two(between)
    return ym.checkpoint(copy.deepcopy(stock), strict=False, **how), stock
