# SPDX-License-Identifier: MIT
"""Batch norms that a module works out by itself from four vectors, beside stock PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import rule
import torch
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    assert_swapped_whole,
    held_in_core,
    image,
    ran_in_core,
    stocks_bytes,
)
from torch import Tensor, nn

import yolov9mem.torch as ym

EPS = 1e-3
Formula = Callable[["Frozen", Tensor], Tensor]


class Frozen(nn.Module):
    """The four vectors, and how they are used."""

    def __init__(self, c: int, formula: Formula, learns: bool = False) -> None:
        super().__init__()
        self.formula = formula
        for name, vector in (
            ("weight", torch.rand(c) + 0.5),
            ("bias", torch.randn(c)),
            ("running_mean", torch.randn(c)),
            ("running_var", torch.rand(c) + 0.1),
        ):
            if learns and name in ("weight", "bias"):
                self.register_parameter(name, nn.Parameter(vector))
            else:
                self.register_buffer(name, vector)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)

    def shaped(self) -> list[Tensor]:
        every = (self.weight, self.bias, self.running_mean, self.running_var)
        return [vector.reshape(1, -1, 1, 1) for vector in every]


def of_images(m: Frozen, x: Tensor) -> Tensor:
    """As in torchvision and DETR."""
    w, b, mean, var = m.shaped()
    scale = w * (var + EPS).rsqrt()
    bias = b - mean * scale
    return x * scale + bias


def of_vectors(m: Frozen, x: Tensor) -> Tensor:
    """As in detectron2, in another order, with views of three dimensions."""
    scale = torch.rsqrt(EPS + m.running_var) * m.weight
    bias = torch.sub(m.bias, scale * m.running_mean)
    return bias[:, None, None] + scale.view(-1, 1, 1) * x


def by_index(m: Frozen, x: Tensor) -> Tensor:
    scale = m.weight[None, :, None, None] * torch.rsqrt(
        m.running_var.unsqueeze(-1).unsqueeze(-1) + EPS
    )
    y = torch.mul(scale, x)
    y += m.bias.view(1, -1, 1, 1) - m.running_mean[None, :, None, None] * scale
    return y


SAME = (of_images, of_vectors, by_index)


def another_scale(m: Frozen, x: Tensor) -> Tensor:
    w, b, mean, var = m.shaped()
    return x * (w * (var + EPS).rsqrt()) + (b - mean * (w * (var + EPS).rsqrt()))


def read_twice(m: Frozen, x: Tensor) -> Tensor:
    w, b, mean, var = m.shaped()
    scale = w * (var + EPS).rsqrt()
    y = x * scale
    return (y + (b - mean * scale)) * y.tanh()


def scaled_alone(m: Frozen, x: Tensor) -> Tensor:
    w, _, _, var = m.shaped()
    return x * (w * (var + EPS).rsqrt())


def with_a_plus(m: Frozen, x: Tensor) -> Tensor:
    w, b, mean, var = m.shaped()
    scale = w * (var + EPS).rsqrt()
    return x * scale + (b + mean * scale)


def changed_between(m: Frozen, x: Tensor) -> Tensor:
    w, b, mean, var = m.shaped()
    scale = w * (var + EPS).rsqrt()
    x = x + 0.5
    y = x * scale
    x.mul_(0.0)
    return y + (b - mean * scale) + x


def flipped(m: Frozen, x: Tensor) -> Tensor:
    scale = m.weight.flip(0) * (m.running_var + EPS).rsqrt()
    bias = m.bias - m.running_mean * scale
    return x * scale[:, None, None] + bias[:, None, None]


def a_part(m: Frozen, x: Tensor) -> Tensor:
    scale = m.weight[:8] * (m.running_var[:8] + EPS).rsqrt()
    bias = m.bias[:8] - m.running_mean[:8] * scale
    return x[:, :8] * scale[:, None, None] + bias[:, None, None]


def of_a_square(m: Frozen, x: Tensor) -> Tensor:
    """A row times a column: one number for each pair of channels."""
    grid = m.weight * (m.running_var + EPS).rsqrt()[:, None]
    scale = grid[:, :1].reshape(1, -1, 1, 1)
    bias = m.bias.view(1, -1, 1, 1) - m.running_mean.view(1, -1, 1, 1) * scale
    return x * scale + bias


OTHERS = (
    another_scale,
    read_twice,
    scaled_alone,
    with_a_plus,
    changed_between,
    flipped,
    a_part,
    of_a_square,
)


def net(formula: Formula, learns: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    last = 8 if formula is a_part else 12
    norm = Frozen(12, formula, learns)
    return nn.Sequential(Brick(3, 12, 3), norm, nn.ReLU(), Brick(last, 8, 3))


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("formula", SAME)
def test_it_is_a_batch_norm_of_its_graph(
    formula: Formula, learns: bool, keep: str
) -> None:
    assert_swapped_whole(net(formula, learns), keep)


@pytest.mark.parametrize("formula", SAME)
def test_it_is_held_as_one_of_pytorchs_own(formula: Formula) -> None:
    plain = net(formula)
    plain[1] = nn.BatchNorm2d(12).eval().requires_grad_(False)
    assert held_in_core(net(formula), 32) == held_in_core(plain, 32)


@pytest.mark.parametrize("learns", [False, True])
def test_stocks_bytes_are_those_of_the_product(learns: bool) -> None:
    """Which keeps its other factor only where the scale learns."""
    said, held = stocks_bytes(net(of_images, learns), image(size=32))
    small = 2**11
    assert abs(said - held) < small


def test_where_all_norms_are_written_so_conv_gains_nothing() -> None:
    """A result of relu to a convolution is all that stock PyTorch keeps."""
    torch.manual_seed(3)
    pairs = [
        part
        for _ in range(4)
        for part in (nn.Conv2d(12, 12, 3, bias=False), Frozen(12, of_images), nn.ReLU())
    ]
    stock = nn.Sequential(*pairs)
    ran = {}
    for keep in ("conv", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
        assert_same_training(ours, stock, image(c=12, size=32))
        ran[keep] = ran_in_core(ours)
    assert ran == {"conv": 0, "min": 1}


def test_it_keeps_the_error_rule() -> None:
    rule.check(lambda: net(of_images), [(2, 3, 13, 17)])


@pytest.mark.parametrize("formula", SAME)
def test_vectors_are_read_anew_in_every_step(formula: Formula) -> None:
    stock = net(formula)
    ours = ym.checkpoint(copy.deepcopy(stock))
    for step in range(3):
        for module in (stock, ours):
            with torch.no_grad():
                module[1].running_mean.add_(step)
                module[1].weight.mul_(2)
                module[1].running_var = module[1].running_var + 1
        assert_same_training(ours, stock, image(size=32))


@pytest.mark.parametrize("formula", [*SAME, *OTHERS])
def test_under_autocast(formula: Formula) -> None:
    stock = net(formula)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_training(ours, stock, image(size=32), tolerance=0.06)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("formula", OTHERS)
def test_what_is_none_is_none(formula: Formula, learns: bool) -> None:
    # The gradient of a weight would read what was changed.
    stock = net(formula, learns and formula is not changed_between)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(2):
        assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 2


def test_statistics_that_learn_get_their_gradients() -> None:
    stock = net(of_images)
    for name in ("running_mean", "running_var"):
        vector = stock[1]._buffers.pop(name)
        stock[1].register_parameter(name, nn.Parameter(vector))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
    assert stock[1].running_var.grad is not None


def test_so_do_buffers_that_want_one() -> None:
    stock = net(of_images)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for module in (stock, ours):
        module[1].running_mean.requires_grad_()
    assert_same_training(ours, stock, image(size=32))
    assert_close(ours[1].running_mean.grad, stock[1].running_mean.grad)


@pytest.mark.parametrize("learns", [False, True])
def test_a_weight_that_is_the_bias_as_well(learns: bool) -> None:
    stock = net(of_images, learns)
    stock[1].bias = stock[1].weight
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))


def test_a_scale_that_is_changed_after_its_product() -> None:
    """Where nothing before wants a gradient: else it is an error of autograd's."""

    def formula(m: Frozen, x: Tensor) -> Tensor:
        w, b, mean, var = m.shaped()
        scale = w * (var + EPS).rsqrt()
        y, bias = x * scale, b - mean * scale
        scale.mul_(0.25)
        return y.cos() + bias + scale

    torch.manual_seed(3)
    first = Brick(3, 12, 3).requires_grad_(False)
    stock = nn.Sequential(first, Frozen(12, formula), Brick(12, 8, 3))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(2):
        assert_same_training(ours, stock, image(size=32))
