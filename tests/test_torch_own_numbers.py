# SPDX-License-Identifier: MIT
"""Sums and products with a parameter of one number for each channel, or one for all,
beside stock PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import cuda_emulation as ce
import pytest
import rule
import torch
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    assert_swapped_whole,
    backward,
    held_in_core,
    image,
    ran_in_core,
    stocks_bytes,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry

C = 12
Formula = Callable[["Own", Tensor], Tensor]


class Own(nn.Module):
    """Two parameters, and how they are used."""

    def __init__(self, formula: Formula, *shape: int) -> None:
        super().__init__()
        self.formula = formula
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)
        self.shift = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(self, x)


def block(m: Own, x: Tensor) -> Tensor:
    return m.scale * x + m.shift


def viewed(m: Own, x: Tensor) -> Tensor:
    return torch.add(
        x.mul(m.scale.view(1, -1, 1, 1)), m.shift[:, None, None].unsqueeze(0)
    )


def in_place(m: Own, x: Tensor) -> Tensor:
    x = x + 0.5
    x += m.shift
    x.mul_(m.scale.data)
    x *= m.scale
    return x + x


def shortcut(m: Own, x: Tensor) -> Tensor:
    return x + m.scale.reshape(-1, 1, 1) * x.relu()


def called_twice(m: Own, x: Tensor) -> Tensor:
    return (x * m.scale + (x + m.scale) * m.scale) + m.shift


def before_a_relu(m: Own, x: Tensor) -> Tensor:
    return (x * m.scale).relu() + (x + m.shift).relu()


def expanded(m: Own, x: Tensor) -> Tensor:
    """As YOLOR writes it."""
    x = m.scale.expand_as(x) * x
    return m.shift.expand(x.shape[0], C, x.shape[2], -1) + x


ALL = {  # formula and shape of the parameters
    "one": (block, ()),
    "one in a vector": (block, (1,)),
    "one in four dimensions": (block, (1, 1, 1, 1)),
    "each": (block, (1, C, 1, 1)),
    "each, of an image": (block, (C, 1, 1)),
    "each, viewed": (viewed, (C,)),
    "each, expanded": (expanded, (1, C, 1, 1)),
    "one, expanded": (expanded, (1, 1, 1, 1)),
    "shortcut, each": (shortcut, (C,)),
    "shortcut, one": (shortcut, (1,)),
    "twice, each": (called_twice, (1, C, 1, 1)),
    "twice, one": (called_twice, ()),
    "relu, each": (before_a_relu, (1, C, 1, 1)),
    "relu, one": (before_a_relu, (1,)),
}


def net(formula: Formula, shape: tuple[int, ...]) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(Brick(3, C, 3), Own(formula, *shape), Brick(C, 8, 3))


def case(name: str) -> nn.Sequential:
    return net(*ALL[name])


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", ALL)
def test_it_is_in_the_graph(name: str, keep: str) -> None:
    assert_swapped_whole(case(name), keep)


@pytest.mark.parametrize("name", ["one", "each", "each, viewed", "twice, one"])
def test_it_keeps_the_error_rule(name: str) -> None:
    rule.check(lambda: case(name), [(2, 3, 13, 17)])


@pytest.mark.parametrize("name", ["one", "each"])
def test_nothing_is_held_for_it_but_a_convolutions_result(name: str) -> None:
    plain = case(name)
    plain[1] = nn.Identity()
    vectors = 4 * 4 * 64  # of two calls: mean, rstd, and what is one number
    assert 0 <= held_in_core(case(name), 32) - held_in_core(plain, 32) <= vectors


@pytest.mark.parametrize("name", ["each", "each, expanded"])
def test_stocks_bytes_are_those_of_the_product_too(name: str) -> None:
    """Whose other factor autograd keeps."""
    said, held = stocks_bytes(case(name), image(size=32))
    small = 2**10
    assert abs(said - held) < small


def test_other_readers_of_an_expanded_parameter() -> None:
    """Which is a stock call for them."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Brick(3, C, 3), Brick(C, 8, 3)
            self.scale = nn.Parameter(torch.rand(1, C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            scale = self.scale.expand_as(y)
            return self.last(scale * y + torch.sin(scale) * y)

    torch.manual_seed(3)
    stock = Shared()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for size in (32, 24):
        assert_same_training(ours, stock, image(size=size))
    assert ran_in_core(ours) == 2


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (1, C, 1, 1), (C, 1, 1)])
def test_the_last_of_a_convolution_is_left(
    shape: tuple[int, ...], strict: bool
) -> None:
    """As YOLOv7's ImplicitM: the convolution's result, which both hold, is handed out."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = Brick(3, 8, 3), nn.Conv2d(8, C, 1)
            self.own = Own(lambda m, x: (x + m.shift) * m.scale, *shape)

        def forward(self, x: Tensor) -> Tensor:
            return self.own(self.conv(self.first(x)))

    torch.manual_seed(3)
    stock = Head()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    for size in (32, 24):
        assert_same_training(ours, stock, image(size=size))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(image()).dtype == stock(image()).dtype
        assert_same_training(ours, stock, image(), tolerance=0.06)
    rows = {row.path: row.detail for row in ym.report(ours).rows}
    assert ran_in_core(ours) == 4 and "own" not in rows


@pytest.mark.parametrize("name", ["one", "each"])
def test_gradients_are_added_where_they_are(name: str) -> None:
    stock = case(name)
    ours = ym.checkpoint(copy.deepcopy(stock))
    for module in (ours, stock):
        for _ in range(3):
            backward(module(image(size=32)))
    assert_close(ours[1].scale.grad, stock[1].scale.grad)
    assert_close(ours[1].shift.grad, stock[1].shift.grad)
    place = ours[1].scale.grad.data_ptr()
    backward(ours(image(size=32)))
    assert ours[1].scale.grad.data_ptr() == place


@pytest.mark.parametrize("name", ["one", "each", "each, viewed", "shortcut, one"])
@pytest.mark.parametrize("frozen", ["scale", "shift", "both"])
def test_frozen_ones(name: str, frozen: str) -> None:
    stock = case(name)
    for parameter in ("scale", "shift") if frozen == "both" else (frozen,):
        getattr(stock[1], parameter).requires_grad_(False)
    ours = ym.checkpoint(copy.deepcopy(stock), "min")
    assert_same_training(ours, stock, image(size=32))


@pytest.mark.parametrize("name", ALL)
def test_under_autocast(name: str) -> None:
    stock = case(name)
    ours = ym.checkpoint(copy.deepcopy(stock))
    with torch.autocast("cpu", torch.bfloat16):
        made, expected = ours(image(size=32)), stock(image(size=32))
        assert made.dtype == expected.dtype
        assert_same_training(ours, stock, image(size=32), tolerance=0.06)


@pytest.mark.parametrize("name", ["one", "each", "each, viewed"])
def test_a_model_in_bfloat16(name: str) -> None:
    stock = case(name).bfloat16()
    ours = ym.checkpoint(copy.deepcopy(stock))
    x = image(size=32).bfloat16()
    assert_same_training(ours, stock, x, tolerance=0.08)
    assert ours[1].scale.grad.dtype == torch.bfloat16


def test_what_is_behind_it_has_the_dtype_that_it_has_in_stock() -> None:
    """A number in no dimension leaves the dtype, one in a vector does not."""
    for shape in ((), (1,)):
        stock = nn.Sequential(nn.Conv2d(3, 4, 1), Own(block, *shape))
        ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
        with torch.autocast("cpu", torch.bfloat16):
            assert ours(image(size=8)).dtype == stock(image(size=8)).dtype


def test_changes_in_place() -> None:
    stock = net(in_place, (1, C, 1, 1))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for module in (ours, stock):
        module[1].scale.requires_grad_(False)  # else it is an error of autograd's
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1


def test_a_parameter_that_is_changed_between_steps() -> None:
    for name in ("one", "each"):
        stock = case(name)
        ours = ym.checkpoint(copy.deepcopy(stock))
        for step in range(3):
            for module in (ours, stock):
                with torch.no_grad():
                    module[1].scale.mul_(2)
                    module[1].shift.data = module[1].shift.data.clone() + step
            assert_same_training(ours, stock, image(size=32))


def test_one_of_another_shape_afterwards() -> None:
    stock = case("each")
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    for module in (ours, stock):
        module[1].scale = nn.Parameter(torch.full((1,), 0.5))
    assert_same_training(ours, stock, image(size=32))


@pytest.mark.parametrize(
    "formula",
    [
        lambda m, x: x * m.scale.flip(0)[:, None, None] + m.shift.sum(),
        lambda m, x: x * m.scale.view(3, 4)[:, :1].repeat(4, 1)[:, :, None],
        lambda m, x: x * m.scale[: x.shape[3]] if x.shape[3] < C else x * 1.5,
        lambda m, x: torch.add(x, m.shift.view(1, -1, 1, 1), alpha=2),
        lambda m, x: x * m.scale.view(1, -1, 1, 1).expand(x.shape[0], -1, 1, 1),
        lambda m, x: m.shift[3] + x * m.scale[0],
    ],
)
def test_other_numbers_stay_stock(formula: Formula) -> None:
    stock = net(formula, (C,))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for size in (32, 9):
        assert_same_training(ours, stock, image(size=size))


def test_added_to_what_has_no_gradient() -> None:
    """The sum has one: of what is made of it autograd keeps as much as of others."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Brick(3, C, 3), Brick(C, 8, 3)
            self.shift = nn.Parameter(torch.rand(C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            mask = torch.full(x.shape, 0.5)
            return self.last(x * mask * torch.sigmoid(mask + self.shift))

    torch.manual_seed(3)
    stock = Gated()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
    (lowered,) = registry.runner_of(ours).lowered.values()
    nodes = [node for part in lowered.recording.parts for node in part.nodes]
    assert "sigmoid" in [node.attributes[0] for node in nodes if node.attributes]


def test_a_weight_that_is_numbers_of_channels_as_well() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, C, 3)
            self.weight = nn.Parameter(torch.rand(1, C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.brick(x) * self.weight
            return nn.functional.conv2d(x, self.weight)

    torch.manual_seed(3)
    stock = Both()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
    with pytest.raises(NotImplementedError, match="a weight in one call and numbers"):
        ym.checkpoint(copy.deepcopy(stock))(image(size=32))


@pytest.mark.parametrize("name", ALL)
def test_on_the_emulated_gpu(name: str) -> None:
    stock = case(name)
    ours = ym.checkpoint(copy.deepcopy(stock), "min", backend=ce.capsule())
    for _ in range(4):  # the third is a CUDA graph's
        assert_same_training(ours, stock, image(size=16))
    assert ran_in_core(ours) == 4
