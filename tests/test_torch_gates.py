# SPDX-License-Identifier: MIT
"""Gates: a value times something smaller that is made of it, in one graph.

What is compared with what: modules as attention papers have them, checkpointed, with
the same in stock PyTorch; error rule and memory as for all other layers.
"""

from __future__ import annotations

import copy

import pytest
import rule
import torch
import torch.nn.functional as F
from models_for_tests import (
    Brick,
    assert_same_training,
    assert_swapped_whole,
    held_in_core,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running.registry import runner_of


class Squeeze(nn.Module):
    """Squeeze and excitation with linear layers (arXiv:1709.01507)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c, 4, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(4, c),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.size()
        gate = self.fc(self.pool(x).view(n, c)).view(n, c, 1, 1)
        return x * gate.expand_as(x)


class SqueezeConv(nn.Module):
    """The same with convolutions."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return F.hardsigmoid(self.up(F.silu(self.down(gate)))).mul(x)


class Rows(nn.Module):
    """A gate for each row and one for each column, as coordinate attention has."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.h, self.w = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.adaptive_avg_pool2d(x, (None, 1))
        w = F.adaptive_avg_pool2d(x, (1, x.shape[3]))
        return x * self.h(h).sigmoid() * self.w(w).sigmoid()


class Spatial(nn.Module):
    """A gate for each pixel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x *= F.relu6(self.conv(torch.mean(x, 1, keepdim=True)))
        return x


class Cbam(nn.Module):
    """Gates for channels and then for pixels (arXiv:1807.06521)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def inner(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x)))

    def forward(self, x: Tensor) -> Tensor:
        mean, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, (1, 1))
        x = torch.sigmoid(self.inner(mean) + self.inner(most)) * x
        both = torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)
        return self.conv(torch.cat(both, dim=1)).sigmoid() * x


class CbamLinear(nn.Module):
    """The gate for channels by linear layers, a sum of vectors and a sigmoid by hand."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(c, 4), nn.Linear(4, c)

    inner = Cbam.inner

    def forward(self, x: Tensor) -> Tensor:
        mean, most = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, (1, 1))
        gate = self.inner(mean.flatten(1)) + self.inner(most.flatten(1))
        gate = F.relu6(gate + 3.0) / 6.0
        return gate.unsqueeze(2).unsqueeze(3).expand_as(x) * x


class Pooled(nn.Module):
    """The mean as old code takes it, and the same value as both factors."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.fc = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(F.avg_pool2d(x, x.shape[2:]).flatten(1))[:, :, None, None]
        gate = F.relu(self.fc(x.mean((2, 3)))).unsqueeze(-1).unsqueeze(-1) + gate
        return torch.mul(x, gate) + x * x


GATES = (Squeeze, SqueezeConv, Rows, Spatial, Cbam, CbamLinear)


def gated(gate: type[nn.Module], c: int = 12) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(Brick(3, c, 3), gate(c), Brick(c, 8, 3))


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_part_of_its_graph(gate: type[nn.Module], keep: str) -> None:
    assert_swapped_whole(gated(gate), keep)


@pytest.mark.parametrize("gate", GATES)
def test_gates_keep_the_error_rule(gate: type[nn.Module]) -> None:
    rule.check(lambda: gated(gate), [(2, 3, 13, 17)])


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_costs_no_image(gate: type[nn.Module]) -> None:
    """Beside what the same module without it holds: gates, no value of full size."""

    torch.manual_seed(3)
    plain = held_in_core(nn.Sequential(Brick(3, 12, 3), Brick(12, 8, 3)), 64)
    pixels, value = 2 * 64 * 64, 2 * 64 * 64 * 12 * 4
    rows = 4 * 2 * 64 * 12 * 4
    allowed = {Spatial: 2 * pixels * 4, Rows: rows, Cbam: 2 * pixels * 4}.get(
        gate, 8192
    )
    assert held_in_core(gated(gate), 64) - plain <= allowed < value


def test_gates_as_old_code_has_them() -> None:
    stock = gated(Pooled)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1


def test_a_classifiers_head_is_lowered() -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    stock = nn.Sequential(Brick(3, 8, 3), head)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1 and ours(image(size=32)).shape == (2, 5)


class ByHand(nn.Module):
    """A gate that the core cannot make."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = Brick(3, 8, 3), function
        self.last = Brick(8, 8, 3)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.function(x, self.scale))


BY_HAND = {
    "conv1d": lambda x, s: x * (x.mean((2, 3)).cumsum(1).tanh()[:, :, None, None]),
    "parameter": lambda x, s: x * s,
    "of a parameter": lambda x, s: s.sigmoid() * x,
    "number": lambda x, s: x * 2.0,
    "expanded twice": lambda x, s: x.mean(1, True).expand(-1, 8, -1, -1) * x,
    "expanded and read": lambda x, s: x.mean(1, True).expand_as(x).cos() * x,
    "reshaped and read": lambda x, s: x * x.mean((2, 3)).cos().view(2, 8, 1, 1),
    "heads": lambda x, s: x * x.mean((2, 3), True).view(4, 4, 1, 1).view(2, 8, 1, 1),
    "expanded by hand": lambda x, s: (
        x.mean((2, 3), True).cumsum(1).tanh().expand_as(x) * x
    ),
    "a sum of two shapes": lambda x, s: (
        x * (x.mean((2, 3)).view(2, 8, 1, 1) + x[..., 0, 0].view(2, 8, 1, 1))
    ),
    "one of a batch": lambda x, s: x * x[:1].mean((2, 3), True),
    "two dimensions": lambda x, s: x * x[0, 0],
    "in place": lambda x, s: (x + 0.0).mul_(x.mean((2, 3), True)),
    "places of maxima": lambda x, s: x * torch.gather(x, 1, x.max(1, True)[1]).cos(),
    "the greater of two": lambda x, s: torch.max(x, x.flip(1)),
    "greatest": lambda x, s: x * x.max(),
    "of all": lambda x, s: x * x.mean(),
    "two sizes": lambda x, s: x * F.adaptive_avg_pool2d(x, (16, 1)).repeat(1, 1, 2, 1),
    "its own size": lambda x, s: x * F.adaptive_max_pool2d(x, (None, 32)),
    "in place on a repeated factor": lambda x, s: x.mean(1, True) * x + x,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_a_graph_cannot_make_is_read_by_it(name: str) -> None:
    torch.manual_seed(3)
    stock = ByHand(BY_HAND[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(2):
        assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 2


@pytest.mark.parametrize("name", BY_HAND)
def test_the_same_under_autocast(name: str) -> None:
    if name == "its own size" and torch.__version__.startswith("2.4."):
        pytest.skip(
            "PyTorch 2.4's gradient of a bfloat16 adaptive_max_pool2d is 25 % off"
        )
    torch.manual_seed(3)
    stock = ByHand(BY_HAND[name])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_training(ours, stock, image(size=32), tolerance=0.06)
    assert ran_in_core(ours) == 1


def test_a_repeated_factor_is_read_as_it_was_before() -> None:
    """One number a channel, and not one a pixel, where a stock call has made the gate."""
    stock = ByHand(BY_HAND["expanded by hand"])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    ours(image(size=32)).sum().backward()
    (graph,) = runner_of(ours).latest.graphs
    assert graph.program.input_sizes == [(2, 32, 32), (2, 1, 1)]


def test_factors_that_do_not_fit_raise_torchs_own_error() -> None:
    module = ym.checkpoint(ByHand(lambda x, s: x * x[:, :3]), strict=False)
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        module(image(size=32))


def test_a_linear_layer_of_another_width_raises_torchs_own_error() -> None:
    stock = nn.Sequential(
        Brick(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 5)
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ym.checkpoint(stock, strict=False)(image(size=32))


def test_a_view_of_a_gate_is_not_changed_in_place() -> None:
    def change(x: Tensor, s: Tensor) -> Tensor:
        gate = x.mean((2, 3), True)
        gate.view(2, 8).mul_(2.0)
        return x * gate

    torch.manual_seed(3)
    stock = ByHand(change)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))


def test_a_question_for_the_history_of_a_view_is_answered() -> None:
    def ask(x: Tensor, s: Tensor) -> Tensor:
        flat = x.mean((2, 3)).view(2, 8)
        return x * (2.0 if flat.requires_grad else 1.0)

    torch.manual_seed(3)
    stock = ByHand(ask)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
