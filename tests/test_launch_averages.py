# SPDX-License-Identifier: MIT
"""The moving average of a launched script, which moves when and as the script says."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolov9mem.launch import averages
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch


def rising(updates: int) -> float:
    return 0.9 * (1 - math.exp(-updates / 5))


class Average:
    """The official moving average, of few updates."""

    def __init__(self, net: nn.Module) -> None:
        self.ema = copy.deepcopy(net).requires_grad_(False)
        self.updates = 0
        self.decay = rising

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.updates += 1
        d, live = self.decay(self.updates), net.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.is_floating_point():
                value *= d
                value += (1 - d) * live[name]


AfterStep = Callable[[int, nn.Module, Any], None]


def late(i: int, net: nn.Module, ema: Any) -> None:
    if i >= 3:
        ema.update(net)


def every_second(i: int, net: nn.Module, ema: Any) -> None:
    if i % 2:
        ema.update(net)


def not_once(i: int, net: nn.Module, ema: Any) -> None:
    if i != 4:
        ema.update(net)


def twice(i: int, net: nn.Module, ema: Any) -> None:
    ema.update(net)
    ema.update(net)


def by_name(i: int, net: nn.Module, ema: Any) -> None:
    ema.update(net=net)


def clamped(i: int, net: nn.Module, ema: Any) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.clamp_(-0.3, 0.3)
    ema.update(net)


def other_updates(i: int, net: nn.Module, ema: Any) -> None:
    ema.updates = 10 * i
    ema.update(net)


def other_decay(i: int, net: nn.Module, ema: Any) -> None:
    ema.decay = lambda updates: 0.5 + i / 100
    ema.update(net)


def seen_before(i: int, net: nn.Module, ema: Any) -> None:
    ema.seen = [*getattr(ema, "seen", []), ema.ema[0].weight.sum()]
    ema.update(net)


def other_module(i: int, net: nn.Module, ema: Any) -> None:
    ema.ema = copy.deepcopy(ema.ema)
    ema.update(net)


def of_a_copy(i: int, net: nn.Module, ema: Any) -> None:
    copy.deepcopy(ema).update(net)
    pickle.loads(pickle.dumps(ema)).update(net)


def trained(after_step: AfterStep, settings: Settings | None) -> list[Any]:
    """State of net and average at the end, and the average's count."""
    launch = None if settings is None else Launch(settings)
    if launch is not None:
        launch.start()
    try:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
        ema = Average(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, foreach=False)
        for i in range(8):
            net(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(i, net, ema)
        if launch is not None:
            assert launch.session is not None
            assert "moving average" in launch.session.swapped
    finally:
        if launch is not None:
            launch.stop()
    assert "yolov9mem" not in Average.update.__module__
    assert not hasattr(Average.update, "yolov9mem_moves")
    states = [*net.state_dict().values(), *ema.ema.state_dict().values()]
    return [*states, *getattr(ema, "seen", []), ema.updates]


@pytest.mark.parametrize(
    "after_step",
    [
        late, every_second, not_once, twice, by_name, clamped, other_updates,
        other_decay, seen_before, other_module, of_a_copy,
    ],
)  # fmt: skip
def test_an_average_is_moved_when_the_script_says(after_step: AfterStep) -> None:
    stock = trained(after_step, None)
    ours = trained(after_step, Settings(keep="off"))
    for a, b in zip(stock, ours, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


class Warmed(Average):
    """Copies at first."""

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        if self.updates < 3:
            self.updates += 1
            self.ema.load_state_dict(net.state_dict())
        else:
            super().update(net)


class Counting(Average):
    steps = 0

    def update(self, net: nn.Module) -> None:
        self.steps += 1
        super().update(net)


def test_an_update_that_does_more_or_begins_otherwise_stays_stock() -> None:
    net = nn.Linear(2, 2)
    assert averages.why_not(Average(net)) is None
    assert "another formula" in str(averages.why_not(Warmed(net)))
    assert "sets more" in str(averages.why_not(Counting(net)))
