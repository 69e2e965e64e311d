# SPDX-License-Identifier: MIT
"""Dtypes and memory layouts of inputs, parameters and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Apply,
    Brick,
    Elan,
    assert_close,
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
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)
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
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


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


# Memory order
def keeps_order(x: Tensor) -> Tensor:
    return x + torch.randn_like(x) * torch.rand(x.shape)


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 1.5
    some = y[:, 1:]
    F.dropout(y, inplace=True)
    return F.pad(some, (0, 0, 0, 0, 0, 1))


def of_tokens(x: Tensor) -> Tensor:
    tokens = F.dropout(x.flatten(2).transpose(1, 2))
    return tokens.transpose(1, 2).reshape(x.shape)


DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": F.dropout,
    "randn_like": keeps_order,
    "empty_like": lambda x: x + torch.empty_like(x).uniform_(),
    "dropout in place": lambda x: F.dropout(x, inplace=True),
    "rrelu in place": lambda x: F.rrelu(x, training=True, inplace=True),
    "in place": lambda x: x * (x * 0).bernoulli_(0.5),
    "through a view": seen_through_a_view,
    "tokens": of_tokens,
    "every second": lambda x: F.dropout(x[..., ::2]),
    "expanded": lambda x: F.dropout(x[:, :1].expand(-1, 8, -1, -1)),
}


def assert_draws_as(stock: nn.Module, x: Tensor, keep: str, tolerance: float) -> None:
    """Results, gradients and the generator afterwards; tolerance: of gradients."""
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    made = []
    for module in (ours, stock):
        torch.manual_seed(5)
        made.append(module(x))
        made[-1].square().mean().backward()
        made.append(torch.get_rng_state())
    assert_close(made[0], made[2])
    assert torch.equal(made[1], made[3])
    assert_close(list(grads(ours).values()), list(grads(stock).values()), tolerance)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", DRAWN)
def test_random_numbers_are_drawn_in_the_order_of_stock(name: str, order) -> None:
    stock = Apply(DRAWN[name]).to(memory_format=order)
    x = image().contiguous(memory_format=order)
    assert_draws_as(stock, x, "conv", 1e-4)


ORDERS: dict[str, Callable[[Own, Tensor], Tensor]] = {
    "convolution": lambda m, x: m.conv(x),
    "batch norm": lambda m, x: m.norm(x),
    "activation": lambda m, x: F.silu(x),
    "pool": lambda m, x: F.max_pool2d(x, 3, 1, 1),
    "upsampling": lambda m, x: F.interpolate(x, scale_factor=2),
    "sum": lambda m, x: x + x.relu(),
    "sum with a number": lambda m, x: 0.5 + x,
    "product": lambda m, x: x * m.conv(x).sigmoid(),
    "gate": lambda m, x: x.mean((2, 3), keepdim=True) * x,
    "parameter": lambda m, x: m.scale * x,
    "concatenation": lambda m, x: torch.cat((x, m.norm(x)), 1)[:, 4:12],
    "concatenation of both": lambda m, x: torch.cat((x, x.contiguous()), 1)[:, 4:12],
    "slice": lambda m, x: F.relu(x[:, 2:6]).repeat(1, 2, 1, 1),
    "copy": lambda m, x: x.clone(),
    "contiguous copy": lambda m, x: x.contiguous(),
    "the same again": lambda m, x: x.contiguous(memory_format=torch.channels_last),
    "group norm": lambda m, x: F.group_norm(x, 2),
    "channel shuffle": lambda m, x: F.channel_shuffle(x, 2),
    "roll": lambda m, x: x.roll(1, 2),
    "reflection": lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "replication": lambda m, x: F.pad(x, (1, 1, 1, 1), "replicate"),
    "log sigmoid": lambda m, x: F.logsigmoid(x),
    "RReLU": lambda m, x: F.rrelu(x, training=True),
    "and back": lambda m, x: x.contiguous().to(memory_format=torch.channels_last),
}


class Own(nn.Module):
    """Makes values channels_last by itself, as models with layer norms between do."""

    def __init__(self, order: str, drawn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(Brick(3, 8, 3), Brick(8, 8))
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.layer_norm, self.norm = nn.LayerNorm(8), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.order, self.drawn = order, drawn
        self.last = nn.Sequential(Brick(8, 4), Brick(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).permute(0, 2, 3, 1)
        x = self.norm(self.layer_norm(x).permute(0, 3, 1, 2))
        return self.last(self.drawn(ORDERS[self.order](self, x)))


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("drawn", ["dropout", "randn_like", "tokens"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_models_own_order_is_that_of_stock(order: str, drawn: str, keep: str) -> None:
    if order == "channel shuffle" and torch.__version__.startswith("2.4."):
        pytest.skip("PyTorch 2.4 has no derivative of channel_shuffle")
    torch.manual_seed(0)
    stock = Own(order, DRAWN[drawn])
    assert_draws_as(stock, image(), keep, 1e-3)


@pytest.mark.parametrize("first", ["contiguous", "channels_last"])
def test_each_layout_of_an_image_has_a_recording(first: str) -> None:
    """Of one size: dropout draws other numbers for the other layout."""
    torch.manual_seed(0)
    stock = Apply(DRAWN["dropout"])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    images = [image(), image().contiguous(memory_format=torch.channels_last)]
    for x in images if first == "contiguous" else images[::-1]:
        made = []
        for module in (ours, stock):
            torch.manual_seed(5)
            made.append(module(x))
        assert_close(*made)
    assert ran_in_core(ours) == 2
