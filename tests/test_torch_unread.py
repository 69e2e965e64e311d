# SPDX-License-Identifier: MIT
"""Stock calls whose results nobody reads, and which do something beside."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Brick, assert_close, image, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym


def draws(m: Unread, x: Tensor) -> None:
    F.dropout(x.mean((2, 3)), 0.5)


def draws_after_more(m: Unread, x: Tensor) -> None:
    torch.rand_like(x.softmax(1)[:, 0] * 2)


def moves_statistics(m: Unread, x: Tensor) -> None:
    m.norm(x.mean((2, 3)))


def moves_those_of_rows(m: Unread, x: Tensor) -> None:
    m.norm(x.flatten(2))


class Unread(nn.Module):
    """An auxiliary branch whose result the loss does not use."""

    def __init__(self, aside: Callable[[Unread, Tensor], None]) -> None:
        super().__init__()
        self.first, self.second = Brick(3, 8, 3), nn.Linear(8, 4)
        self.norm, self.aside = nn.BatchNorm1d(8), aside

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.aside(self, x)
        return self.second(F.dropout(x.mean((2, 3)), 0.5))


def check(stock: Unread, keep: str, strict: bool) -> None:
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=strict)
    found = []
    for module in (stock, ours):
        torch.manual_seed(1)
        module(image()).square().sum().backward()
        found.append((torch.rand(()).item(), dict(module.named_buffers())))
    assert found[0][0] == found[1][0]
    assert_close(found[1][1], found[0][1])
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or assert_close(a.grad, b.grad) is None
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize(
    "aside", [draws, draws_after_more, moves_statistics, moves_those_of_rows]
)
def test_it_still_draws_and_moves_statistics(
    aside: Callable[[Unread, Tensor], None], keep: str
) -> None:
    torch.manual_seed(0)
    check(Unread(aside), keep, strict=False)


@pytest.mark.parametrize("aside", [draws, draws_after_more])
def test_it_does_in_a_strict_recording(aside: Callable[[Unread, Tensor], None]) -> None:
    torch.manual_seed(0)
    stock = Unread(aside)
    stock.second = nn.Identity()
    check(stock, "conv", strict=True)


def test_random_draws_in_forward_move_the_generators_as_in_stock() -> None:
    class Draws(Brick):
        def forward(self, x):
            torch.rand(3)
            if self.decides:
                random.random()
            return super().forward(x)

    stock = Draws(3, 4)
    stock.decides = False
    module = ym.checkpoint(copy.deepcopy(stock))
    python, states = random.getstate(), []
    for each in (stock, module):
        torch.manual_seed(3)
        each(image(size=32))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    module.decides = True
    with pytest.raises(ym.CannotLower, match="forward draws from"):
        module(image(size=32))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == python
