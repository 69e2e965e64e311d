# SPDX-License-Identifier: MIT
"""Norms and activations between products that are too large to be made again: what linear
layers would keep of them for backward is promised to these, and recomputed.

What is compared with what: training with that of stock PyTorch, and the bytes that its
profiler sees with those of what has to be held.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from allocations import held_by, peak_of
from models_for_tests import (
    TELLS_OF_HOOKS,
    TELLS_OF_RETAINING,
    Brick,
    assert_close,
    assert_same_gradients,
    assert_same_training,
    grads,
    image,
)
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry

WIDTH, SIZE = 512, 4
VALUE = 2 * 4 * WIDTH * SIZE * SIZE  # bytes of a value of two images

pytestmark = TELLS_OF_HOOKS  # without that nothing of it is recomputed


class Mixer(nn.Module):
    """Two linear layers for each pixel, with ``between`` before each."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.grow = nn.Linear(WIDTH, 4 * WIDTH)
        self.shrink = nn.Linear(4 * WIDTH, WIDTH)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.permute(0, 2, 3, 1))
        rows = self.shrink(self.activation(self.grow(rows)))
        return x + rows.permute(0, 3, 1, 2)


class PostNorm(Mixer):
    """The norm's result goes on beside the layers that keep it."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.permute(0, 2, 3, 1))
        rows = rows + self.shrink(self.activation(self.grow(rows)))
        return self.norm(rows).permute(0, 3, 1, 2)


class Three(Mixer):
    """Several layers keep the same, one a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH // 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.permute(0, 2, 3, 1))
        aside = self.other(rows[..., : WIDTH // 2])
        grown = self.grow(rows) * self.grow(rows.flip(1)).sigmoid()
        return x + (self.shrink(grown) + aside).permute(0, 3, 1, 2)


class Attention(Mixer):
    """Of one head, whose sums are long: all of its products stay."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v, _ = self.grow(rows).chunk(4, -1)
        weights = torch.softmax(q @ k.transpose(1, 2) / WIDTH**0.5, -1)
        rows = self.shrink((weights @ v).repeat(1, 1, 4))
        return x + rows.transpose(1, 2).unflatten(2, x.shape[2:])


def dropped(x: Tensor) -> Tensor:
    return F.dropout(F.gelu(x), 0.25)


def in_place(x: Tensor) -> Tensor:
    return F.silu(x).add_(1)


class Counting(nn.BatchNorm1d):
    """It moves statistics, is never made again, and keeps what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.gelu(x).flatten(0, 2)).view_as(x)


def split(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([F.gelu(a) * b, b], -1)


class Twice(torch.autograd.Function):
    """A product that asks for what it has saved twice."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = ctx.saved_tensors
        _, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, 2).T @ x.flatten(0, 2)


class OfItsOwn(Mixer):
    """Beside a linear layer that keeps the same."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(x.permute(0, 2, 3, 1))
        grown = self.activation(self.grow(rows))
        rows = self.shrink(grown) + Twice.apply(grown, self.shrink.weight)
        return x + rows.permute(0, 3, 1, 2)


class Net(nn.Module):
    def __init__(self, make: Callable[[], nn.Module], depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layers = nn.Sequential(*(make() for _ in range(depth)))
        self.norm = nn.BatchNorm2d(WIDTH)
        self.last = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(self.layers(self.stem(x)))))


def pair(make: Callable[[], nn.Module], **how: object) -> tuple[nn.Module, nn.Module]:
    stock = Net(make)
    return ym.checkpoint(copy.deepcopy(stock), strict=False, **how), stock


def gaps_of(module: nn.Module) -> list[range]:
    """That are recomputed, without those that a larger one is made of."""
    runner = registry.runner_of(module)
    (lowered,) = runner.lowered.values()
    plans = tuple(graph.last for graph in lowered.graphs)
    chosen = lowered.recompute(plans, runner.keep).gaps
    return [gap.calls for n, gap in chosen.items() if gap.shares]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "pre-norm": Mixer,
    "post-norm": PostNorm,
    "several": Three,
    "attention": Attention,
    "dropout": lambda: Mixer(dropped),
    "in place": lambda: Mixer(in_place),
    "halves": lambda: Mixer(split),
    "a function": OfItsOwn,
    "a lasting call": lambda: Mixer(Counting(4 * WIDTH)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_training_is_stocks(name: str) -> None:
    """Dropout draws in the order of memory, which is ours."""
    ours, stock = pair(LAYERS[name])
    if name == "dropout":
        stock = ym.checkpoint(stock, keep="all", strict=False)
    for _ in range(2):
        found = []
        for module in (ours, stock):
            torch.manual_seed(0)
            made = module(image(size=SIZE))
            made.square().mean().backward()
            found.append([made, *(p.grad for p in module.parameters())])
        assert_close(*found)
    assert len(gaps_of(ours)) >= 3


@pytest.mark.parametrize("name", ["pre-norm", "attention", "several"])
def test_under_autocast(name: str) -> None:
    ours, stock = pair(LAYERS[name])
    exact = copy.deepcopy(stock).double()
    x = image(size=3 * SIZE)
    for module in (ours, stock):
        with torch.autocast("cpu", torch.bfloat16):
            made = module(x)
        made.float().square().mean().backward()
    exact(x.double()).square().mean().backward()
    assert gaps_of(ours)
    for path, grad in grads(exact).items():
        errors = [(grads(m)[path] - grad).norm() / grad.norm() for m in (ours, stock)]
        assert errors[0] <= 2 * errors[1] + 1e-3, path


def test_what_is_held() -> None:
    """Of a layer: what the norm and GELU read. Stock PyTorch holds what they make, too."""
    held: dict[bool, list[int]] = {True: [], False: []}
    for depth in (2, 6):
        for swapped in held:
            module = Net(Mixer, depth)
            if swapped:
                ym.checkpoint(module, keep="conv", strict=False)
            x = image(size=SIZE)
            module(x).square().sum().backward()
            held[swapped].append(held_by(lambda m=module, x=x: m(x)))
    slack = 4 * 8 * 1024  # statistics of norms
    for swapped, values in ((True, 5), (False, 10)):
        more = held[swapped][1] - held[swapped][0]
        assert abs(more - 4 * values * VALUE) < slack


def test_the_peak_is_lower_than_with_all_kept() -> None:
    peaks = []
    for keep in ("conv", "all"):
        ours = ym.checkpoint(Net(Mixer, 6), keep=keep, strict=False)
        x = image(size=2 * SIZE)
        ours(x).square().sum().backward()
        peaks.append(peak_of(lambda m=ours, x=x: m(x).square().sum().backward()))
    assert peaks[0] < 0.75 * peaks[1]


def test_report_counts_what_is_held() -> None:
    ours, _ = pair(Mixer)
    x = image(size=SIZE)
    ours(x).square().sum().backward()
    (row, *_) = ym.report(ours).rows
    assert "pieces of stock calls made again" in row.detail
    assert row.held_bytes < 0.7 * row.stock_bytes


@TELLS_OF_RETAINING
@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_that_is_retained(name: str) -> None:
    ours, stock = pair(LAYERS[name])
    for module in (ours, stock):
        torch.manual_seed(0)
        loss = module(image(size=SIZE)).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
    if name != "dropout":  # which draws others
        assert_same_gradients(ours, stock)


class Apart(nn.Module):
    """Two results, of layers that have read the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(Brick(3, WIDTH, 1), Brick(WIDTH, WIDTH, 3))
        self.norm = nn.LayerNorm(WIDTH)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.end = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.norm(self.stem(x).permute(0, 2, 3, 1))
        return self.end(F.gelu(self.a(rows))), self.b(rows).sin()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_backward_of_each_result(order: tuple[int, int]) -> None:
    """The second one is of the weights alone, for what is before them is freed."""
    stock = Apart()
    ours = ym.checkpoint(copy.deepcopy(stock), keep="conv", strict=False)
    found = []
    for module in (ours, stock):
        made = module(image(size=SIZE))
        made[order[0]].square().mean().backward()
        weight = (module.a, module.b)[order[1]].weight
        found.append(torch.autograd.grad(made[order[1]].square().mean(), weight)[0])
        found.append(module.stem[0].conv.weight.grad)
    assert gaps_of(ours)
    assert_close(found[:2], found[2:])


def test_the_callers_hooks_get_the_rest() -> None:
    ours, stock = pair(Mixer)
    x = image(size=SIZE)
    for module in (ours, stock):
        with save_on_cpu():
            made = module(x)
        made.square().mean().backward()
    assert_same_gradients(ours, stock)


@pytest.mark.parametrize("name", ["grow", "shrink"])
def test_a_weight_that_has_changed_is_refused(name: str) -> None:
    """As stock PyTorch does, though its saved tensors are under hooks."""
    for module in pair(Mixer):
        loss = module(image(size=SIZE)).sum()
        with torch.no_grad():
            getattr(module.layers[1], name).weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_frozen_layers() -> None:
    ours, stock = pair(Mixer)
    for module in (ours, stock):
        module.stem.requires_grad_(False)
        module.layers[0].requires_grad_(False)
    assert_same_training(ours, stock, image(size=SIZE))


def test_a_forward_alone_frees_what_it_holds() -> None:
    ours, _ = pair(Three)
    made = ours(image(size=SIZE))
    nodes, seen = [made.grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.append(node)
            nodes += [following for following, _ in node.next_functions]
    promises = [node.shared for node in seen if hasattr(node, "shared")]
    assert len(promises) >= 3 and all(promise() is not None for promise in promises)
    alive = weakref.ref(made)
    del made, nodes, node, seen
    assert alive() is None and all(promise() is None for promise in promises)


@pytest.mark.parametrize("name", ["pre-norm", "attention"])
def test_it_does_without_hooks_where_they_are_forbidden(name: str) -> None:
    ours, stock = pair(LAYERS[name])
    assert_same_training(ours, stock, image(size=SIZE))
    with torch.autograd.graph.disable_saved_tensors_hooks("no hooks here"):
        assert_same_training(ours, stock, image(size=SIZE))


class Turned(Mixer):
    """A product's result that is not contiguous, as GELU's is then."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        grown = torch.einsum("nlc,dc->dnl", rows, self.grow.weight).permute(1, 2, 0)
        rows = self.shrink(self.activation(grown))
        return x + rows.transpose(1, 2).unflatten(2, x.shape[2:])


def test_hooks_that_give_another_layout_back() -> None:
    """As save_on_cpu(pin_memory=True) does."""
    ours, stock = pair(Turned)
    x = image(size=SIZE)
    for module in (ours, stock):
        with saved_tensors_hooks(lambda t: t.contiguous(), lambda t: t):
            made = module(x)
        made.square().mean().backward()
    assert gaps_of(ours)
    assert_same_gradients(ours, stock)


class DeadEnd(nn.Module):
    """Only the values of a branch are read, and stock PyTorch lets the rest of it go."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(Brick(3, WIDTH, 1), Brick(WIDTH, WIDTH, 3))
        self.norm, self.aside = nn.LayerNorm(WIDTH), Mixer()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = self.a(x.permute(0, 2, 3, 1))
        aside = self.aside(rows.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.b(F.gelu(self.a(F.gelu(rows + self.norm(aside).detach()))))


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_branch_without_gradient_is_not_held(keep: str) -> None:
    stock = DeadEnd()
    ours = ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False)
    held = []
    for module in (ours, stock):
        x = image(size=SIZE)
        module(x).square().mean().backward()
        held.append(held_by(lambda m=module, x=x: m(x)))
    assert_same_training(ours, stock, image(size=SIZE))
    assert held[0] < 0.8 * held[1]
