# SPDX-License-Identifier: MIT
"""A network whose stages' outputs stock calls read, trained beside stock PyTorch: on the
emulated GPU (test_cuda_recompute.py) and on a GPU (test_gpu_torch.py)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from models_for_tests import Brick, assert_same_training, image
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry


class Between(nn.Module):
    """ELU and space to depth between bricks, and a batch norm that has no activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = Brick(3, 16, 3), Brick(16, 16, 3)
        self.third, self.last = Brick(64, 16), nn.Conv2d(16, 8, 1)
        self.first.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.elu(self.first(x)))
        return self.last(self.third(F.pixel_unshuffle(y, 2)))


def check(device: str, backend: Any) -> None:
    """Two steps of two sizes are stock's, and outputs were recomputed."""
    stock = Between().to(device).train()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False, backend=backend)
    for size in (16, 24, 16):
        assert_same_training(ours, stock, image(size=size).to(device))
    runner = registry.runner_of(ours)
    for lowered in runner.lowered.values():
        plans = tuple(graph.last for graph in lowered.graphs)
        assert len(lowered.recompute(plans, runner.keep).outputs) == 2
