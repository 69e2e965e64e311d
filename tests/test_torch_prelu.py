# SPDX-License-Identifier: MIT
"""PReLU, with a slope for each channel or one for all, beside stock PyTorch."""

from __future__ import annotations

import copy
import math

import cuda_emulation as ce
import pytest
import rule
import torch
import torch.nn.functional as F
from models_for_tests import (
    Brick,
    assert_same_training,
    assert_swapped_whole,
    backward,
    held_in_core,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym

C = 12


class Twice(nn.Module):
    """One PReLU behind two convolutions, and read by two more."""

    def __init__(self, slopes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, C, 3), nn.Conv2d(C, C, 3, padding=1)
        self.act, self.last = nn.PReLU(slopes), Brick(2 * C, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        return self.last(torch.cat((self.act(self.second(x)) + x, x), 1))


class Functional(nn.Module):
    """A slope that is a parameter of the module, in four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Brick(3, C, 3), Brick(C, 4)
        self.slope = nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.prelu(self.first(x), self.slope))


def bricks(slopes: int, init: float = 0.25) -> nn.Sequential:
    """As of ENet and of face recognition: convolution, batch norm, PReLU."""
    layers: list[nn.Module] = []
    for c in (3, C, C):
        conv = nn.Conv2d(c, C, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(C), nn.PReLU(slopes, init)]
    return nn.Sequential(*layers, nn.Conv2d(C, 4, 1))


def bare(slopes: int) -> nn.Sequential:
    """As of super-resolution: no batch norm, and PReLU last but one."""
    return nn.Sequential(
        nn.Conv2d(3, C, 3), nn.PReLU(slopes), nn.Conv2d(C, C, 3), nn.PReLU(slopes),
        nn.Conv2d(C, 4, 3),
    )  # fmt: skip


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    return {
        "each": lambda: bricks(C),
        "one": lambda: bricks(1),
        "negative": lambda: bricks(C, -0.5),
        "none": lambda: bricks(1, 0.0),
        "steep": lambda: bricks(C, 3.0),
        "bare, each": lambda: bare(C),
        "bare, one": lambda: bare(1),
        "twice, each": lambda: Twice(C),
        "twice, one": lambda: Twice(1),
        "functional": Functional,
    }[name]()


NAMES = ["each", "one", "negative", "none", "steep", "bare, each", "bare, one"]
NAMES += ["twice, each", "twice, one", "functional"]


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_the_graph(name: str, keep: str) -> None:
    assert_swapped_whole(make(name), keep)


@pytest.mark.parametrize("name", ["each", "negative", "bare, each", "twice, one"])
def test_it_keeps_the_error_rule(name: str) -> None:
    rule.check(lambda: make(name), [(2, 3, 13, 17)])


@pytest.mark.parametrize("name", ["each", "one"])
def test_nothing_is_held_for_it(name: str) -> None:
    plain = make(name)
    for number in (2, 5, 8):
        plain[number] = nn.SiLU()
    vectors = 3 * 4 * 4 * 64  # of its affine node: mean, rstd, and what is one number
    assert 0 <= held_in_core(make(name), 32) - held_in_core(plain, 32) <= vectors


@pytest.mark.parametrize("slopes", [1, C])
def test_at_zero_and_far_away(slopes: int) -> None:
    """A black image makes zeros, of which the slope counts: bit for bit as stock."""
    torch.manual_seed(3)
    stock = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.PReLU(slopes))
    stock.append(nn.Conv2d(C, C, 1, bias=False))
    with torch.no_grad():
        for conv in (stock[0], stock[2]):
            conv.weight.copy_(torch.eye(C)[..., None, None])
    ours = ym.checkpoint(copy.deepcopy(stock))
    some = [0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, 1.5, -1.5, 1e-6, -1e-6]
    x = torch.tensor([*some, *some]).repeat(C).reshape(1, C, 4, 5)
    assert_equal_training(ours, stock, x)
    assert_equal_training(ours, stock, torch.zeros_like(x))
    y = ours(torch.full_like(x, math.inf))
    assert torch.equal(y.isnan(), stock(torch.full_like(x, math.inf)).isnan())


def assert_equal_training(ours: nn.Module, stock: nn.Module, x: Tensor) -> None:
    made = []
    for module in (ours, stock):
        given = x.clone().requires_grad_()
        module.zero_grad()
        y = module(given)
        y.sign().cumsum(3).mul(y.detach().clamp(-1, 1) + y).sum().backward()
        made.append((y, given.grad, module[2].weight.grad))
    for mine, theirs in zip(*made, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["each", "one", "bare, each"])
def test_frozen_and_changed_slopes(name: str) -> None:
    stock = make(name)
    ours = ym.checkpoint(copy.deepcopy(stock), "min")
    for step in range(3):
        for module in (ours, stock):
            slopes = [m for m in module.modules() if isinstance(m, nn.PReLU)]
            slopes[0].weight.requires_grad_(step != 1)
            with torch.no_grad():
                slopes[1].weight.sub_(0.3)
        assert_same_training(ours, stock, image(size=24))
    assert ran_in_core(ours) == 3


@pytest.mark.parametrize("name", ["each", "one", "functional"])
def test_gradients_are_added_where_they_are(name: str) -> None:
    stock = make(name)
    ours = ym.checkpoint(copy.deepcopy(stock))
    for module in (ours, stock):
        for _ in range(3):
            backward(module(image(size=32)))
    for mine, theirs in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["each", "one", "bare, each", "bare, one", "functional"]
)
def test_in_bfloat16(name: str) -> None:
    stock = make(name)
    ours = ym.checkpoint(copy.deepcopy(stock))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(image(size=32)).dtype == stock(image(size=32)).dtype
        assert_same_training(ours, stock, image(size=32), tolerance=0.08)
    ours, stock = ours.bfloat16(), stock.bfloat16()
    assert_same_training(ours, stock, image(size=32).bfloat16(), tolerance=0.1)
    assert ran_in_core(ours) == 3


def test_behind_a_stock_call_it_is_the_stock_call() -> None:
    """A part without a convolution saves nothing."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Brick(3, C, 3), nn.PReLU(C)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.group_norm(self.first(x), 3)).mean()

    torch.manual_seed(3)
    stock = Ends()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1
    rows = {row.path: row.detail for row in ym.report(ours).rows}
    assert "prelu" in rows["second"]


@pytest.mark.parametrize("strict", [True, False])
def test_the_last_of_all_under_autocast(strict: bool) -> None:
    """A stock call there, of 16 bits and of a slope in float32."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Brick(3, C, 3), nn.PReLU(C // 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.pixel_shuffle(self.first(x), 2)).mean((2, 3))

    torch.manual_seed(3)
    stock = Ends()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(image()).dtype == stock(image()).dtype
        assert_same_training(ours, stock, image(), tolerance=0.08)
    # The running statistics are of 16 bits, rounded as the machine's kernels do.
    ours.load_state_dict(stock.state_dict())
    assert_same_training(ours, stock, image())


@pytest.mark.parametrize("name", NAMES)
def test_on_the_emulated_gpu(name: str) -> None:
    stock = make(name)
    ours = ym.checkpoint(copy.deepcopy(stock), "min", backend=ce.capsule())
    for _ in range(4):  # the third is a CUDA graph's
        assert_same_training(ours, stock, image(size=16))
    assert ran_in_core(ours) == 4
