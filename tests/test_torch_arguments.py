# SPDX-License-Identifier: MIT
"""Arguments that have a default, and are given another value."""

from __future__ import annotations

import copy
import enum
import warnings

import numpy as np
import pytest
import torch
from models_for_tests import (
    Brick,
    Net,
    assert_close,
    backward,
    image,
    leaves,
    ran_in_core,
    trains_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import conditions, registry


def test_arguments_that_are_not_default_are_stock() -> None:
    module = ym.checkpoint(Net())
    with pytest.warns(ym.StockForwardWarning, match="augment=True is not its default"):
        backward(module(image(), augment=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        backward(module(image(), True))
    assert ran_in_core(module) == 0
    assert "augment=True is not its default" in ym.report(module).rows[0].detail
    assert trains_in_core(module, image(), False)


def test_the_parts_are_not_where_the_module_is_for_its_arguments() -> None:
    """As in DAMO-YOLO, whose forward takes boxes in objects of its own."""

    class Trained(Net):
        def forward(self, x: Tensor, targets: object = None) -> Tensor:
            return sum(leaf.square().mean() for leaf in leaves(super().forward(x)))

    stock = Trained()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    with pytest.warns(
        ym.StockForwardWarning, match="targets, list, is not its default"
    ):
        losses = [module(image(), [object()]) for module in (ours, stock)]
    assert_close(*losses)
    states = {row.path: row.state for row in ym.report(ours).rows}
    assert states.pop("") == "stock" and "swapped" in states.values()


@pytest.mark.parametrize("gains", [np.array([2.0, 3.0]), [2.0], 2.0])
def test_an_argument_that_is_not_its_default_runs_stock(gains: object) -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6)

        def forward(self, x: Tensor, gains: object = None) -> Tensor:
            return self.brick(x) * (1 if gains is None else float(np.sum(gains)))

    stock = Gained()
    ours = ym.checkpoint(copy.deepcopy(stock))
    with pytest.warns(ym.StockForwardWarning, match="gains.* is not its default"):
        assert_close(ours(image(), gains), stock(image(), gains))
    (row,) = ym.report(ours).rows
    assert row.state == "stock" and "is not its default" in row.detail
    assert_close(ours(image()), stock(image()))
    assert ran_in_core(ours) == 1


class Choosing(nn.Module):
    """As models of transformers and diffusers, which ask how to hand out what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.brick = Brick(3, 6)

    def forward(
        self, x: Tensor, reduction: str | None = None, return_dict: bool = True
    ) -> dict[str, Tensor] | tuple[Tensor]:
        y = self.brick(x)
        y = y if reduction is None else getattr(y, reduction)((2, 3))
        return {"sample": y} if return_dict else (y,)


@pytest.mark.parametrize("strict", [True, False])
def test_a_choice_of_few_is_recorded(strict: bool) -> None:
    stock = Choosing()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    choices = (
        {},
        {"return_dict": False},
        {"reduction": "sum"},
        {},
        {"reduction": "mean"},
    )
    for choice in choices:
        made = []
        for module in (ours, stock):
            module.zero_grad(set_to_none=True)
            out = module(image(), **choice)
            (leaf,) = leaves(out)
            leaf.square().sum().backward()
            grads = (parameter.grad for parameter in module.parameters())
            made.append((type(out), leaf, *grads))
        assert made[0][0] is made[1][0]
        for a, b in zip(made[0][1:], made[1][1:]):
            assert_close(a, b)
    assert ran_in_core(ours) == len(choices)


class Kind(enum.Enum):
    """Prints all the same."""

    HALF = 0.5
    DOUBLE = 2.0

    def __repr__(self) -> str:
        return "a kind"

    def __eq__(self, other: object) -> bool:  # so it has no hash
        return self is other


class Kinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.brick = Brick(3, 6)

    def forward(self, x: Tensor, kind: Kind | str | None = None) -> Tensor:
        gain = kind.value if isinstance(kind, Kind) else len(kind or "")
        return self.brick(x) * gain


def test_choices_are_told_apart_by_what_they_are() -> None:
    stock = Kinds()
    ours = ym.checkpoint(copy.deepcopy(stock))
    for kind in (Kind.HALF, Kind.DOUBLE, Kind.HALF):
        assert_close(ours(image(), kind), stock(image(), kind))
    assert ran_in_core(ours) == 3


def test_a_text_that_is_another_in_each_call_is_no_choice() -> None:
    ours = ym.checkpoint(Kinds(), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(20):
            backward(ours(image(), f"{number}.jpg"))
    assert registry.runner_of(ours).counts["recordings"] == conditions.MOST_CHOICES


def test_what_asks_for_more_than_results_runs_stock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Talks(Kinds):
        def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
            if verbose:
                print("forward")
            return self.brick(x)

    ours = ym.checkpoint(Talks())
    with pytest.warns(ym.StockForwardWarning, match="verbose=True"):
        backward(ours(image(), verbose=True))
    backward(ours(image(), verbose=True))
    assert capsys.readouterr().out.count("forward") == 2
