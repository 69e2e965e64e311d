# SPDX-License-Identifier: MIT
"""Random numbers are drawn in the order of memory that values have in stock PyTorch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Apply,
    Brick,
    assert_close,
    image,
    ran_in_core,
    trained_with_seed,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.layout import follows_channels_last


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
    "native dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "sizes": lambda x: x + x.data.new(x.size()).normal_(),
    "every second": lambda x: F.dropout(x[..., ::2]),
    "expanded": lambda x: F.dropout(x[:, :1].expand(-1, 8, -1, -1)),
}


def assert_draws_as(stock: nn.Module, x: Tensor, keep: str, tolerance: float) -> None:
    """Results, gradients and the generator afterwards; tolerance: of gradients."""
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    made, expected = (trained_with_seed(module, x) for module in (ours, stock))
    assert_close(made[0], expected[0])
    assert torch.equal(made[2], expected[2])
    assert_close(made[1], expected[1], tolerance)
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


def assert_draw_as_one(ours: nn.Module, stock: nn.Module, x: Tensor) -> None:
    made = []
    for module in (ours, stock):
        torch.manual_seed(5)
        made.append(module(x))
        made.append(torch.get_rng_state())
    assert_close(made[0], made[2])
    assert torch.equal(made[1], made[3])


@pytest.mark.parametrize("drawn", ["dropout", "randn_like"])
@pytest.mark.parametrize("first", ["contiguous", "channels_last"])
@pytest.mark.parametrize("of", ["image", "weights"])
def test_each_layout_has_a_recording(of: str, first: str, drawn: str) -> None:
    """Of one size: other numbers are drawn for another layout of image or weights."""
    torch.manual_seed(0)
    stock = Apply(DRAWN[drawn])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    orders = [torch.contiguous_format, torch.channels_last, torch.contiguous_format]
    for order in orders[first == "channels_last" :]:
        x = image()
        if of == "image":
            x = x.contiguous(memory_format=order)
        else:
            stock.to(memory_format=order)
            ours.to(memory_format=order)
        assert_draw_as_one(ours, stock, x)
        assert_draw_as_one(ours, stock, x[..., :8])  # another size
    assert ym.report(ours).rows[0].reasons == ()


GREY: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "from NumPy": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "contiguous": lambda x: x,
    "of a wider one": lambda x: torch.cat((x, x), 3)[..., : x.shape[3]],
    "one number": lambda x: x[:, :, :1, :1].expand(-1, -1, *x.shape[2:]),
}


@pytest.mark.parametrize("drawn", ["dropout", "randn_like"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", GREY)
def test_grey_images_in_any_layout(layout: str, channels: int, drawn: str) -> None:
    """Of one channel a tensor can be contiguous and, for PyTorch, channels_last too."""
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Conv2d(channels, 3, 1), Apply(DRAWN[drawn]))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_draw_as_one(ours, stock, GREY[layout](image(c=channels)))
    assert ran_in_core(ours) == 1


@pytest.mark.skipif(
    torch.__version__.startswith("2.4."),
    reason="its Python rule is not yet that of C++",
)
def test_what_follows_channels_last_is_what_pytorch_says() -> None:
    told = []
    for sizes in itertools.product((1, 2, 3), repeat=4):
        for order in itertools.permutations(range(4)):
            for cut in range(4):
                x = torch.empty(sizes).permute(order)
                x = x.narrow(cut, 0, 1) if cut else x[..., ::2]
                told.append(follows_channels_last(x))
                wanted = torch._prims_common.suggest_memory_format(x)
                assert told[-1] == (wanted is torch.channels_last), x.stride()
    assert 300 < sum(told) < len(told) - 300
    assert not follows_channels_last(torch.empty(2, 0, 3, 3).permute(0, 3, 1, 2))
    assert not follows_channels_last(torch.empty(2, 1, 3, 3).expand(-1, 4, -1, -1))
