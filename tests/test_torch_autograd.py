# SPDX-License-Identifier: MIT
"""The autograd nodes: which gradients, and what is refused by name."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models_for_tests import (
    Brick,
    Elan,
    Net,
    assert_close,
    assert_same_gradients,
    assert_same_training,
    backward,
    grads,
    image,
    leaves,
    pair,
    ran_in_core,
)
from torch import nn

import yolov9mem.torch as ym


# Once only
def test_a_second_backward_is_refused_by_name() -> None:
    module = ym.checkpoint(Brick(3, 4))
    loss = module(image()).sum()
    loss.backward()
    with pytest.raises(
        RuntimeError, match="yolov9mem: Brick: backward ran a second time.*retain_graph"
    ):
        loss.backward()
    module(image()).sum().backward()


def test_create_graph_is_refused_by_name() -> None:
    x = image().requires_grad_()
    module = ym.checkpoint(Brick(3, 4))
    with pytest.raises(RuntimeError, match="yolov9mem: Brick: create_graph=True"):
        torch.autograd.grad(module(x).sum(), x, create_graph=True)


def test_batched_gradients_are_refused_by_name() -> None:
    module = ym.checkpoint(Brick(3, 4))
    y = module(image()).mean((2, 3))
    each = torch.eye(y.numel()).view(-1, *y.shape)
    weight = module.conv.weight
    with pytest.raises(RuntimeError, match="yolov9mem: Brick: is_grads_batched=True"):
        torch.autograd.grad(y, weight, each, is_grads_batched=True)
    module(image()).sum().backward()


def test_an_inference_tensor_is_refused_before_anything_moves() -> None:
    ours, stock = pair()
    with torch.inference_mode():
        x = image()
    for module in (ours, stock):
        before = copy.deepcopy(module.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ym.StockForwardWarning)
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
                module(x)
        assert all(map(torch.equal, before.values(), module.state_dict().values()))
    assert_same_training(ours, stock, image())


def test_a_subset_of_gradients() -> None:
    ours, stock = pair(segments=3)
    for module in (ours, stock):
        module.wanted = torch.autograd.grad(
            sum(leaf.sum() for leaf in leaves(module(image()))),
            [module.stem.conv.weight, module.main[0][1].bias],
        )
    assert_close(ours.wanted, stock.wanted, 1e-3)
    loss = sum(leaf.sum() for leaf in leaves(ours(image())))
    torch.autograd.grad(loss, [ours.main[0][1].bias])
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, [ours.stem.conv.weight])


# Which gradients
@pytest.mark.parametrize("segments", [1, 2, 5])
def test_segments_change_nothing(segments: int) -> None:
    ours, stock = pair(segments=segments)
    assert_same_training(ours, stock, image())
    one = ym.checkpoint(copy.deepcopy(stock), segments=1)
    for module in (ours, one):
        module.load_state_dict(stock.state_dict())
        module.zero_grad()
        backward(module(image()))
    for name, grad in grads(one).items():
        assert torch.equal(grads(ours)[name], grad), name


@pytest.mark.parametrize("segments", [1, 3])
def test_unused_outputs_leave_their_parameters_without_gradient(segments: int) -> None:
    ours, stock = pair(segments=segments)
    for module in (ours, stock):
        backward(module(image()), only=slice(2, 3))  # the finer level of the main head
    assert set(grads(ours)) == set(grads(stock))
    assert "aux.0.weight" not in grads(ours)
    assert_same_gradients(ours, stock)


def test_gradients_accumulate() -> None:
    ours, stock = pair()
    for seed in range(3):
        for module in (ours, stock):
            backward(module(image()), seed)
    assert_same_gradients(ours, stock)


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("frozen", ["stem", "elan", "main", "stem elan down side"])
def test_frozen_layers(frozen: str, segments: int) -> None:
    ours, stock = pair(segments=segments)
    for module in (ours, stock):
        for name in frozen.split():
            getattr(module, name).requires_grad_(False)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    row = ym.report(ours).rows[0]
    assert row.held_bytes <= row.stock_bytes + image().nbytes


def test_all_frozen_is_stock() -> None:
    module = ym.checkpoint(Net().requires_grad_(False))
    assert not any(leaf.requires_grad for leaf in leaves(module(image())))
    assert ran_in_core(module) == 0
    x = image().requires_grad_()
    backward(module(x))
    assert ran_in_core(module) == 1
    assert x.grad is not None


def test_outputs_of_frozen_layers_need_no_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Brick(3, 4), Brick(4, 4)

        def forward(self, x):
            y = self.a(x)
            return y, self.b(y)

    module = ym.checkpoint(Two())
    module.a.requires_grad_(False)
    fixed, flowing = module(image())
    assert not fixed.requires_grad
    assert flowing.requires_grad


def test_the_gradient_of_the_input() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4), segments=2)
    given, expected = image().requires_grad_(), image().requires_grad_()
    backward(ours(given))
    backward(stock(expected))
    assert_close(given.grad, expected.grad, 1e-3)


def test_an_input_that_is_returned_bypasses_the_node() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 4)

        def forward(self, x):
            return x, self.brick(x)

    x = image()
    given, made = ym.checkpoint(Both())(x)
    assert given is x
    assert made.requires_grad
    assert not given.requires_grad


def test_several_calls_before_backward() -> None:
    ours, stock = pair()
    for module in (ours, stock):
        outs = [module(image(n)) for n in (2, 3)]
        for out in outs:
            backward(out)
    assert_same_gradients(ours, stock)


def test_a_changed_input_or_weight_raises_as_torch_does() -> None:
    module = ym.checkpoint(Brick(3, 4))
    x = image()
    loss = module(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = module(image()).sum()
    with torch.no_grad():
        module.conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_outputs_may_be_changed_in_place() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4))
    for module in (ours, stock):
        module(image()).mul_(2).relu_().sum().backward()
    assert_same_gradients(ours, stock)


def test_hooks_on_parameters_and_outputs() -> None:
    ours, stock = pair()
    seen = {}
    for key, module in (("ours", ours), ("stock", stock)):
        names = []
        for name, p in module.named_parameters():
            p.register_post_accumulate_grad_hook(
                lambda p, n=name, names=names: names.append(n)
            )
        out = module(image())
        leaves(out)[0].register_hook(lambda grad: grad * 2)
        backward(out)
        seen[key] = sorted(names)
    assert seen["ours"] == seen["stock"]
    assert_same_gradients(ours, stock)
