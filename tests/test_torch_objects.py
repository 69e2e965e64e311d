# SPDX-License-Identifier: MIT
"""Objects in attributes and arguments: what is in them may change from step to step.

A module trains as in stock PyTorch whatever its forward reads there; a recording is made
anew where that has changed, and where it cannot be known the call stays stock.
"""

from __future__ import annotations

import copy
import itertools
import random
import sys
import types
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import Brick, assert_close, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch import CannotLower
from yolov9mem.torch.running import registry


class Settings:
    def __init__(self) -> None:
        self.gain, self.calls = 1.0, 0


class Slotted:
    __slots__ = ("gain", "unset")

    def __init__(self) -> None:
        self.gain = 1.0


class Final(Settings):
    """No class below it may be made."""

    def __init_subclass__(cls) -> None:
        raise AssertionError("somebody made a class below it")


class Holder(nn.Module):
    """``thing`` is an attribute; forward multiplies by ``gain(thing)``."""

    def __init__(self, thing: Any, gain: Callable[[Any], float]) -> None:
        super().__init__()
        self.body, self.thing, self.gain = Brick(3, 8), thing, gain

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.gain(self.thing)


def train(module: nn.Module, *arguments: Any) -> list[Tensor]:
    """The output, and the gradients of one step."""
    module.zero_grad()
    torch.manual_seed(0)
    out = module(torch.randn(2, 3, 8, 8), *arguments)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in module.parameters())]


def pair(module: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    return ym.checkpoint(copy.deepcopy(module), **options), module.train()


def set_gain(thing: Any, value: float) -> None:
    thing.gain = value


def put(thing: Any, value: float) -> None:
    thing[0] = value


def recordings(module: nn.Module) -> int:
    return registry.runner_of(module).counts["recordings"]


THINGS = {
    "object": (Settings(), lambda t: t.gain, set_gain),
    "namespace": (types.SimpleNamespace(gain=1.0), lambda t: t.gain, set_gain),
    "slots": (Slotted(), lambda t: t.gain, set_gain),
    "final class": (Final(), lambda t: t.gain, set_gain),
    "object in a list": (
        [Settings(), object()],
        lambda t: t[0].gain,
        lambda t, value: set_gain(t[0], value),
    ),
    "object in an object": (
        types.SimpleNamespace(inner=Settings()),
        lambda t: t.inner.gain,
        lambda t, value: set_gain(t.inner, value),
    ),
    "dict beside an object": (
        [{"gain": 1.0}, object()],
        lambda t: t[0]["gain"],
        lambda t, value: t[0].update(gain=value),
    ),
    "array": (np.ones(3), lambda t: float(t[1]), lambda t, value: t.put(1, value)),
    "800 kB": (np.ones(100_000), lambda t: float(t[7]), lambda t, v: t.put(7, v)),
    "deque": (deque([1.0, 5.0]), lambda t: t[0], lambda t, value: put(t, value)),
    "array.array": (array("d", [1.0]), lambda t: t[0], lambda t, value: put(t, value)),
    "bytes": (bytearray(2), lambda t: float(t[0]), lambda t, value: put(t, int(value))),
}


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
def test_what_forward_reads_in_an_attribute(thing: tuple[Any, Any, Any]) -> None:
    what, gain, change = thing
    ours, stock = pair(Holder(copy.deepcopy(what), gain))
    for step in range(3):
        for module in (ours, stock):
            change(module.thing, 1.0 + step)
        assert_close(train(ours), train(stock))
        assert_close(train(ours), train(stock))
    assert ran_in_core(ours) == 6
    assert recordings(ours) == 3


def test_what_forward_does_not_read_may_change() -> None:
    """A loss that counts its calls does not make a recording anew."""
    ours, stock = pair(Holder(Settings(), lambda t: 2.0))
    for _ in range(3):
        for module in (ours, stock):
            module.thing.calls += 1
        assert_close(train(ours), train(stock))
    assert recordings(ours) == 1


def count_a_call(thing: Any) -> float:
    thing.calls += 1
    return thing.calls


def draw(thing: Any) -> float:
    return 1.0 if thing.random() < 0.5 else 2.0


CHANGING = {
    "counts": (Settings(), count_a_call),
    "draws": (random.Random(0), draw),
    "draws with NumPy": (np.random.default_rng(0), draw),
    "rotates": (deque([1.0, 2.0, 3.0]), lambda t: t.rotate(1) or t[0]),
    "goes through a list": (iter([1.0, 2.0, 3.0, 4.0, 5.0]), next),
}
if sys.version_info < (3, 14):  # from there on it has no copy, and the module none
    CHANGING["counts on"] = (itertools.count(1), next)
    CHANGING["goes round"] = (itertools.cycle([1.0, 2.0]), next)


@pytest.mark.parametrize("thing", CHANGING.values(), ids=CHANGING)
def test_a_forward_that_changes_an_object(thing: tuple[Any, Any]) -> None:
    ours, stock = pair(Holder(*copy.deepcopy(thing)), strict=False)
    for _ in range(5):
        assert_close(train(ours), train(stock))
    ours, _ = pair(Holder(*copy.deepcopy(thing)))
    with pytest.raises(CannotLower, match="forward changes the module itself"):
        train(ours)


def test_a_feature_that_is_left_in_an_object() -> None:
    class Leaves(Holder):
        def forward(self, x: Tensor) -> Tensor:
            self.thing.feature = self.body(x)
            return self.thing.feature * 2

    ours, stock = pair(Leaves(types.SimpleNamespace(), float), strict=False)
    for _ in range(2):
        assert_close(train(ours), train(stock))
        assert type(ours.thing.feature) is Tensor
        assert_close(ours.thing.feature, stock.thing.feature)


def test_objects_that_are_not_copied_are_left_alone() -> None:
    """What deepcopy shares belongs to others as well."""

    class Shared(Settings):
        def __deepcopy__(self, memo: Any) -> Shared:
            return self

    shared = Shared()
    ours, _ = pair(Holder(shared, lambda t: t.gain))
    train(ours)
    assert type(shared) is Shared and ours.thing is shared


class Takes(nn.Module):
    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.body, self.read = Brick(3, 8), read

    def forward(self, x: Tensor, thing: Any) -> Tensor:
        return self.body(x) * self.read(thing)


@dataclass
class Batch:
    images: Tensor


@pytest.mark.parametrize(
    ("thing", "read"),
    [
        (Settings(), lambda t: t.gain),
        (Batch(torch.ones(1)), lambda t: t.images),
        (np.ones(40_000), lambda t: float(t[20_000])),
    ],
    ids=["object", "dataclass", "large array"],
)
def test_an_argument_nobody_knows_the_content_of(thing: Any, read: Any) -> None:
    ours, stock = pair(Takes(read), strict=False)
    for _ in range(2):
        assert_close(train(ours, thing), train(stock, thing))
    row = ym.report(ours).rows[0]
    assert row.state == "stock" and "is not understood" in row.detail
    ours, _ = pair(Takes(read))
    with pytest.raises(CannotLower, match="argument in the module.* is not understood"):
        train(ours, thing)


@pytest.mark.parametrize(
    "things",
    [
        (1, 2.5, np.float32(3)),
        (np.ones(3000), np.full(3000, 2.0)),
        (Path("1"), Path("2")),
        ("1", "2"),
    ],
    ids=["numbers", "arrays", "paths", "texts"],
)
def test_arguments_by_their_value(things: tuple[Any, ...]) -> None:
    def read(thing: Any) -> float:
        plain = str(thing) if isinstance(thing, (str, Path)) else thing
        return float(np.ravel(plain)[0])

    ours, stock = pair(Takes(read))
    for thing in (*things, *things):
        assert_close(train(ours, thing), train(stock, thing))
    assert recordings(ours) == len(things)
    assert ran_in_core(ours) == 2 * len(things)
