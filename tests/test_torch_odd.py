# SPDX-License-Identifier: MIT
"""Modules that do unusual things: recorded as they are meant, or refused by name."""

from __future__ import annotations

import copy
import gc
import logging
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Brick,
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import entry, registry


class End(nn.Module):
    """A brick and a function of its result."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.brick, self.function = Brick(3, 6, 3), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.brick(x))


class Reversed(torch.autograd.Function):
    """Gradient reversal, as in domain adaptation."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def doubled_stack(x: Tensor) -> Tensor:
    both = torch.stack((x, x + x))
    both *= 2
    return both.sum(0)


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        mean = x.mean((2, 3), keepdim=True)
    return x * mean


def without_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        rows = x.float().flatten(2)
        return rows @ rows.transpose(1, 2)


def with_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = x.flatten(2)
        return rows @ rows.transpose(1, 2)


def after(copied: Callable[[Tensor], Tensor]) -> Callable[[Tensor], object]:
    """Changes a value that has been copied, and returns both."""

    def change(x: Tensor) -> tuple[Tensor, Tensor]:
        other = copied(x)
        x.tanh_()
        return x, other

    return change


def noisy(x: Tensor) -> Tensor:
    """The same noise at each call."""
    return x + torch.rand(x.shape, generator=torch.Generator().manual_seed(3))


def noisy_by_seed(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x + torch.rand(x.shape)


def noisy_in_a_fork(x: Tensor) -> Tensor:
    """The generator's state is put back."""
    with torch.random.fork_rng(devices=[]):
        return noisy_by_seed(x)


def seeded(x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x


class Noisy(End):
    """From a generator that the module has."""

    def __init__(self) -> None:
        super().__init__(self.noisy)
        self.generator = torch.Generator().manual_seed(3)

    def noisy(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=self.generator)


REFUSED = {
    "generator": (noisy, "generator of its own"),
    "seed": (noisy_by_seed, "seeds"),
    "seed in a fork": (noisy_in_a_fork, "seeds"),
    "seed alone": (seeded, "seeds"),
    "autograd.Function": (Reversed.apply, "gradients are disabled"),
    "no_grad": (without_gradient, "gradients are disabled"),
    "clone": (after(torch.clone), "copy"),
    "plus zero": (after(lambda x: x + 0), "copy"),
    "stack of one": (after(lambda x: torch.stack((x,)).sum(0)), "copy"),
    "contiguous": (after(lambda x: x.contiguous()), "view"),
    "python's random": (lambda x: x * random.random(), "generator"),
    "numpy's random": (lambda x: x * float(np.random.rand()), "generator"),
    "data": (lambda x: x.data.mul_(2), "view"),
    "set": (lambda x: setattr(x, "requires_grad", False) or x, "__set__"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_replay_would_get_wrong_is_refused(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(ym.CannotLower, match=words):
        ym.checkpoint(End(function))(image())


@pytest.mark.parametrize("noise", [None, noisy, noisy_by_seed, noisy_in_a_fork])
def test_noise_between_layers_is_stock_s(noise: Callable[[Tensor], Tensor]) -> None:
    """At each step, from wherever it comes."""
    first = Noisy() if noise is None else End(noise)
    stock = nn.Sequential(first, Brick(6, 6, 3))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(3):
        states = []
        for module in (ours, stock):
            torch.manual_seed(5)
            states.append((module(image()), torch.get_rng_state()))
        for a, b in zip(*states, strict=True):
            assert_close(a, b)
    assert ran_in_core(ours) == 6  # two bricks, at each step
    if noise is None:
        a, b = (module[0].generator.get_state() for module in (ours, stock))
        assert torch.equal(a, b)


REPLAYED = {
    "stack in place": doubled_stack,
    "view of bits": lambda x: (x.view(torch.int32).sum() * 0, x),
    "autocast off": without_autocast,
    "autocast on": with_autocast,
    "no dropout": after(lambda x: F.dropout(x, 0.0)),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
}


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", REPLAYED)
def test_results_are_stock_s(name: str, outside: bool) -> None:
    stock = End(REPLAYED[name])
    ours = ym.checkpoint(copy.deepcopy(stock))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
        made, expected = ours(image()), stock(image())
    made, expected = (x if isinstance(x, tuple) else (x,) for x in (made, expected))
    for a, b in zip(made, expected, strict=True):
        assert a.dtype is b.dtype
        if a.is_floating_point():
            assert_close(a.float(), b.float(), 1e-2)
    assert ran_in_core(ours) == 1


def test_a_norm_with_settings_of_its_own() -> None:
    class Strong(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            state = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *state, True, 0.3, 0.5)

    stock = Brick(3, 6)
    stock.bn = Strong(6)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image())
    assert_close(ours.bn.running_mean, stock.bn.running_mean)
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_settings_within_containers_are_seen(kind: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 6)
            self.settings = {"gains": [[1.0]]} if kind == "dict" else [[[1.0]]]

        def forward(self, x: Tensor) -> Tensor:
            gains = self.settings["gains" if kind == "dict" else 0]
            return self.brick(x) * gains[0][0]

    stock = Scaled()
    ours = ym.checkpoint(copy.deepcopy(stock))
    ours(image())
    for module in (stock, ours):
        module.settings["gains" if kind == "dict" else 0][0][0] = 3.0
    assert_close(ours(image()), stock(image()))


@pytest.mark.parametrize("start", [{}, {"old": torch.zeros(1)}])
def test_a_dict_that_forward_fills_is_refused(start: dict[str, Tensor]) -> None:
    class Stash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick, self.last = Brick(3, 6), nn.Conv2d(6, 4, 1)
            self.features = dict(start)

        def forward(self, x: Tensor) -> Tensor:
            self.features["brick"] = self.brick(x)
            return self.last(self.features["brick"])

    with pytest.raises(ym.CannotLower, match="changes the module"):
        ym.checkpoint(Stash())(image())


def test_a_module_that_counts_is_not_recorded_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Sequential(Brick(3, 6)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x)

    recorded: list[object] = []
    stock_record = entry.record

    def record(fakes, leaves, spec, strict):
        recorded.append(type(fakes.module))
        return stock_record(fakes, leaves, spec, strict)

    monkeypatch.setattr(entry, "record", record)
    ours = ym.checkpoint(Counting(), strict=False)
    for _ in range(9):
        ours(image()).sum().backward()
    assert ours.calls == 9 and ran_in_core(ours) == 9
    assert recorded.count(Counting) == 3
    assert "setattr" in ym.report(ours).rows[0].detail
    ours = ym.checkpoint(Counting())
    for _ in range(5):
        with pytest.raises(ym.CannotLower, match="changes the module itself"):
            ours(image())


@pytest.mark.parametrize("strict", [True, False])
def test_a_refusal_keeps_nothing_alive(strict: bool) -> None:
    module = ym.checkpoint(End(lambda x: F.pad(x, [1, 1, 1, 1])), strict=strict)
    module.last = nn.Conv2d(6, 4, 1)
    module.function = lambda x: module_last(x.sin())
    last = weakref.ref(module.last)

    def module_last(x: Tensor) -> Tensor:
        found = last()
        assert found is not None
        return found(x)

    inputs = []
    for _ in range(3):
        x = image()
        inputs.append(weakref.ref(x))
        if strict:
            with pytest.raises(ym.CannotLower):
                module(x)
        else:
            module(x)
        del x
    gc.collect()
    assert [x() for x in inputs] == [None] * 3
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_a_module_may_be_collected_while_another_is_released() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class Collecting:
        """A runner during whose look-up another module goes away."""

        replica = run = None

        @property
        def cls(self) -> type:
            doomed.clear()
            return Other

    doomed = [Other() for _ in range(3)]
    kept = [Other(), Brick(3, 4)]
    registry.register(kept[0], Collecting())
    for module in doomed:
        registry.register(module, Collecting())
    del module
    ym.release(ym.checkpoint(kept[1]))
    for module in kept:
        registry.unregister(module)


@pytest.mark.parametrize(
    "wrong",
    [{"segments": 1.5}, {"segments": "2"}, {"segments": 0}, {"backend": "gpu"}],
)
def test_wrong_arguments_are_named_at_once(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises((TypeError, ValueError), match=f"^{name}: is "):
        ym.checkpoint(Brick(3, 4), **wrong)


@pytest.mark.parametrize("keep", ["9" * 400 + "GB", 2**64, 10**30])
def test_a_budget_beyond_all_memory_is_enough(keep: str | int) -> None:
    stock = Brick(3, 6)
    ours = ym.checkpoint(copy.deepcopy(stock), keep=keep)
    assert_same_training(ours, stock, image())


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_padding_is_half_of_the_dilated_kernel(k: int, d: int) -> None:
    block = ym.Conv(3, 4, k, d=d)
    assert block.conv.padding == ((d * (k - 1) + 1) // 2,) * 2
    assert ym.Conv(3, 4, [k, 3], d=d).conv.padding == (block.conv.padding[0], d)


class TwoSizes(nn.Module):
    """Its branches meet at sizes that are a multiple of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Brick(3, 4, 3, 2), Brick(4, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(x)
        narrow = F.interpolate(self.second(wide), scale_factor=2.0)
        return torch.cat([wide, narrow], 1)


def test_a_size_that_does_not_fit_is_one_message() -> None:
    """Fakes log each error that they raise, with 40 lines of a traceback."""
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.addHandler(handler)
    try:
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            ym.checkpoint(TwoSizes())(image(1, 3, 45))
        log.error("of another")
    finally:
        log.removeHandler(handler)
    assert [record.getMessage() for record in logged] == ["of another"]
