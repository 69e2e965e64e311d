# SPDX-License-Identifier: MIT
"""Stock calls between the stages of one graph: what crosses them is rebuilt, and gradients
come and stay away as in stock PyTorch, whatever backward begins with."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from allocations import peak_of
from gap_models import Between, Two, two
from models_for_tests import Brick, Elan, assert_close, assert_same_training, image
from models_for_tests import grads as grads_of
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry, shared_call


@pytest.mark.parametrize("segments", [1, 5])
@pytest.mark.parametrize("keep", ["all", "conv", "min", "1GB"])
def test_one_graph_trains_as_stock_does(keep: str, segments: int) -> None:
    # Not torch.tan, whose poles make any rounding large.
    ours, stock = two(torch.sin, keep=keep, segments=segments)
    for size in (16, 24, 16):
        assert_same_training(ours, stock, image(size=size))
    (row, *_) = ym.report(ours).rows
    assert row.state == "swapped" and "in 2 stages" in row.detail
    assert row.plans == (4 if keep == "min" else 2)  # "conv" could be less


def test_backward_of_many_stages_takes_no_more_than_of_few() -> None:
    """What crossed a border, and its gradient, go when their stage has been passed."""

    class Many(nn.Module):
        def __init__(self, stages: int) -> None:
            super().__init__()
            self.stem = Brick(3, 16, 3)
            self.stages = nn.ModuleList(Brick(16, 16, 3) for _ in range(stages))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x.tan())
            return x

    peaks = []
    for stages in (2, 12):
        ours = ym.checkpoint(Many(stages), strict=False, keep="min")
        for _ in range(2):
            loss = ours(image(size=64)).square().sum()
            gc.collect()  # or garbage of other tests, which goes meanwhile, is counted
            peak = peak_of(loss.backward)
        assert f"in {stages + 1} stages" in ym.report(ours).rows[0].detail
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 2 * 16 * 64 * 64 * 4  # one value's bytes


def test_what_crosses_is_not_held() -> None:
    """Beside what the two halves hold: the stock call's result, an input of the second."""

    def held(module: nn.Module) -> int:
        ours = ym.checkpoint(module, keep="conv", strict=False)
        sum(y.sum() for y in ours(image(size=32))).backward()
        return ym.report(ours).rows[0].held_bytes

    class One(Two):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = self.first(x)
            y = self.second(x + x)
            return self.early(x), x, self.late(y)

    value = 2 * 8 * 32 * 32 * 4
    assert held(Two()) - held(One()) <= value + 1024


Losses = Callable[[tuple[Tensor, ...]], Tensor]
LOSSES: dict[str, Losses] = {
    "all": lambda out: sum(y.square().sum() for y in out),  # type: ignore[arg-type,return-value]
    "early": lambda out: out[0].square().sum(),
    "between": lambda out: out[1].square().sum(),
    "late": lambda out: out[2].square().sum(),
    "early and late": lambda out: (out[0].sum() + out[2].sum()).square(),
}
BETWEEN: dict[str, Between] = {
    "tan": torch.tan,
    "of a mean": lambda x: x.mean((2, 3), True).tan().expand_as(x),
    "detached": lambda x: x.detach().tan(),
    "detached after": lambda x: x.tan().detach(),
}


@pytest.mark.parametrize("segments", [1, 5])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("between", BETWEEN)
def test_the_same_parameters_get_gradients(
    between: str, loss: str, segments: int
) -> None:
    ours, stock = two(BETWEEN[between], segments=segments)
    x, other = (image().requires_grad_() for _ in range(2))
    for _ in range(2):  # the second ones are added to the first
        results = [LOSSES[loss](m(i)) for m, i in ((ours, x), (stock, other))]
        if not results[1].requires_grad:
            assert not results[0].requires_grad
            return
        for result in results:
            result.backward()
        made, expected = grads_of(ours), grads_of(stock)
        assert sorted(made) == sorted(expected)
        names = sorted(made)
        assert_close([made[n] for n in names], [expected[n] for n in names], 1e-3)
    assert (x.grad is None) == (other.grad is None)
    if x.grad is not None:
        assert_close(x.grad, other.grad, 1e-3)


@pytest.mark.parametrize("frozen", ["first", "second", "all but late"])
def test_frozen_stages(frozen: str) -> None:
    ours, stock = two()
    for module in (ours, stock):
        for name, p in module.named_parameters():
            alone = name.startswith("late") if "but" in frozen else True
            p.requires_grad_(alone if "but" in frozen else not name.startswith(frozen))
    for _ in range(2):
        assert_same_training(ours, stock, image())


def test_frozen_first_stage_holds_nothing_once_backward_is_over() -> None:
    ours, _ = two()
    ours.first.requires_grad_(False)
    ours.early.requires_grad_(False)
    out = ours(image())
    out[2].sum().backward()
    node = out[2].grad_fn
    while node is not None and "Segment" not in type(node).__name__:
        node = node.next_functions[0][0]
    assert node is not None and node.call.saved is None


def test_autograd_grad_of_early_and_late_outputs() -> None:
    ours, stock = two()
    x = image().requires_grad_()
    for output in (0, 2):
        made, expected = (
            torch.autograd.grad(m(x)[output].sum(), [x, m.first.cv1.conv.weight])
            for m in (ours, stock)
        )
        assert_close(list(made), list(expected), 1e-3)


@pytest.mark.parametrize("first", [0, 2])
def test_a_second_backward_is_refused(first: int) -> None:
    ours, _ = two()
    out = ours(image())
    out[first].sum().backward()
    with pytest.raises(RuntimeError, match="backward ran a second time"):
        out[2].sum().backward()


def test_a_failing_stock_call_leaves_no_trace() -> None:
    ours, stock = two()
    assert_same_training(ours, stock, image())
    calls = [call for e in _entries(ours) for call in e.latest.recording.calls]
    call = next(call for call in calls if call.name == "tan")
    known = call.function

    def broken(x: Tensor) -> Tensor:
        raise ValueError("between")

    call.function = broken
    with pytest.raises(ValueError, match="between"):
        ours(image())
    call.function = known
    stock(image())  # its running statistics have moved, too
    stock.load_state_dict(ours.state_dict())
    assert_same_training(ours, stock, image())


def test_a_forward_that_fails_between_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the garbage collector: tokens, nodes and what these share are no cycle."""
    ours, _ = two()
    ours(image())
    alive: list[weakref.ref] = []
    make = shared_call.Call.__init__

    def made(call: shared_call.Call, *arguments: object) -> None:
        alive.append(weakref.ref(call))
        make(call, *arguments)

    def broken(x: Tensor) -> Tensor:
        raise ValueError("between")

    monkeypatch.setattr(shared_call.Call, "__init__", made)
    calls = [call for e in _entries(ours) for call in e.latest.recording.calls]
    next(call for call in calls if call.name == "tan").function = broken
    gc.disable()
    try:
        with pytest.raises(ValueError, match="between") as caught:
            ours(image())
        del caught
        assert len(alive) == 1 and alive[0]() is None
    finally:
        gc.enable()


def _entries(module: nn.Module) -> list:
    found = [registry.runner_of(part) for part in module.modules()]
    return [entry for entry in found if entry is not None]


def test_many_stages() -> None:
    """As attention in every block has, by an operation that stays stock."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = x.mean((2, 3))
            return x * self.conv(y.unsqueeze(1)).squeeze(1).sigmoid()[:, :, None, None]

    blocks = [part for _ in range(4) for part in (Brick(8, 8, 3), Gate())]
    stock = nn.Sequential(Brick(3, 8, 3), *blocks, Brick(8, 4, 3))
    for keep in ("conv", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False)
        assert_same_training(ours, copy.deepcopy(stock), image(size=32))
        assert "in 5 stages" in ym.report(ours).rows[0].detail


def test_gradients_of_late_weights_and_then_of_an_early_output() -> None:
    """The first pass stops between the stages, and its sums are not the second one's."""
    ours, _ = two()
    out = ours(image())
    weight = ours.second.cv3.conv.weight
    torch.autograd.grad(out[2].sum(), [weight])
    with pytest.raises(RuntimeError, match="backward ran a second time"):
        out[0].sum().backward()


def _fail(grad: Tensor) -> Tensor:
    raise ValueError("between")


@pytest.mark.parametrize("how", ["stops", "fails"])
def test_a_backward_that_ends_between_holds_nothing(how: str) -> None:
    """A cycle through autograd's nodes would be out of the garbage collector's reach."""
    ours, _ = two()
    out = ours(image())
    node = out[2].grad_fn
    while "Segment" not in type(node).__name__:
        node = node.next_functions[0][0]
    alive = weakref.ref(node.call)
    del node
    if how == "stops":
        torch.autograd.grad(out[2].sum(), [ours.second.cv3.conv.weight])
    else:
        out[1].register_hook(_fail)
        with pytest.raises(ValueError, match="between"):
            out[2].sum().backward()
    del out
    assert alive() is None


def test_outputs_of_what_is_frozen_want_no_gradient() -> None:
    """Whether a stock call's result wants one is known when it is made."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Brick(3, 8, 3), Brick(8, 8, 3)
            self.norm, self.last = nn.GroupNorm(2, 8), Brick(8, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.norm(self.first(x))
            y = self.second(x)
            return y, self.last(y)

    stock = Late()
    stock.requires_grad_(False)
    stock.last.requires_grad_(True)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for module in (ours, stock):
        assert [y.requires_grad for y in module(image())] == [False, True]
    assert "in 2 stages" in ym.report(ours).rows[0].detail
    assert_same_training(ours, stock, image())


@pytest.mark.parametrize("n", [1, 2])
def test_instance_norm_before_a_checkpointed_part(n: int) -> None:
    norm = nn.InstanceNorm2d(8, affine=True)
    nn.init.normal_(norm.bias)
    stock = nn.Sequential(Brick(3, 8, 3), norm, Elan(8, 8, 8))
    ours = copy.deepcopy(stock)
    ym.checkpoint(ours[2])
    assert_same_training(ours, stock, image(n=n))
    assert ym.report(ours[2]).rows[0].state == "swapped"


@pytest.mark.parametrize("n", [1, 2])
def test_instance_norm_of_one_image(n: int) -> None:
    """Its backward in PyTorch 2.13 takes a channels_last gradient to be contiguous."""
    norm = nn.InstanceNorm2d(8, affine=True)
    stock = nn.Sequential(Brick(3, 8, 3), norm, Brick(8, 8, 3))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(n=n))


def test_group_norm_behind_frozen_layers() -> None:
    """Its backward in PyTorch 2.13 crashes on a channels_last input without gradient."""
    stock = nn.Sequential(Brick(3, 8, 3), nn.GroupNorm(2, 8), Brick(8, 8, 3))
    stock[0].requires_grad_(False)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image())


def test_instance_norm_without_a_gradient() -> None:
    """The loss is of another output of the stage that follows."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = Brick(3, 8, 3), nn.InstanceNorm2d(8, affine=True)
            self.a, self.b = Brick(8, 4, 3), Brick(8, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x)
            return self.a(self.norm(x)), self.b(x.tan())

    stock = Both()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for module in (ours, stock):
        module(image())[1].square().sum().backward()
    assert sorted(grads_of(ours)) == sorted(grads_of(stock))
