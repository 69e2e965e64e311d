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


COPIED: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda y: y.clone(),
    "clone of a clone": lambda y: y.clone().clone(),
    "plus zero": lambda y: y + 0,
    "zero plus": lambda y: 0.0 + y,
    "upsample to the same size": lambda y: F.interpolate(y, size=y.shape[2:]),
    "stack of one": lambda y: torch.stack((y,)).sum(0),
    "contiguous": lambda y: y.contiguous(),
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "dropout": lambda y: F.dropout(y, 0.0),
    "itself": lambda y: y,
}


def two(copied: Callable, y: Tensor) -> tuple[Tensor, ...]:
    return copied(y), copied(y)


def view_of_copy(copied: Callable, y: Tensor) -> tuple[Tensor, ...]:
    return y, copied(y).unsqueeze(0)


def view_of_original(copied: Callable, y: Tensor) -> tuple[Tensor, ...]:
    return y.detach().unsqueeze(0), copied(y)


def three(copied: Callable, y: Tensor) -> tuple[Tensor, ...]:
    return copied(y), y, copied(y)


class Pair(nn.Module):
    """A value, or what it is given, and a copy."""

    def __init__(self, pair: Callable, copied: Callable, of_input: bool) -> None:
        super().__init__()
        self.brick, self.pair, self.copied = Brick(3, 6), pair, copied
        self.of_input = of_input

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.brick(x)
        return *self.pair(self.copied, x if self.of_input else y), y


def shared(tensors: list[Tensor]) -> list[bool]:
    """By pair of tensors: is it the same memory?"""
    places = [tensor.data_ptr() for tensor in tensors]
    return [a == b for i, a in enumerate(places) for b in places[:i]]


@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("pair", [two, view_of_copy, view_of_original, three])
@pytest.mark.parametrize("copied", COPIED)
def test_results_share_memory_as_in_stock(
    copied: str, pair: Callable, of_input: bool
) -> None:
    stock = Pair(pair, COPIED[copied], of_input)
    ours = ym.checkpoint(copy.deepcopy(stock))
    x, same = image(), image()
    made, expected = ours(x), stock(same)
    assert_close(made, expected)
    assert ran_in_core(ours) == 1
    assert shared([x, *made]) == shared([same, *expected])
    for out in (made, expected):
        sum(leaf.square().sum() for leaf in out if leaf.requires_grad).backward()
    assert_close(*([p.grad for p in model.parameters()] for model in (ours, stock)))


def test_copies_that_nobody_can_tell_are_not_made() -> None:
    class Copying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick, self.last = Brick(3, 6), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.brick(x.clone())
            return (y + 0).clone().mean((2, 3)), self.last(y.clone()).clone()

    ours = ym.checkpoint(Copying())
    ours(image())
    with torch.profiler.profile() as seen:
        ours(image())
    assert not [event for event in seen.events() if event.name == "aten::clone"]


def test_a_copy_put_into_an_argument_has_memory_of_its_own() -> None:
    class Fills(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6)

        def forward(self, found: list[Tensor]) -> Tensor:
            y = self.brick(found[0])
            found[0] = y.clone()
            return y

    found = [image()]
    made = ym.checkpoint(Fills())(found)
    assert torch.equal(made, found[0])
    assert made.data_ptr() != found[0].data_ptr()


def test_a_copy_without_gradient_is_refused() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.brick(x)
            with torch.no_grad():
                z = y.clone()
            return y + z

    with pytest.raises(ym.CannotLower, match="clone .*gradients are disabled"):
        ym.checkpoint(Frozen())(image())


def test_results_without_storage() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = self.brick(x)
            sparse = y.to_sparse()
            return sparse.to_dense(), y.clone(), sparse

    stock = Sparse()
    ours = ym.checkpoint(copy.deepcopy(stock))
    made, expected = ours(image()), stock(image())
    assert_close(made[:2], expected[:2])
    assert_close(made[2].to_dense(), expected[2].to_dense())
    assert ran_in_core(ours) == 1
