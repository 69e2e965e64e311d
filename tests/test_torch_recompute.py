# SPDX-License-Identifier: MIT
"""Stock calls between two stages that are made again in backward: where that would go
wrong, and where it would not save memory, they are not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import TELLS_OF_HOOKS, assert_close, assert_same_training, image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import yolov9mem.torch as ym
from yolov9mem.torch.running import recompute, registry
from yolov9mem.torch.running.stock_calls import Caller

Step = Callable[[nn.Module, Tensor], Tensor]


class Chain(nn.Module):
    """Some convolutions, each in a ``step``."""

    def __init__(self, step: Step, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.rest = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv in self.rest:
            x = self.step(conv, x)
        return x


def chains(step: Step, keep: str = "conv") -> tuple[nn.Module, nn.Module]:
    stock = Chain(step)
    return ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False), stock


def overwritten(conv: nn.Module, x: Tensor) -> Tensor:
    """A value is changed in place after the softmax of it was read."""
    x = F.silu(conv(x))
    y = conv(torch.softmax(x, 1))
    x.lerp_(torch.zeros_like(x), torch.sin(y))
    return F.silu(conv(F.silu(conv(x + y))))


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_what_a_later_call_changes_is_not_read_again(keep: str) -> None:
    ours, stock = chains(overwritten, keep)
    assert_same_training(ours, stock, image())
    assert ym.report(ours).rows[0].state == "swapped"


def normed(conv: nn.Module, x: Tensor) -> Tensor:
    return F.relu(F.group_norm(conv(x), 2))


def test_it_does_without_hooks_where_they_are_forbidden() -> None:
    ours, stock = chains(normed)
    assert_same_training(ours, stock, image())
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        assert_same_training(ours, stock, image())
    assert ym.report(ours).rows[0].state == "swapped"


def fused(conv: nn.Module, x: Tensor) -> Tensor:
    """Of which autograd keeps what the kernel wants that PyTorch chooses."""
    rows = conv(x).flatten(2).transpose(1, 2)[:, None]
    return F.scaled_dot_product_attention(rows, rows, rows).reshape(x.shape)


def test_the_kernels_of_attention_are_chosen_around_forward() -> None:
    ours, stock = chains(fused, "min")
    gradients = []
    for module in (ours, stock):
        with sdpa_kernel(SDPBackend.MATH):
            made = module(image())
        made.square().mean().backward()
        gradients.append([p.grad for p in module.parameters()])
    assert_close(*gradients, 1e-3)
    assert ym.report(ours).rows[0].state == "swapped"


def test_it_finds_what_forward_had_around_it(monkeypatch) -> None:
    """And puts back what backward has."""
    kept: list[Callable[[], object]] = []
    seen: list[tuple[object, ...]] = []

    def checkpoint(
        function: Callable[..., object], *given: object, **_: object
    ) -> object:
        kept.append(lambda: function(*given))
        return function(*given)

    def around() -> tuple[object, ...]:
        deterministic = torch.are_deterministic_algorithms_enabled()
        return torch.empty(0).device, torch.backends.cudnn.enabled, deterministic

    def noting(caller: Caller, *given: object) -> list[Tensor]:
        seen.append(around())
        return make(caller, *given)

    make = Caller.make
    monkeypatch.setattr(recompute, "checkpoint", checkpoint)
    monkeypatch.setattr(Caller, "make", noting)
    chains(normed)[0](image())
    forward = len(seen)
    try:
        torch.use_deterministic_algorithms(True)
        with torch.device("meta"), torch.backends.cudnn.flags(enabled=False):
            others = around()
            for function in kept:
                function()
            assert around() == others
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(seen) > forward and set(seen) == {around()} != {others}


def resized(conv: nn.Module, x: Tensor) -> Tensor:
    """Of which autograd keeps nothing, and the next stage less than it reads."""
    size = x.shape[2] - 8
    return F.interpolate(F.silu(conv(F.silu(conv(x)))), (size, size), mode="bicubic")


def shuffled(conv: nn.Module, x: Tensor) -> Tensor:
    """Of which autograd keeps nothing, however much is made on the way."""
    y = F.pixel_shuffle(F.silu(conv(x)), 2).transpose(2, 3)
    return F.pixel_unshuffle(y, 2)


def attended(conv: nn.Module, x: Tensor) -> Tensor:
    """Of which autograd keeps a product and views of what it reads."""
    y = conv(x).flatten(2)
    weights = torch.softmax(y[:, :4].transpose(1, 2) @ y[:, 4:], -1)
    return (y @ weights).view(x.shape)


def activated(conv: nn.Module, x: Tensor) -> Tensor:
    """Fused attention, of activations."""
    return fused(conv, F.silu(conv(F.silu(conv(x)))))


def masked(conv: nn.Module, x: Tensor) -> Tensor:
    """By a mask that learns, for which PyTorch has no fused kernel."""
    rows = F.silu(conv(F.silu(conv(x)))).flatten(2).transpose(1, 2)[:, None]
    mask = rows.mean((0, 3)).expand(rows.shape[2], -1)
    y = F.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask)
    return y.reshape(x.shape)


@pytest.mark.parametrize(
    ("step", "keep", "again"),
    [
        (normed, "conv", 3),
        pytest.param(resized, "conv", 3, marks=TELLS_OF_HOOKS),
        (resized, "min", 0),
        pytest.param(shuffled, "conv", 3, marks=TELLS_OF_HOOKS),
        pytest.param(shuffled, "min", 1, marks=TELLS_OF_HOOKS),
        (attended, "conv", 3),
        (attended, "min", 3),
        (activated, "conv", 0),  # all of the work, for what autograd keeps of it
        (activated, "min", 3),
        (masked, "conv", 3),  # its weights are kept
    ],
)
def test_it_is_made_again_where_that_saves(step: Step, keep: str, again: int) -> None:
    ours, stock = chains(step, keep)
    assert_same_training(ours, stock, image(size=48))
    runner = registry.runner_of(ours)
    (lowered,) = runner.lowered.values()
    plans = tuple(graph.last for graph in lowered.graphs)
    assert len(lowered.recompute(plans, runner.keep).gaps) == again


def added(conv: nn.Module, x: Tensor) -> Tensor:
    """Of which autograd keeps more than the value that is held for it."""
    return x + F.dropout(torch.tanh(torch.sin(conv(x))), 0.5)


def test_what_autograd_would_keep_for_it_is_counted_as_stock() -> None:
    ours, stock = chains(added)
    ours(image(size=48))
    (row, *_) = ym.report(ours).rows
    (lowered,) = registry.runner_of(ours).lowered.values()
    gaps = list(lowered.recording.gaps.values())
    assert row.state == "swapped" and len(gaps) == 3
    assert row.stock_bytes >= sum(gap.saved_bytes for gap in gaps) > 0
