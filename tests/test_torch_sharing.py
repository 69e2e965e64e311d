# SPDX-License-Identifier: MIT
"""What shares memory in stock PyTorch shares it here or is refused; a copy is a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Brick, assert_close, image, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym

SHARING: dict[str, Callable[[Tensor], Tensor]] = {
    "method detach": lambda y: y.detach(),
    "torch.detach": torch.detach,
    "data": lambda y: y.data,
    "alias": torch.ops.aten.alias,
    "detach of data": lambda y: y.data.detach(),
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda y: F.relu(y, inplace=True),
    "add_": lambda y: y.add_(y),
    "mul_": lambda y: y.mul_(2),
}


class Shared(nn.Module):
    """Changes a value, or what shares its memory, and returns both."""

    def __init__(self, share: Callable, change: Callable, of_value: bool) -> None:
        super().__init__()
        self.brick, self.last = Brick(3, 6), nn.Conv2d(6, 4, 1)
        self.share, self.change, self.of_value = share, change, of_value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.brick.conv(x)
        seen = self.share(y)
        self.change(y if self.of_value else seen)
        return self.last(y), seen


@pytest.mark.parametrize("of_value", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("share", SHARING)
def test_a_change_of_shared_memory_is_refused(
    share: str, change: str, of_value: bool
) -> None:
    stock = Shared(SHARING[share], CHANGES[change], of_value)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_close(ours(image()), stock(image()))
    assert "view in place" in ym.report(ours).rows[0].detail


@pytest.mark.parametrize("share", SHARING)
def test_shared_memory_that_nobody_changes_is_lowered(share: str) -> None:
    stock = Shared(SHARING[share], lambda y: y, True)
    ours = ym.checkpoint(copy.deepcopy(stock))
    made, expected = ours(image()), stock(image())
    assert_close(made, expected)
    assert ran_in_core(ours) == 1


def test_detaching_in_place_is_refused() -> None:
    module = nn.Sequential(Brick(3, 6), nn.Conv2d(6, 4, 1))
    module[0].act = nn.Identity()
    module[0].act.forward = lambda x: x.detach_()
    with pytest.raises(ym.CannotLower, match="detach_ .*beyond its result"):
        ym.checkpoint(module)(image())
