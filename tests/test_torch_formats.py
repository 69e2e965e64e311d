# SPDX-License-Identifier: MIT
"""Dtypes and memory layouts of inputs, parameters and gradients."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from models_for_tests import (
    Brick,
    Elan,
    assert_close,
    assert_same_gradients,
    assert_same_training,
    backward,
    grads,
    image,
    leaves,
    pair,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym


# Dtypes
def bf16_close(ours: object, stock: object) -> None:
    assert_close(ours, stock, 0.1)


def test_autocast_bf16() -> None:
    ours, stock = pair()
    made = {}
    for key, module in (("ours", ours), ("stock", stock)):
        with torch.autocast("cpu", torch.bfloat16):
            made[key] = module(image())
        backward(made[key])
    bf16_close(made["ours"], made["stock"])
    assert {leaf.dtype for leaf in leaves(made["ours"])} == {torch.bfloat16}
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}
    bf16_close(list(grads(ours).values()), list(grads(stock).values()))
    ours.load_state_dict(stock.state_dict())
    assert_same_training(ours, stock, image())  # and fp32 after it


def test_bfloat16_module() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4).bfloat16())
    assert_same_training(ours, stock, image().bfloat16(), tolerance=0.1)
    assert {p.grad.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.cv1.bn.running_mean.dtype == torch.bfloat16
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_an_image_of_another_dtype_is_stocks_error(bias: bool, strict: bool) -> None:
    stock = nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.SiLU(), nn.Conv2d(8, 4, 1))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    for dtype in (torch.float16, torch.bfloat16):
        x = image().to(dtype)
        with pytest.raises(RuntimeError) as expected:
            stock(x)
        with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
            ours(x)


def test_half_module_is_computed_in_float() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4).half())
    made = ours(image().half())
    assert made.dtype == torch.float16
    made.backward(torch.ones_like(made))
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float16}
    assert_close(made, stock.float()(image().half().float()).half(), 0.02)


# Layouts
@pytest.mark.parametrize("layout", ["planar", "channels_last", "crop"])
def test_layouts_are_read_or_converted_and_counted(layout: str) -> None:
    """A plan packs what comes planar; of others a copy is made, for each direction."""
    ours, stock = pair(lambda: Elan(8, 8, 4))
    x = image(2, 8)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "crop":
        x = image(2, 8, 20)[..., 2:-2, 2:-2]
    made = ours(x)
    assert made.is_contiguous(memory_format=torch.channels_last)
    made.backward(torch.ones_like(made))
    row = ym.report(ours).rows[0]
    assert row.inputs_converted == (2 if layout == "crop" else 0)
    assert row.gradients_converted == 0
    stock(x).sum().backward()
    assert_same_gradients(ours, stock)
    ours.zero_grad()
    ours(x).sum().backward()  # an expanded gradient
    assert ym.report(ours).rows[0].gradients_converted == 1


@pytest.mark.parametrize(
    "shape", [(3, 1, 8, 8), (4, 5, 1, 1), (1, 6, 1, 9), (2, 6, 9, 1)]
)
def test_sizes_of_one(shape: tuple[int, ...]) -> None:
    c = shape[1]
    ours, stock = pair(
        lambda: nn.Sequential(nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6), nn.SiLU())
    )
    x = torch.randn(shape)
    assert_same_training(ours, stock, x)
    ours, stock = pair(lambda: nn.Sequential(nn.Conv2d(c, 1, 1), nn.SiLU()))
    assert_same_training(ours, stock, x.to(memory_format=torch.channels_last))


def test_channels_last_weights_get_gradients_of_their_layout() -> None:
    module = ym.checkpoint(Brick(8, 8, 3).to(memory_format=torch.channels_last))
    module(image(2, 8)).sum().backward()
    assert module.conv.weight.grad.stride() == module.conv.weight.stride()


def test_strided_inputs_and_gradients() -> None:
    ours, stock = pair(lambda: Brick(3, 4, 3))
    wide = torch.randn(2, 6, 16, 20)
    for module in (ours, stock):
        out = module(wide[:, ::2, 1:, ::2])
        out.backward(torch.ones(2, 4, 15, 20)[..., ::2])
    assert_same_gradients(ours, stock)


class Counting(nn.Module):
    """Runs stock, as its forward changes it; its children are swapped."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        bricks = (Brick(3, 8, 3), nn.MaxPool2d(2), Brick(8, 8, 3))
        self.features, self.end, self.calls = nn.Sequential(*bricks), end, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.end(self.features(x))


def doubled_in_rows(x: Tensor) -> Tensor:
    """The rows are a view of what is contiguous, and else a copy."""
    x.reshape(2, -1).mul_(2)
    return x


@pytest.mark.parametrize("end", [lambda x: x.view(2, -1), doubled_in_rows])
def test_a_stock_parent_finds_its_children_s_results_contiguous(
    end: Callable[[Tensor], Tensor],
) -> None:
    ours, stock = pair(lambda: Counting(end), strict=False)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 2


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.transpose(2, 3),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.to(memory_format=torch.channels_last)[..., ::2],
    ],
)
def test_children_of_a_stock_parent_lay_out_as_stock_does(
    layout: Callable[[Tensor], Tensor], weights: torch.memory_format
) -> None:
    def make() -> nn.Module:
        return Counting(lambda x: x).to(memory_format=weights)

    ours, stock = pair(make, strict=False)
    made, expected = ours(layout(image())), stock(layout(image()))
    assert made.stride() == expected.stride()
    assert_close(made, expected)
    assert ran_in_core(ours) == 1
