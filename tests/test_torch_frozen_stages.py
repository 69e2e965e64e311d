# SPDX-License-Identifier: MIT
"""Frozen layers before stock calls: behind those, nothing wants a gradient either, unless
something else that they read does. What is compared with what: training with that of stock
PyTorch; what is held with what PyTorch's profiler sees of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from allocations import held_by
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import lowered, registry
from yolov9mem.torch.running.arenas import drop_workspace

Between = Callable[["Front", Tensor], Tensor]


class Front(nn.Module):
    """Two frozen stages with a stock call between, and what learns behind them."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first = nn.Sequential(Brick(3, 8, 3), Brick(8, 8, 3))
        self.second = nn.Sequential(Brick(8, 8, 3), Brick(8, 8, 3))
        self.head = nn.Sequential(nn.MaxPool2d(4), Brick(8, 8, 3), Brick(8, 4, 3))
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.first.requires_grad_(False)
        self.second.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self, self.first(x))))


def plain(module: Front, x: Tensor) -> Tensor:
    return F.pixel_unshuffle(F.pixel_shuffle(x, 2).transpose(2, 3), 2)


def normed(module: Front, x: Tensor) -> Tensor:
    return F.group_norm(x, 2)


def scaled(module: Front, x: Tensor) -> Tensor:
    """By a parameter, which learns."""
    return torch.sinh(x) * torch.tanh(module.scale)


def changed(module: Front, x: Tensor) -> Tensor:
    """In place, by a parameter."""
    y = torch.sinh(x)
    y.mul_(module.scale.tanh())
    return y


def created(module: Front, x: Tensor) -> Tensor:
    """Beside what wants a gradient for nobody."""
    return x.sinh() + torch.ones(8, 1, 1, requires_grad=True).cos()


FROZEN = {"plain": plain, "normed": normed}
LEARNING = {"scaled": scaled, "changed": changed, "created": created}


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", FROZEN | LEARNING)
def test_training_is_stocks(name: str, keep: str) -> None:
    stock = Front((FROZEN | LEARNING)[name])
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    assert_same_training(ours, stock, image(size=32))
    for module in (ours, stock):  # as a schedule does that frees layers
        module.second[1].requires_grad_(True)
    assert_same_training(ours, stock, image(size=32))
    for module in (ours, stock):
        module.first[0].requires_grad_(True)
    assert_same_training(ours, stock, image(size=32))
    for module in (ours, stock):
        module.requires_grad_(False)
        module.scale.requires_grad_(True)
    if name in ("scaled", "changed"):
        assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) >= 3


@pytest.mark.parametrize("name", FROZEN)
def test_gradients_of_the_image_flow_through_frozen_stages(name: str) -> None:
    stock = Front(FROZEN[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    gradients = []
    for module in (ours, stock):
        x = image(size=32).requires_grad_()
        module(x).square().sum().backward()
        gradients.append(x.grad)
    assert_close(*gradients, 1e-3)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("name", FROZEN)
def test_no_more_is_held_than_in_stock(name: str) -> None:
    stock = Front(FROZEN[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    held = []
    for module in (ours, stock):
        x = image(size=96)
        module(x).square().mean().backward()
        drop_workspace()  # or forward may let one go that is older than what is counted
        held.append(held_by(lambda m=module, x=x: m(x).square().mean()))
    (row, *_) = ym.report(ours).rows
    assert row.state == "swapped" and held[0] < held[1]
    slack = 40 * 1024  # the result, and what the loss keeps of it
    assert row.held_bytes <= held[0] <= row.held_bytes + slack
    assert row.stock_bytes <= held[1] <= row.stock_bytes + slack


OTHERS = torch.rand(1, 8, 1, 1)


class Prompted(nn.Module):
    """Adds what is no parameter, and may learn: an attribute, a buffer, or somebody's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.first, self.last = Brick(3, 8, 3), Brick(8, 4, 3)
        self.attribute = torch.rand(1, 8, 1, 1)
        self.register_buffer("buffer", torch.rand(1, 8, 1, 1))
        self.requires_grad_(False)

    def prompt(self) -> Tensor:
        return OTHERS if self.kind == "others" else getattr(self, self.kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + torch.tan(self.prompt()))


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("kind", ["attribute", "buffer", "others"])
def test_what_is_no_parameter_may_learn(kind: str, keep: str) -> None:
    """From the first step, or from a later one."""
    for learns in ((True, True), (False, True), (True, False, True)):
        stock = Prompted(kind)
        ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
        for does in learns:
            gradients = []
            for module in (ours, stock):
                prompt = module.prompt().requires_grad_(does)
                prompt.grad = None
                x = image(size=32).requires_grad_(not does)
                module(x).square().sum().backward()
                gradients.append(prompt.grad if does else x.grad)
            assert_close(*gradients, 1e-3)
    assert ran_in_core(ours) > 0


def test_a_tensor_made_in_forward_may_learn() -> None:
    made: list[Tensor] = []

    def prompted(module: Front, x: Tensor) -> Tensor:
        made.append(torch.ones(8, 1, 1, requires_grad=True))
        return x.sinh() + made[-1].cos()

    stock = Front(prompted)
    for module in (ym.checkpoint(copy.deepcopy(stock), strict=False), stock):
        module(image(size=32)).square().sum().backward()
    assert_close(made[-2].grad, made[-1].grad, 1e-3)


def test_no_gradient_is_wanted_through_a_mask() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = Brick(3, 8, 3), Brick(8, 4, 3)
            self.frozen = nn.Sequential(*[Brick(8, 8, 3) for _ in range(4)])
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x)
            return self.head(y), self.frozen((y > 0).float())

    stock = Masked()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
    (row, *_) = ym.report(ours).rows
    value = 2 * 8 * 32 * 32 * 4
    assert row.state == "swapped" and row.held_bytes < 3 * value
    assert not ours(image(size=32))[1].requires_grad


def test_plans_of_earlier_choices_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which layers are frozen: LISA (arXiv:2403.17919) draws others all the time."""
    monkeypatch.setattr(lowered, "MOST_KNOWN", 3)
    stock = Front(plain)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    layers = [[*module.first, *module.second, *module.head] for module in (ours, stock)]
    for choice in (0, 1, 2, 3, 5, 0, 3):
        for own in layers:
            for number, layer in enumerate(own):
                layer.requires_grad_(number == choice)
        assert_same_training(ours, stock, image(size=32))
    (made,) = registry.runner_of(ours).lowered.values()
    assert [len(graph.plans) for graph in made.graphs] == [3]
    assert ran_in_core(ours) == 7
