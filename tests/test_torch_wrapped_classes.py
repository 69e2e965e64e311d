# SPDX-License-Identifier: MIT
"""Classes whose forward is ours, somebody's around ours, or was so: their heirs and bases,
their other instances, copies and replicas run what they run in stock PyTorch."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from models_for_tests import (
    TELLS_OF_HOOKS,
    Brick,
    Elan,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
    replicate,
    trains_in_core,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as again
from wrappers import (
    Around,
    Forward,
    bound,
    on_base,
    on_class,
    on_instance,
    says,
    times_five,
    twins,
)

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry


@pytest.mark.parametrize("around", [times_five, says(times_five)])
@pytest.mark.parametrize("place", [on_class, on_base, on_instance])
def test_it_may_be_taken_away_again(place: Callable[..., None], around: Around) -> None:
    ours, stock = twins()
    ym.checkpoint(ours)
    saved = [
        (holder, vars(holder).get("forward"))
        for module in (ours, stock)
        for holder in (module, *type(module).__mro__[:2])
    ]
    for _ in range(2):
        for module in (ours, stock):
            place(module, around)
        assert_same_training(ours, stock, image())
        ym.checkpoint(ours)  # may be put around it
        assert_same_training(ours, stock, image())
        for holder, forward in saved:
            if forward is not None:
                holder.forward = forward
            elif "forward" in vars(holder):
                del holder.forward
        assert_same_training(ours, stock, image())
        assert trains_in_core(ours)
        stock(image())
        ours.load_state_dict(stock.state_dict())


@pytest.mark.parametrize("around", [times_five, says(times_five)])
def test_two_modules_of_a_class_that_is_wrapped_between(around: Around) -> None:
    first, stock = twins()
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    own = type(first).__dict__["forward"]
    ym.checkpoint(first)
    for module in (first, stock):
        on_class(module, around)
    mine = type(first).__dict__["forward"]
    ym.checkpoint(second)
    for module in (first, second):
        for _ in range(2):
            assert_same_training(module, copy.deepcopy(stock), image())
            module.load_state_dict(stock.state_dict())
        assert ran_in_core(module) == 2
    assert_same_training(third, copy.deepcopy(stock), image())
    assert not ran_in_core(third)
    ym.release(first), ym.release(second)
    assert type(first).__dict__["forward"] is mine
    first.load_state_dict(stock.state_dict())
    assert_same_training(first, copy.deepcopy(stock), image())
    assert not ym.report(first).rows
    type(first).forward = own
    assert trains_in_core(ym.checkpoint(second))
    ym.release(second)
    assert type(first).__dict__["forward"] is own


@pytest.mark.parametrize("place", [on_instance, bound])
def test_an_instance_s_own_forward_where_the_class_has_one_around_ours(
    place: Callable[..., None],
) -> None:
    first, stock = twins()
    second = copy.deepcopy(first)
    for module in (second, stock):  # they hold what the class has now
        place(module, times_five)
    ym.checkpoint(first)
    on_class(first, says(times_five))
    ym.checkpoint(second)
    assert_same_training(second, stock, image())
    assert ran_in_core(second) == 1


def test_another_forward_in_its_place_is_run_and_then_recorded() -> None:
    ours, stock = twins()
    assert trains_in_core(ym.checkpoint(ours))
    stock.load_state_dict(ours.state_dict())
    for module in (ours, stock):
        type(module).forward = lambda self, x: self.first(x).square()
    made, expected = ours(image()), stock(image())
    assert_close(made, expected)
    assert ran_in_core(ours) == 1
    ym.checkpoint(ours)
    made, expected = ours(image()), stock(image())
    assert_close(made, expected)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("around", [times_five, says(times_five)])
@pytest.mark.parametrize("place", [on_class, on_base, on_instance, bound])
def test_a_forward_that_calls_itself(
    place: Callable[..., None], around: Around
) -> None:
    """What is around ours is around the inner call too."""

    def of_batches(forward: Forward) -> Forward:
        inner = around(forward)
        return lambda self, x: (forward if isinstance(x, dict) else inner)(self, x)

    ours, stock = twins()
    ym.checkpoint(ours)
    for _ in range(2):
        for module in (ours, stock):
            place(module, of_batches)
        batch = {"img": image()}
        assert_same_training(ours, stock, batch)
        assert ran_in_core(ours)


def test_parent_and_child_are_both_checkpointed() -> None:
    for first in (0, 1):
        ours, stock = twins()
        base, stock_base = type(ours).__mro__[1](), type(stock).__mro__[1]()
        base.load_state_dict(ours.state_dict())
        stock_base.load_state_dict(ours.state_dict())
        for module in (ours, base) if first else (base, ours):
            ym.checkpoint(module)
        for around in (lambda forward: forward, times_five, says(times_five)):
            for module in (ours, stock):
                on_base(module, around)
            assert_same_training(ours, stock, image())
            assert_same_training(base, stock_base, image())
        assert ran_in_core(ours) == ran_in_core(base) == 3
        ym.release(base)
        assert_same_training(ours, stock, image())
        assert trains_in_core(ours)


def test_a_base_beside_it_is_not_passed_over() -> None:
    """An heir of two classes, of which the first inherits: what it runs is the second's."""

    class First(Elan):
        pass

    class Second(Elan):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    class Heir(First, Second):
        pass

    heir = Heir(3, 8, 4)
    expected = copy.deepcopy(heir)(image())
    module = ym.checkpoint(First(3, 8, 4))
    assert trains_in_core(module)
    assert_close(copy.deepcopy(heir)(image()), expected)
    ym.checkpoint(heir)
    assert_close(heir(image()), expected)
    assert ran_in_core(heir) == 1


def test_a_function_of_ours_in_another_class() -> None:
    class First(Elan):
        pass

    class Other(Elan):
        pass

    module, other = ym.checkpoint(First(3, 8, 4)), Other(3, 8, 4)
    expected = copy.deepcopy(other)(image())
    Other.forward = First.forward
    assert_close(copy.deepcopy(other)(image()), expected)
    ym.checkpoint(other)
    assert_close(other(image()), expected)
    assert ran_in_core(other) == 1
    ym.release(other), ym.release(module)
    assert "forward" not in vars(First) and "forward" in vars(Other)
    other(image())
    assert not ym.report(other).rows


@pytest.mark.parametrize("place", [on_class, on_instance])
def test_replicas_have_what_is_around(place: Callable[..., None]) -> None:
    ours, stock = twins()
    ym.checkpoint(ours)
    if place is on_class:
        for module in (ours, stock):
            place(module, times_five)
    replica, expected = replicate(ours), replicate(stock)
    if place is on_instance:
        for module in (replica, expected):
            place(module, times_five)
    assert_close(replica(image()), expected(image()))
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("around", [times_five, says(times_five)])
def test_around_a_ready_made_block(around: Around) -> None:
    ours = ym.AConv(3, 8)
    stock = copy.deepcopy(ours)
    ym.release(stock)
    expected = stock(image())
    own = ym.AConv.__dict__["forward"]
    on_class(ours, around)
    try:
        assert_close(ours(image()), expected * 5)
        assert_close(stock(image()), expected * 5)
        assert ran_in_core(ours) == 1
        whole = nn.Sequential(copy.deepcopy(ours))
        assert_close(ym.checkpoint(whole)(image()), expected * 5)
        assert ran_in_core(whole) == 1
    finally:
        ym.AConv.forward = own


class Pickled(Elan):
    pass


@pytest.mark.parametrize("around", [times_five, says(times_five)])
def test_pickles_and_copies_run_what_the_class_has(around: Around) -> None:
    module = ym.checkpoint(Pickled(3, 8, 4))
    stock = Elan(3, 8, 4)
    try:
        on_class(module, around)
        ym.checkpoint(module)
        stock.load_state_dict(module.state_dict())
        expected = stock(image()) * 5
        assert b"yolov9mem" not in pickle.dumps(module)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_close(other(image()), expected)
            assert not ym.report(other).rows
        assert_close(module(image()), expected)
        assert ran_in_core(module) == 1
    finally:
        ym.release(module)
        del Pickled.forward


def test_nothing_is_left_of_a_module_that_runs() -> None:
    ours, _ = twins()
    ym.checkpoint(ours)
    on_class(ours, times_five)
    for _ in range(2):
        ours(image())
        ym.checkpoint(ours)
    assert not registry._acting.patches
    with pytest.raises(RuntimeError):
        ours(image()[0, 0, 0])
    assert not registry._acting.patches


class Layer(nn.Module):
    """A wrapper that asks whether it is the outermost, as transformers' layers are."""

    calls: ClassVar[list[nn.Module]] = []

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        forward = cls.forward

        @functools.wraps(forward)
        def wrapper(self: Layer, *args: Tensor) -> Tensor:
            if type(self).forward is wrapper and self.training:
                Layer.calls.append(self)
                return again(lambda *x: forward(self, *x), *args, use_reentrant=False)
            return forward(self, *args)

        cls.forward = wrapper


class Inner(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.brick = Brick(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.brick(x)


class Outer(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cos()


def checkpointed(module: nn.Sequential) -> list[int]:
    """Which of its modules checkpoint themselves in a step; a recording calls copies."""
    Layer.calls.clear()
    module.zero_grad()
    module(image()).square().sum().backward()
    return [i for i, part in enumerate(module) for x in Layer.calls if x is part]


@TELLS_OF_HOOKS
@pytest.mark.parametrize("cls", [Inner, Outer])
def test_a_wrapper_knows_that_it_is_the_outermost(cls: type[Layer]) -> None:
    forward = cls.forward
    torch.manual_seed(0)
    stock = nn.Sequential(Brick(3, 8, 3), cls(), cls())
    beside, ours = copy.deepcopy(stock), copy.deepcopy(stock)
    assert checkpointed(stock) == [1, 2]
    ym.checkpoint(ours, strict=False)
    for _ in range(2):
        assert checkpointed(ours) == checkpointed(beside) == [1, 2]
        ym.checkpoint(ours, "min", strict=False)  # once more
    stock.load_state_dict(ours.state_dict())
    assert_same_training(ours, stock, image())
    ym.release(ours)
    assert cls.forward is forward and checkpointed(ours) == [1, 2]
    stock.load_state_dict(ours.state_dict())
    assert_same_training(ours, stock, image())
