# SPDX-License-Identifier: MIT
"""Constants that forward makes and changes in place through views, as grids of points."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym

Between = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.last = Brick(3, 8, 3), Brick(8, 4, 3)
        self.offset = nn.Conv2d(8, 2, 3, 1, 1)
        self.register_buffer("gains", torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def grid(y: Tensor) -> Tensor:
    """(H, W, 2), from -1 to 1: changed through views of one half each."""
    rows, columns = (torch.linspace(0.5, n - 0.5, n) for n in y.shape[2:])
    points = torch.stack(torch.meshgrid(columns, rows, indexing="ij"), -1)
    points[..., 0].div_(y.shape[2] - 1.0).mul_(2.0).sub_(1.0)
    points[..., 1].div_(y.shape[3] - 1.0).mul_(2.0).sub_(1.0)
    return points


def sampled(module: Net, y: Tensor) -> Tensor:
    """As deformable attention (arXiv:2201.00520) does."""
    moved = module.offset(y).permute(0, 2, 3, 1).tanh() * 0.1
    return F.grid_sample(y, (moved + grid(y))[..., (1, 0)], align_corners=True)


def before_and_after(module: Net, y: Tensor) -> Tensor:
    """Stock calls that read a stage see the grid as it was when they were made."""
    points = torch.ones(2, y.shape[2], y.shape[3])
    early = y.exp() + points[0]
    points[0].mul_(0.5)
    middle = (y + early).sin() + points.sum(0)
    points[1].copy_(points[0])
    return middle.cos() + points.sum(0)


def convolved(module: Net, y: Tensor) -> Tensor:
    """A stock call as well, in its place: a node would read it in the first stage."""
    points = torch.ones(1, 8, 16, 16)
    points[:, :4].mul_(y.detach().mean())
    return y + module.offset(points).sum(1, keepdim=True)


def learning(module: Net, y: Tensor) -> Tensor:
    """By what learns: autograd follows such views."""
    points = torch.ones(2, 16, 16)
    points[0].mul_(y.mean((0, 1)).tanh())
    return y.exp() * points[0]


def half(module: Net, y: Tensor) -> Tensor:
    """A buffer's views are refused: others have them."""
    module.gains[:4].mul_(0.5)
    return y.cos() + module.gains


RECORDED = {
    "sampled": sampled,
    "before and after": before_and_after,
    "a convolution of it": convolved,
}
OTHERS = {"learning": learning, "half": half}


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("name", RECORDED | OTHERS)
def test_training_is_stocks(name: str, keep: str) -> None:
    stock = Net((RECORDED | OTHERS)[name])
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    for a, b in zip(ours.buffers(), stock.buffers()):
        assert_close(a.float(), b.float())
    if name in RECORDED:
        assert ym.report(ours).rows[0].state == "swapped" and ran_in_core(ours) == 2
