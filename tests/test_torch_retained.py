# SPDX-License-Identifier: MIT
"""Several backwards of one forward, with retain_graph=True: as in stock PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from allocations import held_by
from emulated_gpu import emulated_gpu
from gap_models import Two, two
from models_for_tests import (
    TELLS_OF_RETAINING,
    Brick,
    Net,
    assert_close,
    assert_same_gradients,
    grads,
    image,
    leaves,
    pair,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import planned, shared_call


def each_loss(module: nn.Module, x: Tensor) -> list[Tensor]:
    """A backward for each output, the graph kept but for the last; then the gradients."""
    losses = [y.square().mean() for y in leaves(module(x))]
    for number, loss in enumerate(losses, 1):
        loss.backward(retain_graph=number < len(losses))
    return list(grads(module).values())


@TELLS_OF_RETAINING
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("segments", [1, 3])
def test_a_backward_for_each_loss(keep: str, segments: int) -> None:
    ours, stock = pair(keep=keep, segments=segments)
    x, y = image().requires_grad_(), image().requires_grad_()
    for _ in range(2):
        assert_close(each_loss(ours, x), each_loss(stock, y), 1e-3)
    assert_close(x.grad, y.grad, 1e-3)
    assert ran_in_core(ours) == 2


def normed() -> nn.Module:
    """Stock calls between stages, which are made again in backward."""
    middle = (nn.GroupNorm(2, 8), nn.SiLU(), nn.Dropout(0.3), Brick(8, 8, 3))
    return nn.Sequential(Brick(3, 8, 3), *middle, nn.GroupNorm(2, 8), Brick(8, 4, 3))


@TELLS_OF_RETAINING
@pytest.mark.parametrize("make", [Two, normed])
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_with_stock_calls_between(make: Callable[[], nn.Module], keep: str) -> None:
    torch.manual_seed(0)
    ours, stock = pair(make, keep=keep, strict=False)
    made = []
    for module in (ours, stock):
        torch.manual_seed(5)
        losses = [y.square().mean() for y in leaves(module(image(size=32)))]
        for loss in (*losses, losses[0]):
            loss.backward(retain_graph=True)
        made.append([*grads(module).values()])
    assert_close(made[0], made[1], 1e-3)
    assert ran_in_core(ours) == 1


@TELLS_OF_RETAINING
def test_the_same_bits_each_time() -> None:
    ours, _ = pair(keep="min", segments=2)
    loss = sum(y.square().mean() for y in leaves(ours(image())))
    parameters = list(ours.parameters())
    first, second, third = (
        torch.autograd.grad(loss, parameters, retain_graph=again)
        for again in (True, True, False)
    )
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@TELLS_OF_RETAINING
@pytest.mark.parametrize("output", [0, 2])
def test_gradients_of_some_and_then_of_all(output: int) -> None:
    """The first passes stop on the way, as where losses are weighed by their gradients
    at a shared layer."""
    ours, stock = two()
    made = []
    for module in (ours, stock):
        outs = module(image())
        late, early = module.second.cv3.conv.weight, module.first.cv1.conv.weight
        found = [
            torch.autograd.grad(outs[k].sum(), [weight], retain_graph=True)[0]
            for k, weight in ((2, late), (output, early), (2, late))
        ]
        sum(y.square().sum() for y in outs).backward()
        made.append([*found, *grads(module).values()])
    assert_close(made[0], made[1], 1e-3)


@TELLS_OF_RETAINING
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[..., 1:-1, 1:-1],
    ],
    ids=["planar", "channels_last", "crop"],
)
@pytest.mark.parametrize("part", [0.0, 1.0])
def test_inputs_that_stay_packed(
    layout: Callable[[Tensor], Tensor], part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU whose launches are repeated, where there is room."""
    monkeypatch.setattr(planned, "KEPT_WORKSPACE", part)
    ours, stock = Net(), Net()
    ours.load_state_dict(stock.state_dict())
    x = layout(image(size=18))
    with emulated_gpu():
        made = each_loss(ym.checkpoint(ours), x)
    assert_close(made, each_loss(stock, x), 1e-3)


@TELLS_OF_RETAINING
def test_what_forward_kept_is_freed_by_the_last_one() -> None:
    module = ym.checkpoint(Brick(3, 16, 3), keep="conv")
    x = image(size=64)
    module(x).sum().backward()  # has the workspace and the gradients

    def passes(*retained: bool) -> int:
        def work() -> Tensor:
            loss = module(x).sum()
            for again in retained:
                loss.backward(retain_graph=again)
            return loss

        return held_by(work)

    kept = ym.report(module).rows[0].held_bytes
    assert passes(True, True) >= kept - x.nbytes
    assert passes(True, False) < 0.1 * kept  # the loss, and some
    loss = module(x).sum()
    loss.backward(retain_graph=True)
    node = loss.grad_fn.next_functions[0][0]
    assert node.call._arena is None and node.call._backward is None
    assert node.call.saved is not None


@TELLS_OF_RETAINING
def test_after_a_backward_that_failed() -> None:
    ours, stock = pair(
        lambda: nn.Sequential(Brick(3, 8, 3), Brick(8, 4, 3)), segments=2
    )
    x, fails = image().requires_grad_(), [True]

    def hook(grad: Tensor) -> None:
        if fails.pop():
            raise ValueError("on the way")

    out = ours(x)
    x.register_hook(hook)
    with pytest.raises(ValueError, match="on the way"):
        out.square().sum().backward(retain_graph=True)
    ours.zero_grad()
    fails.append(False)
    out.square().sum().backward()
    stock(image()).square().sum().backward()
    assert_same_gradients(ours, stock)


@TELLS_OF_RETAINING
def test_one_that_is_not_retained_is_the_last() -> None:
    loss = ym.checkpoint(Brick(3, 4))(image()).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="Brick: backward ran a second time"):
        loss.backward()


def test_a_pytorch_that_does_not_tell_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_call, "is_retained", lambda: False)
    loss = ym.checkpoint(Brick(3, 4))(image()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Brick: backward ran a second time"):
        loss.backward()


@TELLS_OF_RETAINING
def test_copies_of_a_module_with_a_retained_graph() -> None:
    """The graph is no part of the module."""
    module = ym.checkpoint(Brick(3, 4))
    loss = module(image()).sum()
    loss.backward(retain_graph=True)
    made = copy.deepcopy(module)
    assert made(image()).shape == module(image()).shape
    loss.backward()
