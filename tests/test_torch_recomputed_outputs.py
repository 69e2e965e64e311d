# SPDX-License-Identifier: MIT
"""Outputs of stages that stock calls read again in backward: the core makes them once more,
and nothing holds them between.

What is compared with what: a checkpointed module with itself in stock PyTorch, and the
bytes that torch's profiler sees with those of the convolutions' outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from allocations import held_by, peak_of
from models_for_tests import (
    TELLS_OF_HOOKS,
    TELLS_OF_RETAINING,
    assert_close,
    assert_same_gradients,
    assert_same_training,
    grads,
    image,
)
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import yolov9mem.torch as ym

WIDTH, SIZE = 16, 32
VALUE = 4 * WIDTH * SIZE * SIZE  # bytes


class Normed(nn.Sequential):
    """A convolution whose batch norm, with an activation, is a stage's last brick."""

    def __init__(self, c: int, k: int = WIDTH) -> None:
        super().__init__(nn.Conv2d(c, k, 3, padding=1, bias=False), nn.BatchNorm2d(k))


Step = Callable[[Tensor], Tensor]


class Chain(nn.Module):
    def __init__(self, step: Step, depth: int = 4, scaled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = Normed(3)
        self.rest = nn.ModuleList(Normed(WIDTH) for _ in range(depth))
        self.last = nn.Conv2d(WIDTH, 4, 1)
        self.step = step
        self.scale = nn.Parameter(torch.ones(WIDTH, SIZE, 1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.rest:
            x = self.step(conv(F.silu(x)))
            if self.scale is not None:  # of which the value's own backward is no part
                x = x + torch.sinh(x.detach()) * self.scale
        return self.last(x)


def elu(x: Tensor) -> Tensor:
    """Autograd keeps its argument."""
    return F.elu(x)


def tanh(x: Tensor) -> Tensor:
    """Autograd keeps its result."""
    return torch.tanh(x)


def unshuffled(x: Tensor) -> Tensor:
    """Autograd keeps nothing, the next stage what it makes."""
    return F.interpolate(F.pixel_unshuffle(F.silu(x), 2)[:, ::4], scale_factor=2)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(x.shape)


def changed(x: Tensor) -> Tensor:
    """Of which the stage's output is no more what is read."""
    return F.elu(torch.sin(x.mul_(2)))


STEPS = [elu, tanh, unshuffled, shuffled]


def chains(step: Step, keep: str = "conv", **named: bool) -> tuple[Chain, Chain]:
    stock = Chain(step, **named)
    return ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False), stock


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("step", [*STEPS, changed])
def test_training_stays_the_same(step: Step, keep: str) -> None:
    ours, stock = chains(step, keep)
    for _ in range(2):
        assert_same_training(ours, stock, image(size=SIZE))
    assert ym.report(ours).rows[0].state == "swapped"


@TELLS_OF_HOOKS
@pytest.mark.parametrize("step", STEPS)
def test_nothing_but_the_convolutions_outputs_is_held(step: Step) -> None:
    ours, stock = chains(step)
    x = image(1, size=SIZE)
    convolutions = len(ours.rest) + 1
    for module in (ours, stock):
        module(x).sum().backward()  # records
    held, by_stock = held_by(lambda: ours(x)), held_by(lambda: stock(x))
    assert held < (convolutions + 0.9) * VALUE < by_stock / 1.8


class Down(nn.Module):
    """Space to depth, whose convolution is as small as what is kept for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Normed(4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = [x[..., i::2, :] for i in (0, 1)]
        parts = [row[..., i::2] for i in (0, 1) for row in rows]
        y = F.silu(self.conv(torch.cat(parts, 1)))
        return F.interpolate(y, scale_factor=2)


@TELLS_OF_HOOKS
def test_min_does_not_peak_above_conv() -> None:
    """As it would where its own plan can't make outputs again."""
    torch.manual_seed(1)
    stock = nn.Sequential(
        Normed(3), nn.SiLU(), *(Down() for _ in range(4)), Normed(WIDTH, 4)
    )
    peaks, x = [], image(4, size=64)

    def step(module: nn.Module) -> None:
        module(x).square().mean().backward()

    for keep in ("conv", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False)
        step(ours)
        step(ours)
        peaks.append(peak_of(partial(step, ours)))
    assert peaks[1] <= 1.02 * peaks[0]


def test_half_precision() -> None:
    ours, stock = chains(elu)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_training(ours, stock, image(size=SIZE), tolerance=0.1)


@TELLS_OF_RETAINING
@pytest.mark.parametrize("scaled", [False, True])
def test_a_graph_that_is_retained(scaled: bool) -> None:
    ours, stock = chains(elu, scaled=scaled)
    gradients = []
    for module in (ours, stock):
        loss = module(image(size=SIZE)).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        gradients.append(list(grads(module).values()))
    assert_close(*gradients, 1e-3)


def test_what_is_needed_after_the_stages_backward_is_made_before_it() -> None:
    """Of a part of the graph that a first backward leaves for the next one."""
    ours, stock = chains(elu, scaled=True)
    gradients = []
    for module in (ours, stock):
        made = module(image(size=SIZE)).square().mean()
        learning = [p for p in module.parameters() if p is not module.scale]
        first = torch.autograd.grad(made, learning)
        assert module.scale is not None
        gradients.append(first)
    assert_close(*gradients, 1e-3)


class Branch(nn.Module):
    """A stage's output goes through stock calls to two results, of which one is a leaf of
    the graph that the other's backward leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = Normed(3), Normed(WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.silu(self.first(x))
        aside = torch.sinh(y.detach() * self.scale)
        return self.second(F.elu(y)), torch.sinh(aside)


def test_a_second_backward_of_what_the_first_did_not_reach() -> None:
    stock = Branch()
    ours = ym.checkpoint(copy.deepcopy(stock), keep="conv", strict=False)
    for module in (ours, stock):
        for order in ((0, 1), (1, 0)):
            made = module(image(size=SIZE))
            for i in order:
                made[i].square().mean().backward()
    assert_same_gradients(ours, stock)


@TELLS_OF_HOOKS
def test_the_callers_hooks_get_what_is_saved_beside_it() -> None:
    ours, stock = chains(elu, scaled=True)
    seen: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append(tensor.numel())
        return tensor.clone()

    x = image(size=SIZE)
    with saved_tensors_hooks(pack, Tensor.clone):
        made = ours(x)
    assert seen.count(WIDTH * SIZE) == len(ours.rest)  # the scale, for each gap
    made.square().mean().backward()
    stock(x).square().mean().backward()
    assert_same_gradients(ours, stock)


@TELLS_OF_HOOKS
def test_a_parameter_that_has_changed_is_refused() -> None:
    ours, _ = chains(elu)
    loss = ours(image(size=SIZE)).sum()
    with torch.no_grad():
        ours.rest[3][1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_stages_hold_their_outputs() -> None:
    ours, stock = chains(elu)
    for module in (ours, stock):
        module.first.requires_grad_(False)
        module.rest[0].requires_grad_(False)
    assert_same_training(ours, stock, image(size=SIZE))
