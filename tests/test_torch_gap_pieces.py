# SPDX-License-Identifier: MIT
"""Many stock calls in a row are made again in pieces, one at a time, and what changes in
place is changed once.

What is compared with what: training with that of stock PyTorch, or with all kept; memory
and calls with what PyTorch's profiler sees.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from allocations import peak_of
from gap_models import Call, counted, pair
from models_for_tests import Brick, assert_close, assert_same_training, image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry


class Transformer(nn.Module):
    """Layers of attention after the last stage."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(Brick(3, 16, 3), Brick(16, 16, 3))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 64, 0.1, batch_first=True)
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_follows_the_last_stage_is_made_again_in_pieces() -> None:
    stock = Transformer(12)
    ours = ym.checkpoint(copy.deepcopy(stock), keep="min", strict=False)
    peaks = []
    for module in (ours, stock):
        torch.manual_seed(0)
        module(image()).square().sum().backward()
        x = image(size=24)
        module(x).square().sum().backward()
        peaks.append(peak_of(lambda m=module, x=x: m(x).square().sum().backward()))
    assert peaks[0] < 0.45 * peaks[1]


def test_pieces_draw_the_same_again() -> None:
    """Where dropout draws by place in memory, as here, others than in stock PyTorch."""
    results = []
    for keep in ("min", "all"):
        module = ym.checkpoint(Transformer(4), keep=keep, strict=False)
        torch.manual_seed(0)
        out = module(image())
        out.square().sum().backward()
        results.append([out, *(p.grad for p in module.parameters())])
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results):
        assert_close(a, b, 1e-5)


def test_the_end_is_not_made_again() -> None:
    """Backward begins with it."""
    ours = ym.checkpoint(Transformer(3), keep="min", strict=False)
    x = image()
    ours(x)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        ours(x).square().sum().backward()
    norms = [e for e in seen.events() if e.name == "aten::native_layer_norm"]
    assert 3 * 2 < len(norms) < 2 * 3 * 2


def deep(x: Tensor, function: Callable[[Tensor], Tensor], times: int) -> Tensor:
    for _ in range(times):
        x = function(x)
    return x


def changes_early(x: Tensor) -> Tensor:
    """What the first call has made is changed by the last, far from it."""
    y = x.cos()
    z = deep(y.roll(1, 3), torch.sin, 12)
    return y.add_(1) * z


def changes_what_is_read(x: Tensor) -> Tensor:
    """Calls far from it have read it before, and do not need it in their backward."""
    mean = x.mean((2, 3), keepdim=True)
    y = deep(mean.cos(), torch.sin, 3)
    return x.clone().sub_(y)


@pytest.mark.parametrize("function", [changes_early, changes_what_is_read])
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_changes_in_place_are_made_once(
    function: Callable[[Tensor], Tensor], keep: str
) -> None:
    ours, stock = pair(lambda: Call(function), 1, keep=keep)
    for _ in range(2):
        assert_same_training(ours, stock, image())


def test_a_change_after_what_has_read_it() -> None:
    """In one piece, in two, and by a call that stands between pieces."""

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b = Brick(3, 8, 3), Brick(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = deep(x, torch.cos, 8).roll(1, 3)  # whose backwards need nothing of it
            z = deep(deep(x, torch.sin, 12).roll(1, 3), torch.sin, 3)
            z = torch.stack([z, y.roll(1, 2)]).sin().sum(0)  # far from where y was made
            w = counted(z)  # is not made again, and parts what is
            y.mul_(0.5)
            return self.b(deep(w, torch.sin, 3) + y)

    stock = Changed()
    for keep in ("conv", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False)
        assert_same_training(ours, copy.deepcopy(stock), image())


KEEPS_NOTHING = {
    "pixel shuffle": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    "flip": lambda x: x.flip(3),
    "its result": torch.tanh,
    "difference": lambda x: x - x.roll(1, 1),
}


@pytest.mark.parametrize("name", KEEPS_NOTHING)
def test_what_is_handed_out_to_calls_that_keep_nothing_is_not_held(name: str) -> None:
    """So of convolution, norm and ReLU the first's result and the gap's are, where stock
    PyTorch holds the ReLU's as well."""
    torch.manual_seed(0)
    bricks = (
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            Call(KEEPS_NOTHING[name]),
        )
        for _ in range(5)
    )
    stock = nn.Sequential(nn.Conv2d(3, 8, 1), *bricks, nn.Conv2d(8, 4, 1))
    ours = ym.checkpoint(copy.deepcopy(stock), "conv", strict=False)
    x = image(size=64)
    assert_same_training(ours, stock, x)
    peaks = []
    for module in (ours, stock):
        module.zero_grad()
        peaks.append(peak_of(lambda m=module: m(x).sum().backward()))
    assert peaks[0] < 0.8 * peaks[1]
    assert ym.report(ours).rows[0].state == "swapped"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_draws_for_dropout_alone(dropout: float) -> None:
    """A gap that draws is not made again where a stream is captured."""

    def attend(x: Tensor) -> Tensor:
        q = x.flatten(2).transpose(1, 2).unsqueeze(1)
        made = F.scaled_dot_product_attention(q, q, q, dropout_p=dropout)
        return made.squeeze(1).transpose(1, 2).reshape(x.shape)

    ours, _ = pair(lambda: Call(attend), keep="min")
    ours(image())
    gaps = registry.runner_of(ours).latest.recording.gaps
    assert {gap.draws for gap in gaps.values()} == {dropout > 0}
