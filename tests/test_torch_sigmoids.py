# SPDX-License-Identifier: MIT
"""Sigmoids, GELU and their like: nodes inside a graph; stock calls where a node would save
nothing, as at the end of a detector's head, and of what is no value."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Apply,
    Brick,
    assert_same_training,
    image,
    pair,
    ran_in_core,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import yolov9mem.torch as ym
from yolov9mem.torch.recording.fakes import FakeCopy
from yolov9mem.torch.recording.ir import Recording
from yolov9mem.torch.recording.record import record

LOWERED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "torch.sigmoid": ("sigmoid", torch.sigmoid),
    "method": ("sigmoid", lambda x: x.sigmoid()),
    "F.sigmoid": ("sigmoid", F.sigmoid),
    "nn.Sigmoid": ("sigmoid", nn.Sigmoid()),
    "sigmoid_": ("sigmoid", lambda x: torch.sigmoid_(x + x)),
    "method in place": ("sigmoid", lambda x: (x + x).sigmoid_()),
    "F.gelu": ("gelu", F.gelu),
    "nn.GELU": ("gelu", nn.GELU()),
    "gelu by a tanh": ("gelu_tanh", nn.GELU(approximate="tanh")),
    "F.hardsigmoid": ("hardsigmoid", F.hardsigmoid),
    "hardsigmoid in place": ("hardsigmoid", lambda x: F.hardsigmoid(x + x, True)),
    "nn.Hardsigmoid": ("hardsigmoid", nn.Hardsigmoid()),
    "nn.Hardsigmoid in place": (
        "hardsigmoid",
        lambda x: nn.Hardsigmoid(inplace=True)(x + x),
    ),
}


def recorded(module: nn.Module, strict: bool = True) -> Recording:
    leaves, spec = tree_flatten(((image(size=32),), {}))
    return record(FakeCopy(module), leaves, spec, strict)


def activations(made: Recording) -> list[str]:
    """The kinds of the nodes in its graphs."""
    nodes = [node for part in made.parts for node in part.nodes]
    return [node.attributes[0] for node in nodes if node.op == "activation"]


@pytest.mark.parametrize("name", LOWERED)
def test_lowered_calls(name: str) -> None:
    kind, function = LOWERED[name]
    stock = Apply(function)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1
    made = recorded(stock)
    assert activations(made) == ["silu", kind] and not made.calls


@pytest.mark.parametrize("make", [nn.Sigmoid, nn.Hardsigmoid, nn.GELU])
def test_each_is_part_of_its_brick(make: Callable[[], nn.Module]) -> None:
    """It costs no memory beside the convolution's output."""

    def held_bytes(act: nn.Module) -> int:
        norm, last = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        stock = nn.Sequential(nn.Conv2d(3, 8, 3), norm, act, last)
        ours = ym.checkpoint(copy.deepcopy(stock))
        assert_same_training(ours, stock, image(size=32))
        return ym.report(ours).rows[0].held_bytes

    assert held_bytes(make()) == held_bytes(nn.SiLU())


class Head(nn.Module):
    """A brick, a convolution, and what is made of its result."""

    def __init__(self, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.body, self.last, self.end = Brick(3, 8, 3), nn.Conv2d(8, 6, 1), end

    def forward(self, x: Tensor) -> object:
        return self.end(self.last(self.body(x)))


# What a head ends in, and how many stock calls that is.
ENDS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "handed out": (lambda y: y.sigmoid(), 1),
    "in place": (lambda y: y.sigmoid_(), 1),
    "with its logits": (lambda y: [y, torch.sigmoid(y)], 1),
    "flattened before": (lambda y: y.flatten(2).sigmoid(), 2),
    "flattened after": (lambda y: y.sigmoid().flatten(2), 2),
    "split": (lambda y: y.sigmoid().split([4, 2], 1), 3),
    "split before": (lambda y: [part.sigmoid() for part in y.split([4, 2], 1)], 2),
    "activated and joined": (lambda y: torch.cat((F.relu(y.sigmoid()), y), 1), 3),
}


def test_a_product_at_the_end_is_in_the_graph() -> None:
    """Eager PyTorch keeps both factors, the graph what they are made of."""
    ours, stock = pair(lambda: Head(lambda y: y * y.sigmoid()))
    assert_same_training(ours, stock, image(size=32), tolerance=1e-5)
    made = recorded(stock)
    assert activations(made) == ["silu", "sigmoid"] and not made.calls


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_at_the_end_of_a_head_it_stays_stock(name: str, strict: bool) -> None:
    end, calls = ENDS[name]
    ours, stock = pair(lambda: Head(end), strict=strict)
    assert_same_training(ours, stock, image(size=32), tolerance=1e-5)
    assert ran_in_core(ours) == 1
    made = recorded(stock, strict=strict)
    assert activations(made) == ["silu"] and len(made.parts) == 1
    assert len(made.calls) == calls and not made.left


def test_between_two_parts_it_stays_stock() -> None:
    """Nothing that is lowered reads it."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Brick(3, 8, 3), Brick(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y.sigmoid().tanh())

    ours, stock = pair(Twice, strict=False)
    assert_same_training(ours, stock, image(size=32))
    made = recorded(stock, strict=False)
    assert activations(made) == ["silu", "silu"] and len(made.calls) == 2
    with pytest.raises(ym.CannotLower, match="it reads the result of tanh in the mod"):
        ym.checkpoint(stock)(image(size=32))


@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid, F.gelu])
def test_of_a_stock_result_it_stays_stock(function: Callable[..., Tensor]) -> None:
    ours, stock = pair(lambda: Head(lambda y: function(y.tanh())))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1
    made = recorded(stock, strict=False)
    assert len(made.parts) == 1 and len(made.calls) == 2 and not made.left


def test_alone_it_is_nothing_to_run() -> None:
    ours, stock = pair(nn.Sigmoid)
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 0


@pytest.mark.parametrize("function", [torch.sigmoid, F.hardsigmoid, F.gelu])
def test_under_autocast_its_dtype_is_stocks(function: Callable[..., Tensor]) -> None:
    """Also of a float32 image, beside convolutions in 16 bits."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = Brick(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = function(self.body(function(x)))
            return [y, self.last(y), function(x)]

    ours, stock = pair(Mixed)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_training(ours, stock, image(size=32), tolerance=2e-2)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("act", [torch.sigmoid_, nn.Hardsigmoid(inplace=True)])
def test_in_place_on_an_input_is_refused(act: Callable[[Tensor], Tensor]) -> None:
    class Changes(Brick):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(act(x))

    with pytest.raises(ym.CannotLower, match="sigmoid.*it changes an input in place"):
        ym.checkpoint(Changes(3, 4))(image(size=32))


def test_an_unknown_approximation_raises_torchs_own_error() -> None:
    module = ym.checkpoint(Apply(lambda x: F.gelu(x, approximate="erf")))
    with pytest.raises(RuntimeError, match="approximate argument must be either"):
        module(image(size=32))


@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_a_gelu_that_saves_nothing_is_named(kind: str) -> None:
    """Alone between stock calls it would be a graph of its own."""
    gelu = nn.Sequential(nn.GELU(kind), nn.AvgPool2d(2))

    class Between(Head):
        def forward(self, x: Tensor) -> Tensor:
            y = gelu(self.body(x).cumsum(1) + self.body(x))
            return self.last(y.cumsum(1))

    ours, stock = pair(lambda: Between(nn.Identity()), strict=False)
    assert_same_training(ours, stock, image(size=32))
    assert activations(recorded(stock, strict=False)) == ["silu", "silu"]
    assert any(
        "gelu in the module itself" in left for left in recorded(stock, False).left
    )
