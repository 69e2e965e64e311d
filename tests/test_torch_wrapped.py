# SPDX-License-Identifier: MIT
"""A forward that somebody puts around ours, or around one within: it does what it does in
stock PyTorch, and the module runs in the core all the same.

What trains in stock is of a class of its own, which no checkpoint() has ever touched.
"""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
    trains_in_core,
)
from torch import Tensor, nn
from wrappers import (
    AROUND,
    INSIDE,
    PLACES,
    Around,
    Forward,
    bound,
    by_attribute,
    by_bound_object,
    by_object,
    in_bfloat16,
    on_base,
    on_class,
    on_instance,
    says,
    times_five,
    tolerance,
    twice,
    twins,
)

import yolov9mem.torch as ym

ON_INSTANCES = [on_instance, bound, by_object, by_bound_object, by_attribute]


@pytest.mark.parametrize("own", [True, False], ids=["own", "inherited"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_forward_around_ours(
    place: Callable[..., None], around: Around, own: bool
) -> None:
    ours, stock = twins(own)
    ym.checkpoint(ours)
    assert_same_training(ours, stock, image())
    for module in (ours, stock):
        place(module, around)
    other = copy.deepcopy(ours)
    before = ran_in_core(ours)
    for _ in range(2):
        assert_same_training(ours, stock, image(), tolerance=tolerance(around))
    is_recorded = place is on_base  # ours is in the class above it
    once = 2 if around is twice and not is_recorded else 1
    assert ran_in_core(ours) == before + 2 * once
    if place not in (bound, by_bound_object):  # whose copy calls the original's
        copied = copy.deepcopy(stock)
        copied.load_state_dict(other.state_dict())
        assert_close(other(image()), copied(image()), tolerance(around))
        assert not ran_in_core(other)


def test_results_of_another_kind() -> None:
    def in_dict(forward: Forward) -> Forward:
        return lambda self, x: {"out": forward(self, x.flip(3)), "x": [x.detach()]}

    ours, stock = twins()
    ym.checkpoint(ours)
    for module in (ours, stock):
        on_class(module, in_dict)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 2


@pytest.mark.parametrize("trained", [True, False], ids=["later", "at once"])
@pytest.mark.parametrize("around", [times_five, says(times_five), twice, in_bfloat16])
@pytest.mark.parametrize("place", INSIDE.values(), ids=INSIDE)
def test_a_forward_around_one_within_is_recorded_with_it(
    place: Callable[..., None], around: Around, trained: bool
) -> None:
    ours, stock = twins()
    ym.checkpoint(ours)
    if trained:
        assert_same_training(ours, stock, image())
    for module in (ours, stock):
        place(module, around)
    for count in (1, 2):
        assert_same_training(ours, stock, image(), tolerance=tolerance(around))
        assert ran_in_core(ours) == count + trained
    assert ym.report(ours).rows[0].recordings == 1 + trained
    ym.checkpoint(ours.second)
    assert_same_training(ours, stock, image(), tolerance=tolerance(around))
    if place is INSIDE["class"]:  # where ours is, which is no other forward
        assert ym.report(ours).rows[0].recordings == 1 + trained


@pytest.mark.parametrize("own", [True, False], ids=["own", "inherited"])
@pytest.mark.parametrize("around", [times_five, says(times_five), twice, in_bfloat16])
@pytest.mark.parametrize("place", [on_class, on_base])
def test_a_forward_that_was_there_before_is_recorded(
    place: Callable[..., None], around: Around, own: bool
) -> None:
    ours, stock = twins(own)
    for module in (ours, stock):
        place(module, around)
    forward = type(ours).__dict__.get("forward")
    ym.checkpoint(ours)
    for _ in range(2):
        assert_same_training(ours, stock, image(), tolerance=tolerance(around))
    assert ran_in_core(ours) == 2
    ym.release(ours)
    assert type(ours).__dict__.get("forward") is forward


@pytest.mark.parametrize("own", [True, False], ids=["own", "inherited"])
@pytest.mark.parametrize("around", [times_five, says(times_five), twice, in_bfloat16])
@pytest.mark.parametrize("place", ON_INSTANCES)
def test_one_that_the_instance_had_before_calls_ours(
    place: Callable[..., None], around: Around, own: bool
) -> None:
    ours, stock = twins(own)
    for module in (ours, stock):
        place(module, around)
    ym.checkpoint(ours)
    for _ in range(2):
        assert_same_training(ours, stock, image(), tolerance=tolerance(around))
    assert ran_in_core(ours) == (4 if around is twice else 2)
    ym.release(ours)
    assert_same_training(ours, stock, image(), tolerance=tolerance(around))
    assert not ym.report(ours).rows


@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("place", [on_class, on_base, *ON_INSTANCES, *INSIDE.values()])
def test_a_module_that_is_wrapped_can_be_collected(
    place: Callable[..., None], early: bool
) -> None:
    ours, _ = twins()
    if not early:
        trains_in_core(ym.checkpoint(ours))
    place(ours, times_five)
    trains_in_core(ym.checkpoint(ours) if early else ours)
    assert ran_in_core(ours) == (1 if early else 2)
    gone = weakref.ref(ours), weakref.ref(type(ours))
    del ours, _
    gc.collect(), gc.collect()  # the module, and then what was known of it
    assert [reference() for reference in gone] == [None, None]


def test_one_that_cannot_be_told_to_is_reported() -> None:
    ours, stock = twins()
    forwards = [module.forward for module in (ours, stock)]
    ours.forward = lambda x: forwards[0](x) * 5
    stock.forward = lambda x: forwards[1](x) * 5
    ym.checkpoint(ours)
    assert_same_training(ours, stock, image())
    (row,) = ym.report(ours).rows
    assert row.state == "waiting"
    assert "the instance has a forward of its own" in row.detail


def test_functions_in_attributes_hold_the_parts_of_the_copy() -> None:
    """They are recorded, at any depth of closures, one that calls itself too."""

    class Closing(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.first, self.last = Brick(3, 6, 3), nn.Conv2d(6, 4, 1)
            last = self.last

            def twice(x: Tensor, again: bool = True, *, scale: float = scale) -> Tensor:
                return twice(x, False) * scale if again else last(x)

            self.function = functools.partial(lambda f, x: f(x), twice)

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.first(x))

    torch.manual_seed(0)
    ours = ym.checkpoint(Closing(3.0))
    torch.manual_seed(0)
    stock = Closing(3.0)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 2


def test_attributes_of_functions_are_those_of_the_copy_s() -> None:
    """What they hold is of the copy as well, functools.wraps()'s original too."""

    def scaled(forward: Forward) -> Forward:
        @functools.wraps(forward)
        def scale(x: Tensor) -> Tensor:
            return scale.__wrapped__(x) * scale.by[0]  # type: ignore[attr-defined]

        scale.by = [2.0]  # type: ignore[attr-defined]
        return scale

    ours, stock = twins()
    for module in (ours, stock):
        module.first.forward = scaled(module.first.forward)
    ym.checkpoint(ours)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 2


class Growing:
    """Multiplies by the number of its calls."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self.count = forward, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.forward(x) * self.count


def growing_number(forward: Forward) -> Forward:
    count = 0

    def grow(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return forward(x) * count

    return grow


def growing_list(forward: Forward) -> Forward:
    counts = [0]

    def grow(x: Tensor) -> Tensor:
        counts[0] += 1
        return forward(x) * counts[0]

    return grow


def growing_object(forward: Forward) -> Forward:
    growing = Growing(forward)
    return lambda x: growing(x)


def growing_attribute(forward: Forward) -> Forward:
    def grow(x: Tensor) -> Tensor:
        grow.count += 1  # type: ignore[attr-defined]
        return forward(x) * grow.count  # type: ignore[attr-defined]

    grow.count = 0  # type: ignore[attr-defined]
    return grow


GROWING = [growing_number, growing_list, growing_object, growing_attribute]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("growing", GROWING)
def test_one_within_that_counts_is_not_recorded(
    growing: Callable[[Forward], Forward], strict: bool
) -> None:
    ours, stock = twins()
    for module in (ours, stock):
        module.first.forward = growing(module.first.forward)
    ym.checkpoint(ours, strict=strict)
    if strict:
        with pytest.raises(ym.CannotLower, match="changes what it holds"):
            ours(image())
    else:
        for _ in range(5):
            assert_same_training(ours, stock, image())
        assert ran_in_core(ours)


def test_it_is_called_at_every_forward() -> None:
    called = []

    def counting(forward: Forward) -> Forward:
        @functools.wraps(forward)
        def count(self: nn.Module, x: Tensor) -> Any:
            called.append(self)
            return forward(self, x)

        return count

    ours, _ = twins()
    ym.checkpoint(ours)
    on_class(ours, counting)
    for keep in ("conv", "min"):  # the second time it is there, and says what it wraps
        ym.checkpoint(ours, keep=keep)
        called.clear()
        for count in (1, 2):
            assert trains_in_core(ours)
            assert called == [ours] * count
        ours.eval()(image())
        assert called == [ours] * 3
        ours.train()
