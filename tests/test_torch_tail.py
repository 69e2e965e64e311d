# SPDX-License-Identifier: MIT
"""A trailing part that can't be lowered runs stock on the node's outputs."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable

import pytest
import torch
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym


class Ultralytics(nn.Module):
    """Ends in view and cat over the last dimension; dicts in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Brick(3, 6, 3, 2), Brick(6, 6, 3, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, object]:
        feats = [self.a(batch["img"])]
        feats.append(self.b(feats[0]))
        boxes = torch.cat([f.view(f.shape[0], 6, -1) for f in feats], dim=-1)
        return {"boxes": boxes, "feats": feats, "ids": batch["ids"], "stride": 8}


def test_a_tail_runs_stock_on_the_outputs() -> None:
    stock = Ultralytics()
    ours = ym.checkpoint(copy.deepcopy(stock))
    batch = {"img": image(size=32), "ids": torch.arange(2)}
    made, expected = ours(batch), stock(batch)
    assert made["stride"] == 8
    assert made["ids"] is batch["ids"]
    assert_close(made["boxes"], expected["boxes"])
    assert_close(made["feats"], expected["feats"])
    for out in (made, expected):
        (out["boxes"].square().sum() + out["feats"][1].sum()).backward()
    assert_close(
        [p.grad for p in ours.parameters()], [p.grad for p in stock.parameters()]
    )
    assert ran_in_core(ours) == 1


def test_a_tail_may_use_vectors_and_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = Brick(3, 4), nn.Parameter(torch.ones(()) * 3)
            self.register_buffer("shift", torch.ones(4, 1, 1))

        def forward(self, x):
            return self.body(x) * self.scale + self.shift

    stock = Scaled()
    assert_same_training(ym.checkpoint(copy.deepcopy(stock)), stock, image(size=32))


def test_a_layer_in_the_tail_is_refused() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Brick(3, 4), nn.Linear(32, 2)

        def forward(self, x):
            return self.head(self.body(x).mean(3).mean(1))

    with pytest.raises(
        ym.CannotLower, match="linear in head: it reads the weight head.weight and"
    ):
        ym.checkpoint(Classifier())(image(size=32))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda y: y.view(2, -1),
    "view by name": lambda y: y.view(size=(2, -1)),
    "view of bits": lambda y: y.view(torch.int32).float() * 0 + y.view(dtype=y.dtype),
    "aten.view": lambda y: torch.ops.aten.view.default(y, [2, -1]),
    "aten._unsafe_view": lambda y: torch.ops.aten._unsafe_view(y, [2, -1]),
    "an overload": lambda y: torch.ops.aten._unsafe_view.default(y, [2, -1]),
    "view_as": lambda y: y.view_as(torch.empty(2, 8 * 256)),
    "view_as by name": lambda y: y.view_as(other=y.flatten(1)),
    "view_as_complex": lambda y: torch.view_as_complex(y.view(2, 8, 16, 8, 2)).abs(),
    "complex by name": lambda y: torch.view_as_complex(
        input=y.unflatten(3, (8, 2))
    ).abs(),
}


class Ending(nn.Module):
    """A brick, and a module that applies a function to its result."""

    class End(nn.Module):
        def __init__(self, function: Callable[..., Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *given: Tensor) -> Tensor:
            return self.function(*given)

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body, self.end = Brick(3, 8, 3), self.End(function)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.end(self.body(x), *more)


@pytest.mark.parametrize("name", VIEWS)
def test_views_that_channels_last_cannot_be(name: str) -> None:
    stock = Ending(VIEWS[name])
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1


def test_an_error_in_the_tail_says_which_call_it_was() -> None:
    stock = Ending(lambda y, ids: y.flatten(1)[:, ids])
    ours = ym.checkpoint(copy.deepcopy(stock))
    ids = torch.tensor([3, 5])
    assert_close(ours(image(), ids), stock(image(), ids))
    with pytest.raises(IndexError, match="out of bounds") as raised:
        ours(image(), ids + 10**6)
    told = "".join(traceback.format_exception(raised.value))
    assert "yolov9mem replayed __getitem__ of end" in told
