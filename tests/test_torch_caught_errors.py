# SPDX-License-Identifier: MIT
"""A forward that catches an error which only a recording raises runs in stock PyTorch: it
does something else with numbers. What the module raises as well is recorded."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models_for_tests import Brick, assert_same_training, image
from torch import Tensor, nn
from torch.autograd import Function

import yolov9mem.torch as ym


class ByAddress(Function):
    """As of a kernel in another language."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert x.data_ptr() != 0
        return x + 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class GivenAModule(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
        return x + 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def is_positive(x: Tensor) -> None:
    assert x.square().sum() > 0


def has_a_history(x: Tensor) -> None:
    assert x.grad_fn is not None


class Trying(nn.Module):
    """Tries something with a value and does without it where that fails."""

    def __init__(self, attempt: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.last = Brick(3, 8), Brick(8, 4)
        self.attempt = attempt

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        try:
            self.attempt(y)
        except Exception:
            return self.last(y * 3)
        return self.last(y)


def compare(attempt: Callable[[Tensor], Any]) -> str:
    """Returns what the report says."""
    torch.manual_seed(0)
    stock = Trying(attempt)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())
    row = ym.report(ours).rows[0]
    return f"{row.state}: {row.detail}"


@pytest.mark.parametrize(
    "attempt, reason",
    [
        (is_positive, "values of tensors"),
        (lambda x: x.sum().item(), "values of tensors"),
        (lambda x: x.detach().numpy(), "numpy.*values of tensors"),
        (torch.nonzero, "values of tensors"),
        (lambda x: x.as_strided((1,), (1,)), "as_strided.*reads memory"),
        (lambda x: x.register_hook(torch.abs), "register_hook.*effect beyond"),
        (has_a_history, "grad_fn.*not known before"),
        (Tensor.data_ptr, "data_ptr.*by the addresses of tensors"),
        (lambda x: ByAddress.apply(x), "ByAddress.*by the addresses of tensors"),
        (lambda x: GivenAModule.apply(x, nn.ReLU()), "an argument of it is a ReLU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_recording_alone_raises(attempt: Any, reason: str) -> None:
    assert re.match(f"stock: .*{reason}", compare(attempt))


@pytest.mark.parametrize(
    "attempt", [lambda x: x.view(7, 7, 7), lambda x: x + torch.ones(5, 6, 7)]
)
def test_what_the_module_raises_as_well(attempt: Any) -> None:
    assert compare(attempt).startswith("swapped: ")


def test_an_error_of_its_own_is_raised_behind_a_caught_one() -> None:
    def attempt(x: Tensor) -> None:
        try:
            x.data_ptr()
        except RuntimeError:
            raise KeyError("no kernel") from None

    assert "by the addresses of tensors" in compare(attempt)
