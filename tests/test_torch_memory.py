# SPDX-License-Identifier: MIT
"""What is held, freed and kept between calls; threads; allocation failures."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from itertools import accumulate, chain

import pytest
import torch
from allocations import peak_of
from models_for_tests import (
    Elan,
    Net,
    assert_same_training,
    backward,
    grads,
    image,
    pair,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9.memory import held_by_autograd


def test_held_bytes_equal_the_plan_and_stocks_equal_autograds() -> None:
    """The report's figure for stock is what autograd really keeps, by storage."""
    module = Net()
    stock = kept_by_autograd(module, image(size=64))
    backward(ym.checkpoint(module, keep="conv")(image(size=64)))
    row = ym.report(module).rows[0]
    assert abs(row.stock_bytes - stock) <= 0.01 * stock
    assert row.held_bytes < 0.6 * stock
    assert row.peak_bytes <= row.held_bytes + row.workspace_bytes


def kept_by_autograd(module: nn.Module, x: Tensor) -> int:
    """Bytes, by storage, without those of the module's own tensors."""
    with held_by_autograd(module) as held:
        module(x)
    return held.total


@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveMaxPool2d(1), nn.MaxPool2d(16), nn.MaxPool2d(2), nn.AvgPool2d(2)],
    ids=str,
)
def test_stocks_pools_keep_what_they_read(pool: nn.Module) -> None:
    """Also those of all pixels."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), pool, nn.Conv2d(8, 4, 1))
    stock = kept_by_autograd(module, image(size=16))
    backward(ym.checkpoint(module)(image(size=16)))
    assert ym.report(module).rows[0].stock_bytes == stock


class Normed(nn.Sequential):
    """A convolution and what is between it and the next one, often in place."""

    def __init__(self, *after: nn.Module) -> None:
        super().__init__(nn.Conv2d(16, 16, 3, 1, 1, bias=False), *after)


SMALL = {
    "group norm, relu": lambda: Normed(nn.GroupNorm(4, 16), nn.ReLU(inplace=True)),
    "group norm, silu": lambda: Normed(nn.GroupNorm(4, 16), nn.SiLU()),
    "relu": lambda: Normed(nn.ReLU(inplace=True)),
    "leaky relu": lambda: Normed(nn.LeakyReLU(0.1, inplace=True)),
    "batch norm, silu": lambda: Normed(nn.BatchNorm2d(16), nn.SiLU()),
    "convolutions": Normed,
}


def results_of(made: Tensor | list[Tensor]) -> list[Tensor]:
    return made if isinstance(made, list) else [made]


def held_after_forward(module: nn.Module) -> int:
    """In bytes, all that one forward allocates and does not free, its result included."""
    x = image(c=16, size=32).requires_grad_()
    sum(y.sum() for y in results_of(module(x))).backward()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        out = module(x)
    del out
    return sum(event.self_cpu_memory_usage for event in seen.events())


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", SMALL)
def test_what_does_not_pay_stays_stock(name: str, keep: str) -> None:
    def make() -> nn.Module:
        return nn.Sequential(*[SMALL[name]() for _ in range(4)])

    ours, stock = pair(make, keep=keep, strict=False)
    assert held_after_forward(ours) <= 1.01 * held_after_forward(stock)
    if name == "batch norm, silu":
        assert ym.report(ours).rows[0].state == "swapped"
    if name == "convolutions" and keep != "min":  # which runs some again
        (row, *_) = ym.report(ours).rows
        assert row.state == "stock" and "would be held, in stock" in row.detail


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_last_relu_is_held_once(in_place: bool, keep: str) -> None:
    """As its result, which the caller has anyway, and not as what it is made of, too."""

    def make() -> nn.Module:
        layers = [
            (nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(inplace=in_place)) for _ in range(4)
        ]
        return nn.Sequential(*chain.from_iterable(layers))

    ours, stock = pair(make, keep=keep)
    assert held_after_forward(ours) <= 1.01 * held_after_forward(stock)
    assert_same_training(ours, stock, image(c=16, size=32))
    assert ran_in_core(ours)


class Pyramid(nn.Module):
    """Returns the results of all layers; the first ``norms`` of these have a batch norm."""

    def __init__(self, norms: int) -> None:
        super().__init__()
        layers = [SMALL["relu"]() for _ in range(6)]
        for layer in layers[:norms]:
            layer.insert(1, nn.BatchNorm2d(16))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(accumulate(self.layers, lambda x, layer: layer(x), initial=x))[1:]


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("norms", [0, 1, 3, 6])
def test_what_is_handed_out_is_counted(norms: int, keep: str) -> None:
    """Stock PyTorch keeps the very memory that the caller has."""
    ours, stock = pair(lambda: Pyramid(norms), keep=keep, strict=False)
    assert held_after_forward(ours) <= 1.01 * held_after_forward(stock)
    saves = keep == "min" and norms == 6
    assert ym.report(ours).rows[0].state == ("swapped" if saves else "stock")


def shuffled(x: Tensor) -> Tensor:
    """As ShuffleNet's; not channels_last, whatever x is."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Between(nn.Module):
    """Bricks of a convolution and a batch norm, and a stock call after each."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.bricks = nn.ModuleList(SMALL["batch norm, silu"]() for _ in range(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for brick in self.bricks:
            x = self.function(brick(x))
        return x


def test_results_of_stock_calls_are_held_as_a_graph_reads_them() -> None:
    """They were all converted at once when backward began, beside what was held."""
    ours, stock = pair(lambda: Between(shuffled), strict=False)
    assert_same_training(ours, stock, image(c=16, size=32))
    x = image(c=16, size=32)
    mine, stocks = (peak_of(lambda m=m: m(x).sum().backward()) for m in (ours, stock))
    assert mine <= 0.75 * stocks


@pytest.mark.parametrize(
    "function",
    [
        lambda x: shuffled(x).tanh(),  # autograd keeps the result
        lambda x: shuffled(x).cos().sin(),
        lambda x: shuffled(x)[:, :, :1, :1].cos().expand(-1, -1, 32, 32),  # is small
        lambda x: (y := shuffled(x), y * y.detach().cos())[1],
    ],
    ids=["kept", "chain", "repeated", "read twice"],
)
def test_they_are_not_held_twice(function: Callable[[Tensor], Tensor]) -> None:
    ours, stock = pair(lambda: Between(function), strict=False)
    assert_same_training(ours, stock, image(c=16, size=32))
    assert held_after_forward(ours) <= 1.01 * held_after_forward(stock)
    assert ran_in_core(ours)


def test_saved_memory_is_freed_by_backward_and_by_dropping_the_graph() -> None:
    module = ym.checkpoint(Net())

    def arenas() -> int:
        gc.collect()
        found = [o for o in gc.get_objects() if type(o).__name__ == "Call"]
        return sum(call.saved is not None for call in found)

    out = module(image())
    assert arenas() == 1
    backward(out)
    assert arenas() == 0
    out = module(image())
    del out
    assert arenas() == 0


def test_the_workspace_is_let_go_in_eval_and_by_release() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    assert ym.report(module).kept_workspace_bytes > 0
    module.eval()(image())
    assert ym.report(module).kept_workspace_bytes == 0
    backward(module.train()(image()))
    ym.release(module)
    assert ym.report(module).kept_workspace_bytes == 0


def test_deterministic_fill_is_off_inside_and_restored() -> None:
    module = ym.checkpoint(Net())
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        backward(module(image()))
        first = {n: g.clone() for n, g in grads(module).items()}
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
    module.zero_grad()
    backward(module(image()))
    assert all(torch.equal(g, first[n]) for n, g in grads(module).items())


def test_out_of_memory_leaves_batch_norm_as_it_was(monkeypatch) -> None:
    from yolov9mem.torch.running import shared_call

    module = ym.checkpoint(Net())
    backward(module(image()))
    module.zero_grad()
    before = copy.deepcopy(module.state_dict())

    def fail(*_: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(shared_call, "take_workspace", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            module(image())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    out = module(image())
    with monkeypatch.context() as patch:
        patch.setattr(shared_call, "take_workspace", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            backward(out)
    assert not grads(module)
    backward(module(image()))


def test_threads_share_plans() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4))
    for module in (ours, stock):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0
    backward(stock(image()))
    ours(image())
    found: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(5):
            out = ours(image())
            found.append(list(torch.autograd.grad(out.sum(), list(ours.parameters()))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0]))
    assert ym.report(ours).rows[0].plans == 1


def test_no_growth_over_many_steps() -> None:
    module = ym.checkpoint(Elan(3, 4, 2))
    x = image(2, 3, 8)

    def step() -> None:
        module.zero_grad()
        module(x).sum().backward()

    for _ in range(5):
        step()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        step()
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_min_holds_no_more_than_conv_where_stock_holds_little() -> None:
    """As in a GAN's discriminator: a lower peak alone would leave it to stock."""

    def leaky() -> nn.Module:
        return nn.LeakyReLU(0.2, inplace=True)

    stock = nn.Sequential(
        *(nn.Conv2d(3, 16, 4, 2, 1), leaky()),
        *(nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), leaky()),
        *(nn.Conv2d(32, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), leaky()),
        nn.Conv2d(64, 1, 4),
    )
    held = {}
    for keep in ("conv", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep=keep, strict=False)
        backward(ours(image(size=64)))
        row = ym.report(ours).rows[0]
        assert row.state == "swapped"
        held[keep] = row.held_bytes
        assert row.held_bytes < row.stock_bytes
    assert held["min"] <= held["conv"]


def test_min_is_conv_where_its_plan_would_hold_what_stock_does() -> None:
    """Two layers: the lowest peak is that of keeping their input and their result."""
    layers = nn.Sequential(nn.SiLU(), nn.Conv2d(4, 8, 1))
    ours, stock = pair(lambda: layers, keep="min", strict=False)
    x = image(2, 4).requires_grad_()
    assert_same_training(ours, stock, x)
    row = ym.report(ours).rows[0]
    assert (row.state, row.detail) == ("swapped", "keep=conv")
    assert row.held_bytes < row.stock_bytes
