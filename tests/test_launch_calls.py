# SPDX-License-Identifier: MIT
"""How a script calls its model, and what of it is swapped then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_for_tests import without_pieces
from torch import Tensor, nn
from torch.optim.sgd import SGD

from yolov9mem.launch.launch import Launch
from yolov9mem.torch.running.registry import runner_of

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Says nothing of how it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
        )


class ByName(Net):
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.layers(images)


class OfDict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["pixels"])


class OfList(Net):
    def forward(self, images: list[Tensor]) -> Tensor:
        return self.layers(torch.stack(images))


class OfTime(Net):
    """As in a diffusion model: a number comes first."""

    def forward(self, time: Tensor, images: Tensor) -> Tensor:
        return self.layers(images) * time


class CallsAgain(Net):
    """The way of ultralytics: a batch in training, the loss from there."""

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, dict):
            found = self.forward(x["img"])
            return found[found > 0].square().mean().reshape(1)
        return self.layers(x)


class OnlyBatches(Net):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.layers(x["img"])


Call = Callable[[nn.Module], Tensor]


def step(net: nn.Module, call: Call) -> list[Tensor]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    call(net).square().mean().backward()
    optimizer.step()
    return [p.detach() for p in net.parameters()]


CALLS: dict[type[Net], Call] = {
    ByName: lambda net: net(images=IMAGES),
    OfDict: lambda net: net({"pixels": IMAGES}),
    OfList: lambda net: net(list(IMAGES)),
    OfTime: lambda net: net(torch.tensor(2.0), IMAGES),
    CallsAgain: lambda net: net({"img": IMAGES}),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_model_is_swapped_however_it_gets_its_images(
    launch: Launch, kind: type[Net]
) -> None:
    launch.stop()
    stock = step(kind(), CALLS[kind])
    launch.start()
    ours = step(kind(), CALLS[kind])
    line = dict(launch.lines)["model"]
    assert without_pieces(line) == f"swapped: {kind.__name__}; keep=conv"
    for mine, theirs in zip(ours, stock, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_stop_ends_every_training_not_the_latest_alone(launch: Launch) -> None:
    nets = [ByName(), ByName()]
    made = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets[:1]]

    def train(number: int) -> None:
        nets[number](IMAGES).square().mean().backward()
        made[number].step(), made[number].zero_grad()

    train(0)
    made.append(torch.optim.SGD(nets[1].parameters(), lr=0.1))
    for number in (1, 0, 1):
        train(number)
    assert all(runner_of(net) is not None for net in nets)
    assert all(hasattr(optimizer, "yolov9mem_deferred") for optimizer in made)
    made.append(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
    train(0), train(1)  # looked at again, as an optimizer is new
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    launch.stop()
    assert all(runner_of(net) is None for net in nets)
    assert not any(hasattr(optimizer, "yolov9mem_deferred") for optimizer in made)


def test_a_model_that_stays_stock_is_named(launch: Launch) -> None:
    step(OnlyBatches(), lambda net: net({"img": IMAGES}))
    assert dict(launch.lines)["model, stock"] == (
        "OnlyBatches: its forward did not go on to the images in its batch"
    )


SGDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fused": (
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        "fused=True has other bits than the loop",
    ),
    "elsewhere": (
        lambda p: SGD(p, lr=0.1),
        "its class was not taken from torch.optim, or before the launch",
    ),
}


@pytest.mark.parametrize("kind", SGDS)
def test_why_an_sgd_stays_stock_is_said(launch: Launch, kind: str) -> None:
    make, why = SGDS[kind]
    net = ByName()
    optimizer = make(net.parameters())
    net(IMAGES).sum().backward()
    assert (
        dict(launch.lines)["optimizer, stock"] == f"{type(optimizer).__name__}: {why}"
    )
