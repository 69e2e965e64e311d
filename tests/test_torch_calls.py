# SPDX-License-Identifier: MIT
"""How a module calls torch and is called itself, where that is not the usual way."""

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

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "max(axis=)": lambda x: x.max(axis=1).values,
    "mean(axis=)": lambda x: torch.mean(x, axis=(2, 3), keepdims=True),
    "max(other=)": lambda x: torch.max(x, other=x.cos()),
    "add(out=)": lambda x: torch.add(x.detach(), 1, out=torch.empty_like(x.detach())),
    "dropout(train=)": lambda x: torch.dropout(x, 0.5, train=False),
    "no stride": lambda x: F.max_pool2d(x, [2, 2], []),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, None, None, None, None, True, 0.1, 1e-5, False
    ),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_of_known_calls(name: str, strict: bool) -> None:
    class Both(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.brick, self.function = Brick(3, 6, 3), function

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.brick(x)
            return x.sum(), self.function(x)

    stock = Both(SPELLINGS[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    x = image()
    outputs = []
    for module in (ours, stock):
        made = module(x)
        made[0].backward()
        outputs.append([*made, *(p.grad for p in module.parameters())])
    for mine, theirs in zip(*outputs, strict=True):
        assert_close(mine.detach(), theirs.detach())
    assert ran_in_core(ours) == 1


def test_names_of_numpy_are_those_of_torch() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Brick(3, 6, 3), Brick(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x * x.max(axis=1, keepdims=True).values * x.mean(axis=1, keepdims=True)
            return self.b(torch.cat((x, x * 2), axis=1))

    stock = Named()
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1


def test_linear_of_one_channel_a_row() -> None:
    """A view (C, 1) of the one pixel of the one image."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick, self.row = Brick(3, 6, 3), nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.row(self.brick(x).mean((2, 3)).view(-1, 1))

    stock = Rows()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(n=1))
    assert ran_in_core(ours)


def test_a_norm_whose_weight_is_its_bias() -> None:
    stock = nn.Sequential(Brick(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), Brick(6, 4, 3))
    stock[1].bias = stock[1].weight
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())
    with pytest.raises(ym.CannotLower, match="its weight is its bias as well"):
        ym.checkpoint(copy.deepcopy(stock))(image())


def test_the_same_tensor_given_twice() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            made = self.brick(a)
            return made if a is b else made + self.brick(b)

    stock = Pair()
    ours = ym.checkpoint(copy.deepcopy(stock))
    x = image()
    y = x.flip(0)
    for a, b in ((x, x), (x, y), (y, y), (x, y.clone())):
        for module in (ours, stock):
            module.zero_grad()
            module(a, b).square().mean().backward()
        for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
            assert_close(p.grad, q.grad)
        assert_close(dict(ours.named_buffers()), dict(stock.named_buffers()))
    assert ran_in_core(ours) == 4


def test_a_part_that_is_its_own_copy_is_left_as_it_was() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(6, momentum=None)

        def __deepcopy__(self, memo: object) -> nn.Module:
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)

    module = nn.Sequential(Brick(3, 6, 3), Shared())
    with pytest.raises(ym.CannotLower, match="its deepcopy is the module itself"):
        ym.checkpoint(module)(image())
    ym.release(module)
    assert module[1].norm.momentum is None
    module(image())
    assert module[1].norm.num_batches_tracked == 1


class Sizes(nn.Module):
    """Hands out sizes, takes them, and makes tensors of them, all as a torch.Size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Brick(3, 4), Brick(4, 4)

    def forward(self, x: Tensor, wanted: torch.Size) -> tuple[Tensor, torch.Size, int]:
        x = self.first(x)
        x = x + x.new(x.size()[1:]).fill_(wanted.numel())
        return self.last(x), x.size(), wanted.numel()


def test_sizes_stay_sizes() -> None:
    stock = Sizes()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(2):
        made, expected = (m(image(), torch.Size((2, 3))) for m in (ours, stock))
        assert_close(made[0], expected[0])
        assert made[1:] == expected[1:]
        assert type(made[1]) is torch.Size
    assert ran_in_core(ours) == 2
