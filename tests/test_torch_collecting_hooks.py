# SPDX-License-Identifier: MIT
"""Hooks with which models of transformers collect hidden states.

What stands for transformers here has the two things that the package knows of it: the
name of its module and `_active_collector`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType

import pytest
import torch
from models_for_tests import Brick, assert_close, image, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym

OF = "transformers.utils.output_capturing"
Collector = ContextVar[dict[str, list[Tensor]] | None]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    module = ModuleType(OF)
    module._active_collector = ContextVar("output_collector", default=None)
    monkeypatch.setitem(sys.modules, OF, module)
    return module._active_collector


def hook_of(collector: Collector) -> Callable[..., None]:
    def output_capturing_hook(module: nn.Module, args: object, output: Tensor) -> None:
        collected = collector.get()
        if collected:
            collected["hidden_states"].append(output)

    output_capturing_hook.__module__ = OF
    return output_capturing_hook


class Encoder(nn.Module):
    """Hands out what its layers make, if it is asked for."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(Brick(3, 8), Brick(8, 8), Brick(8, 4))
        for layer in self.layers:
            layer.register_forward_hook(hook_of(collector))

    def forward(
        self, x: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        collector = sys.modules[OF]._active_collector
        collected = {"hidden_states": []} if output_hidden_states else {}
        token = collector.set(collected)
        try:
            y = self.layers(x).tanh()
        finally:
            collector.reset(token)
        return y, collected.get("hidden_states", [])


def step(module: nn.Module, *args: object) -> list[Tensor]:
    """All results, and all gradients."""
    module.zero_grad(set_to_none=True)
    y, hidden = module(image(), *args)
    sum(part.square().mean() for part in (y, *hidden)).backward()
    return [y, *hidden, *(parameter.grad for parameter in module.parameters())]


def test_they_are_a_part_of_the_forward_that_collects(collector: Collector) -> None:
    stock = Encoder(collector)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for asked in (True, False, True):
        made = step(ours, asked), step(stock, asked)
        for a, b in zip(*made, strict=True):
            assert_close(a, b)
    assert ran_in_core(ours) == 3


def test_they_see_what_is_made_where_a_forward_outside_collects(
    collector: Collector,
) -> None:
    stock = Encoder(collector)
    encoder = copy.deepcopy(stock)
    ours = ym.checkpoint(encoder.layers, strict=False)
    with pytest.warns(ym.StockForwardWarning, match="has a hook"):
        made = step(encoder, True)
    for a, b in zip(made, step(stock, True), strict=True):
        assert_close(a, b)
    for a, b in zip(step(encoder), step(stock), strict=True):
        assert_close(a, b)
    assert ran_in_core(ours) == 1


def test_other_hooks_beside_them_are_called(collector: Collector) -> None:
    encoder = Encoder(collector)
    seen: list[Tensor] = []
    encoder.layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
    ours = ym.checkpoint(encoder, strict=False)
    with pytest.warns(ym.StockForwardWarning, match="layers.1 has a hook"):
        _, hidden = ours(image(), True)
    assert len(seen) == 1 and seen[0] is hidden[1]
