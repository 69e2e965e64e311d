# SPDX-License-Identifier: MIT
"""A module that cannot be lowered as a whole: several graphs, stock calls between them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from allocations import peak_of
from models_for_tests import (
    Brick,
    Detector,
    Elan,
    Rep,
    assert_close,
    assert_same_training,
    backward,
    image,
    ran_in_core,
    replicate,
    without_pieces,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry
from yolov9mem.torch.running.entry import Entry


def pair(stock: nn.Module, keep: str = "min") -> tuple[nn.Module, nn.Module]:
    return ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False), stock


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_several_graphs_train_as_stock_does(keep: str, dtype: torch.dtype) -> None:
    ours, stock = pair(Detector(), keep)
    for size in (16, 24, 16):
        x = image(size=size)
        x = (x * 40 + 128).clamp(0, 255).to(dtype) if dtype is torch.uint8 else x
        assert_same_training(ours, stock, x)
    row, *left = ym.report(ours).rows
    assert row.state == "swapped" and row.calls == 3
    assert without_pieces(row.detail) == f"keep={keep}, in 2 stages"
    assert {r.path for r in left} >= {"attention", "bins"}
    assert all(r.state == "stock" for r in left)
    assert "conv3d in bins: it reads the weight bins.weight" in str(ym.report(ours))


def test_a_strict_module_names_the_first_call() -> None:
    with pytest.raises(ym.CannotLower, match="conv2d in stem.conv.*__getitem__"):
        ym.checkpoint(Detector())(image())


def test_one_graph_holds_less_than_its_children_do() -> None:
    """Each child's input is held; in one graph "min" rebuilds most of them."""
    bricks = [Elan(3, 16, 8), *(Elan(16, 16, 8) for _ in range(5))]
    ours, children = pair(nn.Sequential(*bricks, nn.Flatten(), nn.Linear(1 << 14, 2)))
    for child in children[:6]:
        ym.checkpoint(child, keep="min")
    held = []
    for module in (ours, children):
        backward(module(image(size=32)))
        held.append(sum(row.held_bytes for row in ym.report(module).rows))
    assert held[0] < 0.6 * held[1]


def test_autocast_reaches_graphs_and_stock_calls() -> None:
    stock = Detector()
    with torch.no_grad():
        exact = copy.deepcopy(stock).double()(image().double())
    ours, stock = pair(stock)
    errors = []
    for module in (ours, stock):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(image())
        backward(out)
        out = [leaf.detach() for leaf in out]
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(out, exact)])
    assert all(a <= 2 * b for a, b in zip(*errors, strict=True))
    assert ran_in_core(ours) == 1


def test_frozen_parts_have_no_gradients() -> None:
    ours, stock = pair(Detector())
    for frozen in (("stem", "elan"), ("stem", "elan", "attention", "rep"), ("neck",)):
        for module in (ours, stock):
            module.requires_grad_()
            for name in frozen:
                getattr(module, name).requires_grad_(False)
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 3


def test_an_input_that_wants_its_gradient() -> None:
    ours, stock = pair(Detector())
    images = [image().requires_grad_() for _ in range(2)]
    for module, x in zip((ours, stock), images, strict=True):
        backward(module(x))
    assert_close(images[0].grad, images[1].grad, 1e-3)


def test_replicas_find_all_tensors() -> None:
    ours, stock = pair(Detector())
    backward(replicate(ours)(image()))
    backward(stock(image()))
    assert_close(
        [p.grad for p in ours.parameters()], [p.grad for p in stock.parameters()], 1e-3
    )
    assert ran_in_core(ours) == 1
    assert ours.rep.a.bn.num_batches_tracked == 1


def gate(x: Tensor) -> Tensor:
    """(N, C, 1, 1), random; a 4-D mask would be drawn in the order of memory."""
    return F.dropout(x.mean((2, 3)))[..., None, None]


class Dropping(nn.Module):
    """Random stock calls whose order the graphs must keep."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Brick(3, 8, 3), Brick(8, 8, 3), Brick(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.b(self.a(x) * gate(self.a(x)))
        return first * gate(first) + gate(self.c(x))


def test_random_calls_keep_their_order() -> None:
    ours, stock = pair(Dropping())
    made = []
    for module in (ours, stock):
        ours(image())  # recorded; the generator is then put back
        torch.manual_seed(5)
        made.append(module(image()))
        made.append(torch.rand(3))
    assert torch.equal(made[1], made[3])
    assert_close(made[0], made[2])
    assert ran_in_core(ours) == 3


class Twice(nn.Module):
    """The batch norm's first call needs a stock call, its second does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, 1, 1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        first = F.silu(self.bn(self.first(x).tanh()))
        return first + F.silu(self.bn(self.second(x)))


def test_running_statistics_move_in_the_order_of_the_calls() -> None:
    ours, stock = pair(Twice())
    assert_same_training(ours, stock, image(), tolerance=2e-6)
    assert ours.bn.num_batches_tracked == 2
    assert ran_in_core(ours) == 1
    # In the other order the latest call weighs most, and it is another one.
    swapped = copy.deepcopy(stock)
    swapped.bn.reset_running_stats()
    swapped.bn(swapped.second(image()))
    swapped.bn(swapped.first(image()).tanh())
    difference = swapped.bn.running_mean - stock.bn.running_mean
    assert difference.norm() > 1e-3 * stock.bn.running_mean.norm()


def test_a_graph_that_nobody_reads_moves_its_statistics() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn = Elan(3, 8, 4), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            self.bn(y.tanh())
            return y

    ours, stock = pair(Aside())
    assert_same_training(ours, stock, image())
    assert ours.bn.num_batches_tracked == 1 and ran_in_core(ours) == 1


class Changes(nn.Module):
    """A stock result is read by a graph and then changed in place."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.a, self.b, self.before = Brick(3, 8, 3), Rep(8), before

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).sin()
        if self.before:
            y.mul_(2)
        z = self.b(y.clone())
        if not self.before:
            y.mul_(2)
        return z + y


@pytest.mark.parametrize("before", [True, False])
def test_results_changed_in_place(before: bool) -> None:
    ours, stock = pair(Changes(before))
    for _ in range(2):
        assert_same_training(ours, stock, image())
    assert ran_in_core(ours) > 0


def test_graphs_of_a_convolution_each_are_made() -> None:
    bricks = [part for _ in range(4) for part in (Brick(8, 8, 3), nn.Softsign())]
    ours, stock = pair(nn.Sequential(Elan(3, 8, 4), *bricks))
    assert_same_training(ours, stock, image())
    row = ym.report(ours).rows[0]
    assert (
        row.state == "swapped" and without_pieces(row.detail) == "keep=min, in 4 stages"
    )


def test_smaller_graphs_are_left_to_the_children() -> None:
    norms = [part for _ in range(6) for part in (nn.BatchNorm2d(8), nn.Softsign())]
    ours, stock = pair(nn.Sequential(Elan(3, 8, 4), *norms))
    assert_same_training(ours, stock, image())
    found = {row.path: row for row in ym.report(ours).rows}
    assert found[""].state == "stock" and "into 6 stages" in found[""].detail
    assert found["0"].state == "swapped"


def test_a_size_is_for_all_stages_together() -> None:
    ours, stock = pair(Detector(), "1GB")
    assert_same_training(ours, stock, image())
    assert "in 2 stages" in ym.report(ours).rows[0].detail
    ours = ym.checkpoint(Detector(), keep="1KB", strict=False)
    with pytest.raises(ValueError, match="1000 bytes is too small, the smallest plan"):
        ours(image())
    head = nn.Sequential(Elan(3, 8, 4), nn.Flatten(), nn.Linear(8 * 16 * 16, 2))
    ours, stock = pair(head, "1GB")
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 1


def test_what_nobody_reads_any_more_is_let_go_within_forward() -> None:
    """However many stock calls follow each other, as many results live as in one."""

    class Rolled(nn.Module):
        def __init__(self, rolls: int) -> None:
            super().__init__()
            self.a, self.b, self.rolls = Elan(3, 32, 8), Elan(32, 8, 8), rolls

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            for _ in range(self.rolls):  # their backward needs nothing of these
                x = x.roll(1, 3)
            unread, x = x.roll(2, 3).chunk(2, 1)
            x = torch.cat((x, x), 1)
            return self.b(x).roll(1, 2)

    peaks = []
    for rolls in (1, 9):
        ours, stock = pair(Rolled(rolls))
        assert_same_training(ours, stock, image())
        assert ran_in_core(ours) == 1
        peaks.append(peak_of(partial(ours, image())))
    assert peaks[0] == peaks[1]


def test_each_value_goes_after_its_last_reader() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = Elan(3, 8, 8), Elan(8, 8, 8), Elan(8, 8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).sin()).cos())

    ours, _ = pair(Calls())
    ours(image())
    entry = registry.runner_of(ours)
    assert isinstance(entry, Entry) and entry.latest is not None
    recording = entry.latest.recording
    assert [len(stage.done_with) for stage in recording.stages] == [0, 1, 1]
    assert [len(call.done_with) for call in recording.calls] == [1, 1]


LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: F.silu(x.sin()),
    "relu": lambda x: F.relu(x.sin(), inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x.sin(), 0.2),
    "add": lambda x: x + x.sin(),
    "add in place": lambda x: x.sin().add_(x),
    "add of three": lambda x: torch.stack((x, x.sin(), x.cos())).sum(0),
    "cat, slice": lambda x: torch.cat((x, x.sin()), 1)[:, 4:12],
    "max_pool2d": lambda x: F.max_pool2d(x.sin(), 2, 2, 1, ceil_mode=True),
    "avg_pool2d": lambda x: F.avg_pool2d(x.sin(), 3, 2, 1, count_include_pad=False),
    "interpolate": lambda x: F.interpolate(x.sin(), scale_factor=2),
    "interpolate to a size": lambda x: F.interpolate(x.sin(), size=(19, 21)),
    "interpolate bilinear": lambda x: F.interpolate(
        x.sin(), scale_factor=1.5, mode="bilinear"
    ),
    "interpolate corners": lambda x: F.interpolate(
        x.sin(), size=(19, 21), mode="bilinear", align_corners=True
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_part_without_a_convolution_is_left_to_stock(name: str) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Elan(3, 8, 4), Elan(8, 8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(LEFT[name](self.first(x)).exp())

    ours, stock = pair(Between())
    for _ in range(2):
        assert_same_training(ours, stock, image())
    row, left = ym.report(ours).rows
    assert row.calls == 2 and without_pieces(row.detail) == "keep=min, in 2 stages"
    for op in name.partition(" ")[0].split(","):
        assert (
            f"{op} in the module itself: a graph without a convolution" in left.detail
        )


@pytest.mark.parametrize("strict", [True, False])
def test_reading_by_strides_is_refused(strict: bool) -> None:
    """The strides of a value are not those of stock PyTorch."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.elan = Elan(3, 8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.elan(x).as_strided((2, 8), (2048, 1))

    ours = ym.checkpoint(Strided(), strict=strict)
    if strict:
        with pytest.raises(ym.CannotLower, match="as_strided"):
            ours(image())
        return
    backward(ours(image()))
    found = {row.path: row.state for row in ym.report(ours).rows}
    assert found == {"": "stock", "elan": "swapped"}


def test_a_model_that_computes_only_stock_calls_is_stock() -> None:
    ours, stock = pair(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)))
    assert_same_training(ours, stock, image())
    assert ran_in_core(ours) == 0


REASONS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "strided": (
        lambda m, x: x[..., ::2, ::2],
        "__getitem__ in 1: it is recorded with ot",
    ),
    "rolled": (lambda m, x: x.roll(1, 3), "roll in 1: it is not recorded and stays"),
    "scaled": (
        lambda m, x: x - m.scale,
        "sub in 1: it reads the weight 1.scale and ca",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_report_says_once_why_a_call_stays_stock(name: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return REASONS[name][0](self, x)

    ours, _ = pair(nn.Sequential(Brick(3, 8, 3), Odd(), Brick(8, 4, 3)))
    ours(image())
    row = {row.path: row for row in ym.report(ours).rows}["1"]
    assert row.state == "stock" and len(row.reasons) == 1
    assert row.detail.startswith(REASONS[name][1])


def test_an_input_changed_in_place_is_named_as_such() -> None:
    """A fake of it is a leaf, which the result of another module is not."""
    ours, stock = pair(nn.Sequential(nn.Dropout(0.5, inplace=True), Brick(3, 4)))
    made = []
    for module in (ours, stock):
        torch.manual_seed(0)
        made.append(module(image().requires_grad_() * 1))
    assert_close(*made)
    assert "dropout in 0: it changes an input in place" in str(ym.report(ours))
