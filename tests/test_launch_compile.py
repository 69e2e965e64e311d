# SPDX-License-Identifier: MIT
"""Scripts that call torch.compile, launched: they run as in stock, and it is said."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models_for_tests import Brick, assert_close, assert_same_training, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch
from yolov9mem.torch.recording.ir import CannotLower

pytestmark = pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Sequential(Brick(3, 8, 3)), nn.Sequential(Brick(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))


def whole(model: Pair, **options: object) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="eager", **options)


def in_place(model: Pair, **options: object) -> Callable[[Tensor], Tensor]:
    model.compile(backend="eager", **options)
    return model


def function(model: Pair, **options: object) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: model(x), backend="eager", **options)


def child(model: Pair, **options: object) -> Callable[[Tensor], Tensor]:
    model.a = torch.compile(model.a, backend="eager")
    return model


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(
    make: Callable[..., Callable[[Tensor], Tensor]], early: bool, **options: object
) -> list[float]:
    """Losses of three steps; early: the optimizer is made before what is compiled."""
    torch.manual_seed(0)
    model = Pair()

    def sgd() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    optimizer = sgd() if early else None
    net = make(model, **options)
    optimizer = optimizer or sgd()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = net(torch.randn(2, 3, 16, 16)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    with torch.no_grad():
        losses.append(net(torch.randn(4, 3, 16, 16)).sum().item())
    return losses


def launched(
    make: Callable[..., Callable[[Tensor], Tensor]], early: bool, **options: object
) -> tuple[list[float], Launch]:
    launch = Launch(Settings())
    launch.start()
    try:
        return trained(make, early, **options), launch
    finally:
        launch.finish()
        launch.stop()


@pytest.mark.parametrize("early", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("fullgraph", [False, True], ids=["breaks", "full"])
@pytest.mark.parametrize("make", [whole, in_place])
def test_a_compiled_model_is_stock_and_its_optimizer_is_not(
    make: Callable[..., Callable[[Tensor], Tensor]], fullgraph: bool, early: bool
) -> None:
    losses, launch = launched(make, early, fullgraph=fullgraph)
    torch.compiler.reset()
    assert losses == trained(make, early, fullgraph=fullgraph)
    lines = dict(launch.lines)
    assert lines["model, stock"] == "torch.compile runs it"
    assert lines["optimizer"].startswith("swapped")


@pytest.mark.parametrize("fullgraph", [False, True], ids=["breaks", "full"])
def test_a_model_within_what_is_compiled_is_not_seen(
    fullgraph: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    losses, _ = launched(function, True, fullgraph=fullgraph)
    assert (
        "trained in this process, outside of torch.compile" in capsys.readouterr().err
    )
    torch.compiler.reset()
    assert losses == trained(function, True, fullgraph=fullgraph)


def test_what_is_beside_a_compiled_part_is_swapped() -> None:
    losses, launch = launched(child, False)
    torch.compiler.reset()
    assert losses == pytest.approx(trained(child, False), rel=1e-5)
    lines = dict(launch.lines)
    assert lines["model"].startswith("swapped: b (Sequential)")
    assert lines["model, stock"] == (
        "Pair: torch.compile in a: it has compiled this part"
    )


def test_a_part_that_is_compiled_in_place_is_recorded() -> None:
    """What it computes is the same; where the model runs stock the compiled part does."""
    calls = []

    def backend(
        graph: torch.fx.GraphModule, inputs: list[Tensor]
    ) -> Callable[..., Any]:
        calls.append(graph)
        return graph.forward

    torch.manual_seed(0)
    ours, x = Pair(), torch.randn(2, 3, 16, 16)
    stock = copy.deepcopy(ours)
    ours.a.compile(backend=backend)
    ym.checkpoint(ours)
    assert_same_training(ours, stock, x)
    ours.b.compile(backend=backend)
    assert_same_training(ours, stock, x)
    assert ran_in_core(ours) == 2 and not calls
    with torch.no_grad():
        assert_close(ours.eval()(x), stock.eval()(x))
    assert len(calls) >= 2


def test_a_compiled_part_is_refused_where_all_is_to_be_lowered() -> None:
    model = Pair()
    child(model)
    ym.checkpoint(model)
    with pytest.raises(CannotLower, match="torch.compile in a: it has compiled this"):
        model(torch.randn(2, 3, 16, 16))
