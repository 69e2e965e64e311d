# SPDX-License-Identifier: MIT
"""Forwards that look at autograd itself: histories, saved tensors, checkpointing.

A recording runs on fakes, which have no history; and within torch.utils.checkpoint nothing
is to be kept. Outcomes are compared with the same module in stock PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from models_for_tests import (
    TELLS_OF_HOOKS,
    Apply,
    Brick,
    Elan,
    assert_same_training,
    backward,
    grads,
    image,
    ran_in_core,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import yolov9mem.torch as ym
from yolov9mem.torch.versions import packing


def halve_gradient(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda grad: grad / 2)
    return x


def must_learn(x: Tensor) -> Tensor:
    assert x.requires_grad, "the backbone is detached"
    return x


class ShapeError(Exception):
    """Of a module's own."""


def plain_tensors_only(x: Tensor) -> Tensor:
    if type(x) is not Tensor:
        raise ShapeError(f"a {type(x).__name__}")
    return x


QUESTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "requires_grad": halve_gradient,
    "grad_fn": lambda x: x if x.grad_fn is None else x * 2,
    "is_leaf": lambda x: x if x.is_leaf else x * 2,
    "retains_grad": lambda x: x * 2 if not x.retains_grad else x,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_forward_that_asks_for_the_history_stays_stock(name: str) -> None:
    stock = Apply(QUESTIONS[name])
    with pytest.raises(ym.CannotLower, match=f"{name} in the module itself"):
        ym.checkpoint(copy.deepcopy(stock))(image())
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())


def test_a_parameter_may_be_asked() -> None:
    class Asks(Brick):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if self.conv.weight.requires_grad else y * 0

    stock = Asks(3, 4)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("function", [must_learn, plain_tensors_only])
def test_an_error_that_only_fakes_raise_is_the_recordings(function: object) -> None:
    stock = Apply(function)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())


def test_a_forward_that_reads_memory_by_a_function_of_python() -> None:
    """apply_ on a fake would read address 0."""
    stock = Apply(lambda x: x + x.detach().clone().apply_(lambda v: v / 2))
    with pytest.raises(ym.CannotLower, match="apply_ in .*it reads memory"):
        ym.checkpoint(copy.deepcopy(stock))(image())
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())


def test_hooks_around_a_forward_see_no_fakes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Brick(3, 8, 3), Brick(8, 8, 3), Brick(8, 8, 3))
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.weight.softmax(0)[0]

    ours = ym.checkpoint(Scaled())
    seen: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = ours(image())
    backward(out)
    assert ran_in_core(ours) == 1
    assert {type(x) for x in seen} <= {Tensor, nn.Parameter}


class ChecksItself(nn.Module):
    """As models with a switch for gradient checkpointing do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Elan(3, 8, 8)
        self.body = nn.Sequential(Elan(8, 8, 8), Elan(8, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch_checkpoint(self.body, self.stem(x), use_reentrant=False)


@TELLS_OF_HOOKS
def test_a_model_that_checkpoints_itself_goes_on_doing_so() -> None:
    stock = ChecksItself()
    with pytest.raises(ym.CannotLower, match="saved_tensors_hooks of its own"):
        ym.checkpoint(copy.deepcopy(stock))(image())
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())
    states = {row.path: row.state for row in ym.report(ours).rows}
    assert states["stem"] == "swapped"
    assert states["body"] == "stock"  # what it held would be held until backward
    assert "torch.utils.checkpoint" in next(
        row.detail for row in ym.report(ours).rows if row.path == "body"
    )


@TELLS_OF_HOOKS
@pytest.mark.parametrize("momentum", [0.1, None])
def test_within_checkpointing_batches_are_counted_as_in_stock(momentum: object) -> None:
    stock = nn.Sequential(Brick(3, 8, 3), Brick(8, 8))
    for brick in stock:
        brick.bn.momentum = momentum
    ours = ym.checkpoint(copy.deepcopy(stock))
    for _ in range(3):
        made = []
        for module in (ours, stock):
            module.zero_grad()
            backward(torch_checkpoint(module, image(), use_reentrant=False))
            made.append([*grads(module).values(), *module.buffers()])
        assert all(map(torch.equal, *made))
    assert ran_in_core(ours) == 0
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1


def test_packing_is_that_of_the_innermost_hooks() -> None:
    def pack(x: Tensor) -> Tensor:
        return x

    assert packing() is None
    with torch.autograd.graph.saved_tensors_hooks(pack, pack):
        assert packing() in (pack, None)
    assert packing() is None
