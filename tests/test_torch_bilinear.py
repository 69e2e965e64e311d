# SPDX-License-Identifier: MIT
"""Bilinear resizing as part of a graph: what is recorded, what stays stock, and under
autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from emulated_gpu import autocast_of_a_gpu  # noqa: F401
from models_for_tests import Apply, Brick, assert_same_training, image, ran_in_core
from rule import check
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import yolov9mem.torch as ym
from yolov9mem.torch.recording.fakes import FakeCopy
from yolov9mem.torch.recording.record import record


def bilinear(**given: object) -> Callable[[Tensor], Tensor]:
    return lambda x: F.interpolate(x, mode="bilinear", **given)


def pooled(x: Tensor) -> Tensor:
    """As the pooling of DeepLab: one pixel becomes all."""
    return F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:], mode="bilinear")


LOWERED = {
    "module": nn.Upsample(scale_factor=2, mode="bilinear"),
    "module, corners": nn.UpsamplingBilinear2d(scale_factor=2),
    "module to a size": nn.Upsample((37, 53), mode="bilinear", align_corners=False),
    "smaller": bilinear(size=(7, 1)),
    "smaller, corners": bilinear(size=(5, 9), align_corners=True),
    "fraction": bilinear(scale_factor=(1.37, 0.3)),
    "fraction, corners": bilinear(scale_factor=(1.03, 1.7), align_corners=True),
    "recomputed": bilinear(scale_factor=1.53, recompute_scale_factor=True),
    "one side": bilinear(size=(32, 50)),
    "same size": bilinear(size=(32, 32)),
    "same size by a fraction": bilinear(scale_factor=1.01),
    "one pixel": pooled,
}


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", LOWERED)
def test_lowered_calls(name: str, keep: str) -> None:
    stock = Apply(LOWERED[name])
    ours = ym.checkpoint(copy.deepcopy(stock), keep=keep)
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1


REFUSED = {
    "mode 'bilinear' with antialias is not done": {"size": (9, 9), "antialias": True},
    r"its scale \(2.0, 1.03\) keeps a side": {"scale_factor": (2.0, 1.03)},
    r"its scale is \(1025.0, 1.0\), above 1024": {"scale_factor": (1025.0, 1.0)},
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_calls_stay_stock(words: str) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, mode="bilinear", **REFUSED[words])

    stock = nn.Sequential(Brick(3, 2, 3), Scaled(), Brick(2, 4, 1))
    with pytest.raises(ym.CannotLower, match=f"interpolate in 1: {words}"):
        ym.checkpoint(copy.deepcopy(stock))(image(size=16))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=16))
    assert {row.path: row.state for row in ym.report(ours).rows}["1"] == "stock"


def test_in_the_tail_of_a_strict_recording() -> None:
    """Over the result of a stock call, as in segmentation."""

    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.brick(x).log_softmax(1)
            return F.interpolate(logits, scale_factor=2, mode="bilinear")

    stock = Segments()
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1


class Pyramid(nn.Module):
    """Levels that are resized, added and concatenated; one is handed out as it is."""

    def __init__(self, corners: bool) -> None:
        super().__init__()
        self.fine, self.coarse = Brick(3, 8, 3), nn.Conv2d(8, 8, 3, 2, 1)
        self.last, self.corners = Brick(16, 4, 3), corners

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        up = F.interpolate(
            coarse, fine.shape[2:], mode="bilinear", align_corners=self.corners
        )
        down = F.interpolate(fine, scale_factor=0.4, mode="bilinear")
        return [self.last(torch.cat((up, fine + up), 1)), up, down]


@pytest.mark.parametrize("corners", [False, True])
def test_the_rule_of_exactness(corners: bool) -> None:
    """Also under autocast: see rule.py."""
    check(lambda: Pyramid(corners), [(2, 3, 13, 18)])


@pytest.mark.parametrize("strict", [True, False])
def test_dtypes_under_autocast_are_stock_s(strict: bool) -> None:
    stock = Pyramid(False)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    x = image(size=16)
    with torch.autocast("cpu", torch.bfloat16):
        made, expected = ours(x), stock(x)
    assert [y.dtype for y in made] == [y.dtype for y in expected]
    assert ran_in_core(ours) == 1


@pytest.mark.usefixtures("autocast_of_a_gpu")
def test_one_graph_under_the_autocast_of_a_gpu() -> None:
    """It makes float32 of the resized, which the next convolution rounds again."""
    leaves, spec = tree_flatten(((torch.empty(2, 3, 64, 64),), {}))
    module = Pyramid(False).requires_grad_(False)
    done = record(FakeCopy(module), leaves, spec, True)
    assert len(done.parts) == 1
    made = [node.dtype for node in done.nodes if node.op == "upsample"]
    assert made == [torch.float32] * 2
