# SPDX-License-Identifier: MIT
"""What shares memory in stock PyTorch shares it here or is refused; a copy is a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

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


class Viewed(nn.Module):
    """Does something with a value, the image and a parameter."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.first, self.function = Brick(3, 6), function
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x), x, self.scale)


def boxes_in_place(y: Tensor, *_: Tensor) -> Tensor:
    """As the head of YOLOX."""
    out = y.view(2, 1, 6, 16, 16).permute(0, 1, 3, 4, 2).reshape(2, 256, 6)
    out[..., :2] = (out[..., :2] + 1) * 8
    out[..., 2:4] = torch.exp(out[..., 2:4])
    return out


def add_to(part: Tensor, other: Tensor) -> Tensor:
    part += other
    return part


def places_before(y: Tensor, *_: Tensor, change: Callable) -> Tensor:
    places = y.max(1, keepdim=True).indices
    change(y)
    return torch.gather(y, 1, places)


CHANGED_VIEWS: dict[str, Callable] = {
    "a slice": lambda y, x, s: add_to(y[:, :3], x),
    "all channels": lambda y, x, s: add_to(y[:, :6], torch.cat((x, x), 1)),
    "a view of a slice": lambda y, x, s: add_to(y[:, 3:][:, :3].unsqueeze(0)[0], x),
    "a view since": lambda y, x, s: F.relu_(y[:, :5])[:, 1:4] + x,
    "twice": lambda y, x, s: F.relu_(F.hardtanh_(y[:, :3])),
    "what has a view": lambda y, x, s: (y[:, :3], F.relu_(y))[1],
    "asked for its size": lambda y, x, s: (y[:, :3].relu_() * y.shape[2], y.dim())[0],
    "a dropout": lambda y, x, s: F.dropout(y.mean((2, 3)).flatten(1), 0.5, True, True),
    "boxes": boxes_in_place,
    "places of maxima": partial(places_before, change=lambda y: y.copy_(-y)),
    "and a part": partial(places_before, change=lambda y: y.__setitem__(0, -y[0])),
}


@pytest.mark.parametrize("name", CHANGED_VIEWS)
def test_a_view_may_change_where_nobody_looks_at_the_rest(name: str) -> None:
    stock = Viewed(CHANGED_VIEWS[name])
    ours = ym.checkpoint(copy.deepcopy(stock))
    made = []
    for model in (ours, stock):
        torch.manual_seed(1)
        made.append(model(image()))
        made[-1].square().mean().backward()
    assert_close(*made)
    assert_close(*([p.grad for p in m.first.parameters()] for m in (ours, stock)))
    assert ran_in_core(ours) == 1


SEEN_CHANGES: dict[str, Callable] = {
    "the rest is handed out": lambda y, x, s: (add_to(y[:, :3], x), y)[1],
    "the rest is read": lambda y, x, s: add_to(y[:, :3], x) + y[:, 3:],
    "another part is read": lambda y, x, s: _add_and_read(y[:, :3], y[:, 3:], x),
    "by a stock call": lambda y, x, s: (y[:, :3].zero_(), y.cos())[1],
    "another part changes": lambda y, x, s: change_both(y[:, :3], y[:, 2:5]),
    "then all of it changes": lambda y, x, s: change_both(y[:, :3], y),
    "of the image": lambda y, x, s: (x.detach()[:, :1].zero_(), y + x.mean(1, True))[1],
    "of a parameter": lambda y, x, s: (s.detach()[:2].mul_(1), y)[1],
    "of a copy": lambda y, x, s: _add_and_read(y.clone()[:, :3], y[:, 3:], x),
    "of what may be a copy": lambda y, x, s: (y.contiguous()[:, :3].zero_(), y)[1],
}


def change_both(part: Tensor, other: Tensor) -> Tensor:
    part.mul_(2)
    return other.mul_(3)


def _add_and_read(part: Tensor, other: Tensor, x: Tensor) -> Tensor:
    add_to(part, x)
    return other + x


@pytest.mark.parametrize("name", SEEN_CHANGES)
def test_a_change_that_somebody_sees_is_refused(name: str) -> None:
    stock = Viewed(SEEN_CHANGES[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    x, same = image(), image()
    assert_close(ours(x), stock(same))
    assert_close(x, same)
    assert "in place" in ym.report(ours).rows[0].detail


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
