# SPDX-License-Identifier: MIT
"""Stock calls between two stages are made again in backward, and what they and the next
stage read is not held.

What is compared with what: training with that of stock PyTorch; what is held and what is
made again with what PyTorch's profiler sees.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import rule
import torch
from allocations import held_by, peak_of
from gap_models import CHANNELS, COUNTED, Call, Rows, counted, pair
from models_for_tests import assert_close, assert_same_training, image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry


class Attend(nn.Module):
    """Softmax attention of all pixels to all, with a product of matrices at each end."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.flatten(2)
        weights = (q.transpose(1, 2) @ q * 0.1).softmax(2)
        return (q @ weights.transpose(1, 2)).reshape(x.shape)


class LayerNorm(nn.LayerNorm):
    """Over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def in_place(x: Tensor) -> Tensor:
    """Changes what it has made."""
    return x.cos().mul_(0.5).sin()


NORMS: dict[str, Callable[[], nn.Module]] = {
    "group norm": partial(nn.GroupNorm, 2, CHANNELS),
    "instance norm": partial(nn.InstanceNorm2d, CHANNELS, affine=True),
    "layer norm": partial(LayerNorm, CHANNELS),
    "scale": Scale,
    "in place": lambda: Call(in_place),
    "a part": lambda: Call(lambda x: torch.cat([x[:, :4].exp(), x[:, 4:]], 1)),
    "prelu": lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.PReLU(CHANNELS)),
}
DRAWING: dict[str, Callable[[], nn.Module]] = {
    "dropout": partial(nn.Dropout, 0.3),
    "dropout2d": partial(nn.Dropout2d, 0.3),
    "noise": lambda: Call(lambda x: (x + torch.rand_like(x)).cos()),
}
PRODUCTS = {"attention": Attend}
ALL = NORMS | DRAWING | PRODUCTS


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", ALL)
def test_training_is_stocks(name: str, keep: str, segments: int) -> None:
    ours, stock = pair(ALL[name], keep=keep, segments=segments)
    for step, size in enumerate((16, 10, 16)):
        states = []
        for module in (ours, stock):
            torch.manual_seed(step)
            module.zero_grad(set_to_none=True)
            torch.manual_seed(step)
            out = module(image(size=size))
            torch.rand(3)  # what others draw before backward is theirs
            out.square().sum().backward()
            states.append((out, torch.get_rng_state()))
        assert_close(states[0][0], states[1][0])
        assert torch.equal(states[0][1], states[1][1])
        named = dict(stock.named_parameters())
        for path, parameter in ours.named_parameters():
            assert_close(parameter.grad, named[path].grad, 1e-3)


@pytest.mark.parametrize("name", ["group norm", "attention"])
def test_under_autocast(name: str) -> None:
    """Over 16 draws: in one, either's error may by chance be a multiple of the other's."""
    draws = []
    for seed in range(16):
        ours, stock = pair(ALL[name], keep="min")
        generator = torch.Generator().manual_seed(seed)
        rule.loosen(stock, generator)
        ours.load_state_dict(stock.state_dict())
        x = torch.randn(image().shape, generator=generator)
        exact = copy.deepcopy(stock).double()
        truth = rule.run(exact, [x.double()], seed, torch.float64)
        runs = [rule.run(m, [x], seed, torch.bfloat16) for m in (ours, stock)]
        assert_close(runs[0].outputs, runs[1].outputs, 0.05)
        draws.append([each_error(run, truth) for run in runs])
    mine, stocks = torch.tensor(draws).square().sum(0).sqrt()
    assert (mine <= 2 * stocks).all(), (mine / stocks).tolist()


def each_error(run: rule.Result, truth: rule.Result) -> list[float]:
    """Of each output and gradient, where `rule.errors` pools them."""
    pairs = zip(run.outputs + run.gradients, truth.outputs + truth.gradients)
    return [rule.pooled_error([a], [b]) for a, b in pairs]


def calls_of(operator: str, module: nn.Module) -> int:
    """How often a step of it calls an operator."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        module(image()).square().sum().backward()
    return sum(event.name == operator for event in seen.events())


@pytest.mark.parametrize("keep, times", [("all", 1), ("conv", 2), ("min", 2)])
def test_norms_are_made_again_unless_all_is_kept(keep: str, times: int) -> None:
    ours, stock = pair(NORMS["group norm"], keep=keep)
    for module, expected in ((ours, times), (stock, 1)):
        module(image())
        assert calls_of("aten::native_group_norm", module) == 3 * expected


class Mix(nn.Module):
    """Each pixel is a sum of all, of more numbers than a head of attention sums."""

    def __init__(self, pixels: int = 256) -> None:
        super().__init__()
        self.register_buffer("weights", torch.rand(pixels, pixels) / pixels)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.weights).cos().reshape(x.shape)


@pytest.mark.parametrize(
    ("make", "keep", "products"),
    [
        (Attend, "all", 0),
        (Attend, "conv", 1),  # the weights; what they are multiplied with is held
        (Attend, "min", 2),
        (Mix, "conv", 0),
        (Mix, "min", 1),
    ],
)
def test_products_of_long_sums_are_made_again_for_the_smallest_peak_alone(
    make: Callable[[], nn.Module], keep: str, products: int
) -> None:
    ours, stock = pair(make, keep=keep)
    made = []
    for module in (ours, stock):
        module(image())
        made.append(calls_of("aten::_unsafe_view", module))  # after each product
    assert made[0] - made[1] == 3 * products


class Heads(nn.Module):
    """Attention of one call, with 32 numbers in each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(CHANNELS, 64, 1)
        self.attend = nn.MultiheadAttention(64, 2, batch_first=True)
        self.narrow = nn.Conv2d(64, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.wide(x).flatten(2).transpose(1, 2)
        y, _ = self.attend(rows, rows, rows)
        return self.narrow(y.transpose(1, 2).view(-1, 64, *x.shape[2:]))


@pytest.mark.parametrize("size, times", [(16, 2), (4, 1)])
def test_heads_are_made_again_where_their_weights_are_many(
    size: int, times: int
) -> None:
    """For each pixel as many as there are pixels."""
    ours, stock = pair(Heads, depth=1, keep="conv")
    for module, expected in ((ours, times), (stock, 1)):
        module(image(size=size))
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            module(image(size=size)).square().sum().backward()
        assert sum(e.name == "aten::softmax" for e in seen.events()) == expected


@pytest.mark.parametrize(
    "name, keep, values",
    [
        ("group norm", "conv", 1),  # of a row: the convolution's result
        ("layer norm", "conv", 1),
        ("scale", "conv", 1),
        ("dropout", "conv", 1),
        ("attention", "conv", 2),  # and what is made with its weights
        ("attention", "min", 1),
    ],
)
def test_what_is_held(name: str, keep: str, values: int) -> None:
    """Rows more hold no more than the plan says, whatever the calls make on their way."""
    size, held = 32, []
    for depth in (2, 6):
        ours = ym.checkpoint(Rows(ALL[name], depth), keep=keep, strict=False)
        x = image(size=size)
        ours(x).square().sum().backward()
        held.append(held_by(lambda m=ours, x=x: m(x)))
    value = 2 * CHANNELS * size * size * 4
    slack = 4 * 16 * 1024  # statistics, weights and alignment
    assert held[1] - held[0] <= 4 * values * value + slack


def test_one_gap_at_a_time_lives_in_backward() -> None:
    """Of attention's weights, which are the largest, those of one row."""
    peaks = []
    for depth in (2, 6):
        ours = ym.checkpoint(Rows(Attend, depth), keep="min", strict=False)
        x = image(size=16)
        ours(x).square().sum().backward()
        peaks.append(peak_of(lambda m=ours, x=x: m(x).square().sum().backward()))
    weights = 2 * 256 * 256 * 4
    assert peaks[1] - peaks[0] < weights


def test_a_residual_is_held_once() -> None:
    """The sum of all rows so far is made of what they fed, which a later stage needs: it is
    held, and many gaps are not made again at once."""

    class Sums(Rows):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for row in self.rows:
                x = x + row(x)
            return self.head(x)

    for each in (NORMS["group norm"], DRAWING["dropout"], Attend):
        stock = Sums(each)
        ours = ym.checkpoint(copy.deepcopy(stock), keep="min", strict=False)
        peaks = []
        for module in (ours, stock):
            torch.manual_seed(0)
            module(image(size=24)).square().sum().backward()

            def step(m: nn.Module = module) -> None:
                m(image(size=24)).square().sum().backward()

            peaks.append(peak_of(step))
        assert peaks[0] < 0.8 * peaks[1]


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_effects_happen_once(keep: str) -> None:
    """What may do more than its result says is not made again: operators of others, and a
    batch norm that is left to stock PyTorch and moves its statistics."""
    ours, stock = pair(lambda: Call(lambda x: counted(x).cos()), keep=keep)
    for module in (ours, stock):
        module(image())
        COUNTED.clear()
        module(image()).square().sum().backward()
        assert len(COUNTED) == 3

    class Flat(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(2).cos()).view(x.shape)

    ours, stock = pair(partial(Flat, CHANNELS), keep=keep)
    for _ in range(2):
        assert_same_training(ours, stock, image())


def test_a_forward_alone_frees_what_it_holds() -> None:
    """Without a backward, and without a collection."""
    ours, _ = pair(NORMS["group norm"], keep="min")
    ours(image()).square().sum().backward()
    (graph,) = registry.runner_of(ours).latest.graphs
    size = graph.last.saved_bytes
    gc.collect()
    gc.disable()
    try:
        out = ours(image())
        arenas = [x for x in gc.get_objects() if type(x) is Tensor and x.nbytes == size]
        (saved,) = map(weakref.ref, arenas)
        del out, arenas
        assert saved() is None
    finally:
        gc.enable()


def test_an_error_when_made_again() -> None:
    """It is the caller's, names the call, and the next step is as ever."""
    ours, stock = pair(lambda: Call(torch.cos), keep="min")
    out = ours(image())
    stock(image())
    calls = registry.runner_of(ours).latest.recording.calls

    def refuse(x: Tensor) -> Tensor:
        raise MemoryError("not this time")

    functions = [call.function for call in calls]
    for call in calls:
        call.function = refuse
    with pytest.raises(MemoryError, match="not this time") as raised:
        out.square().sum().backward()
    notes = getattr(raised.value, "__notes__", [])  # before Python 3.11 in its text
    assert "replayed cos of rows.2.1" in " ".join([str(raised.value), *notes])
    for call, function in zip(calls, functions):
        call.function = function
    assert_same_training(ours, stock, image())


@pytest.mark.parametrize(
    "make, pieces, handed_out",
    [
        (NORMS["group norm"], 3, 3),  # to the norms, which hold them as stock's
        (partial(Mix, 32 * 32), 0, 0),  # autograd holds their products, as in stock
    ],
)
def test_report_counts_what_is_held(
    make: Callable[[], nn.Module], pieces: int, handed_out: int
) -> None:
    ours, _ = pair(make, keep="conv")
    x = image(size=32)
    ours(x).square().sum().backward()
    (row, *_) = ym.report(ours).rows
    assert "in 4 stages" in row.detail
    assert ("3 pieces of stock calls made again" in row.detail) == (pieces == 3)
    results = 2 * 4 * 32 * 32 * 4
    others = results + handed_out * 2 * CHANNELS * 32 * 32 * 4
    measured = held_by(lambda: ours(x)) + x.nbytes
    assert abs(measured - others - row.held_bytes) < 16 * 1024
