# SPDX-License-Identifier: MIT
"""Dropout of whole channels: the noise is drawn by stock PyTorch, the product is ours."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from allocations import peak_of
from models_for_tests import Brick, assert_close, image, ran_in_core, trained_with_seed
from torch import Tensor, nn

import yolov9mem.torch as ym


class Drops(nn.Module):
    """As of ERFNet: behind bricks, in place and not, and in a residual."""

    def __init__(self, p: float = 0.3, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second = Brick(3, 8, 3), Brick(8, 8, 3)
        self.drop, self.last = nn.Dropout2d(p, inplace), Brick(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x) * 1.5)
        return self.last(F.dropout2d(self.second(x), 0.5, self.training) + x)


def assert_drawn_as_stock(
    stock: nn.Module,
    x: Tensor,
    keep: str,
    tolerance: float = 1e-3,
    *,
    strict: bool = False,
) -> None:
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=strict)
    for _ in range(2):
        made, expected = (trained_with_seed(module, x) for module in (ours, stock))
        assert made[0].dtype == expected[0].dtype
        assert_close(made[0], expected[0], tolerance)
        assert torch.equal(made[2], expected[2])
        assert_close(made[1], expected[1], tolerance)
    assert ran_in_core(ours) == 2
    assert len(ym.report(ours).rows) == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_channels_are_dropped_as_in_stock(
    p: float, inplace: bool, keep: str, strict: bool
) -> None:
    torch.manual_seed(0)
    assert_drawn_as_stock(Drops(p, inplace), image(), keep, strict=strict)


def test_all_channels_are_dropped_by_stock() -> None:
    """PyTorch draws nothing then."""
    torch.manual_seed(0)
    stock = nn.Sequential(Brick(3, 8, 3), nn.Dropout2d(1.0), Brick(8, 4))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    torch.manual_seed(5)
    assert_close(ours(image()), stock(image()))
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_in_either_layout_and_in_16_bits(order: torch.memory_format) -> None:
    torch.manual_seed(0)
    stock = Drops().to(memory_format=order)
    x = image().contiguous(memory_format=order)
    assert_drawn_as_stock(stock, x, "min")
    with torch.autocast("cpu", torch.bfloat16):
        assert_drawn_as_stock(stock, x, "min", 0.1)
    assert_drawn_as_stock(stock.bfloat16(), x.bfloat16(), "min", 0.1)


def test_it_is_off_in_eval_and_an_error_stays_stocks() -> None:
    ours = ym.checkpoint(Drops(), strict=False).eval()
    assert torch.equal(ours(image()), ours(image()))
    with pytest.raises(ValueError, match="dropout probability"):
        ym.checkpoint(nn.Sequential(Brick(3, 4), Wrong()), strict=False)(image())


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, 1.5)


def test_it_ends_no_stage() -> None:
    """Nothing is held for it but the noise: as without."""

    def net(*between: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        bricks = (nn.Sequential(Brick(8, 8, 3), *between) for _ in range(5))
        return nn.Sequential(Brick(3, 8, 3), *bricks)

    peaks = []
    for stock in (net(nn.Dropout2d(0.2)), net()):
        ours = ym.checkpoint(stock, "conv", strict=False)
        x = image(size=64)
        ours(x).sum().backward()  # recorded
        ours.zero_grad()
        peaks.append(peak_of(lambda m=ours, x=x: m(x).sum().backward()))
    assert peaks[0] <= 1.02 * peaks[1]
