# SPDX-License-Identifier: MIT
"""A script that unscales, clips, steps and averages by itself, within `deferred`."""

import copy
import math

import pytest
import torch
from sgd_twins import RATES, OfficialEMA
from torch import nn
from torch.nn.utils import clip_grad_norm_ as imported_before

from yolov9mem.torch.optimizer import step_table
from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def twins():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.SiLU(), nn.Conv2d(9, 5, 3)
    )
    net[3].bias.requires_grad_(False)
    return net, copy.deepcopy(net)


def backward(net, step, scaler):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    scaler.scale(net(x).square().sum()).backward()


def script(net, optimizer, ema, *, steps=6, poison=None, max_norm=1e9, read=False):
    """The lines of the official trainer; returns the norms and what was logged."""
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    log = []
    for step in range(steps):
        backward(net, step, scaler)
        if step == poison:
            net[0].weight.grad[0, 0, 0, 0] = math.inf
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=max_norm)
        if read:
            log.append(float(norm))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if ema is not None:
            ema.update(net)
        log.append(norm)
    return [float(x) for x in log] + [scaler.get_scale()]


def assert_same(a, b):
    for (name, x), y in zip(
        a.state_dict().items(), b.state_dict().values(), strict=True
    ):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("poison", [None, 0, 3])
@pytest.mark.parametrize("kind", [OfficialEMA, ModelEMA])
def test_script_gives_the_same_bits(kind, poison, read):
    mine, theirs = twins()
    ema, official = kind(mine), OfficialEMA(theirs)
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    expected = script(theirs, stock, official, poison=poison, read=read)
    with deferred(ours, ema):
        log = script(mine, ours, ema, poison=poison, read=read)
    assert_same(mine, theirs)
    assert_same(ema.ema, official.ema)
    assert ema.updates == official.updates
    assert log == pytest.approx(expected, rel=2e-6, nan_ok=True)


def test_clipping_is_the_same():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    expected = script(theirs, stock, None, steps=2, max_norm=0.1)
    with deferred(ours):
        log = script(mine, ours, None, steps=2, max_norm=0.1)
    assert log == pytest.approx(expected, rel=2e-6)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_memory_is_touched_twice_per_step(monkeypatch):
    calls = []
    core = step_table._core

    class Counting:
        @staticmethod
        def sgd_norm(*args, **kwargs):
            calls.append("norm")
            return core.sgd_norm(*args, **kwargs)

        @staticmethod
        def sgd_step(*args, **kwargs):
            calls.append("step")
            return core.sgd_step(*args, **kwargs)

    monkeypatch.setattr(step_table, "_core", Counting)
    mine, _ = twins()
    ema = OfficialEMA(mine)
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    with deferred(ours, ema, mine):
        script(mine, ours, ema, steps=3, read=True)
    assert calls == ["norm", "step"] * 3


def test_without_a_scaler():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    off = torch.amp.GradScaler("cpu", enabled=False)
    with deferred(ours):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            for step in range(3):
                backward(net, step, off)
                off.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
                off.step(optimizer)
                off.update()
                optimizer.zero_grad()
    assert_same(mine, theirs)


def other_norm(net):
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5, norm_type=math.inf)


def some_parameters(net):
    torch.nn.utils.clip_grad_norm_(net[0].parameters(), 0.5)


def values(net):
    torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)


def by_name(net):
    imported_before(net.parameters(), 0.5)


def twice(net):
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)


@pytest.mark.parametrize("clip", [other_norm, some_parameters, values, by_name, twice])
def test_what_cannot_wait_gets_true_gradients(clip):
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    with deferred(ours):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            scaler = torch.amp.GradScaler("cpu")
            for step in range(2):
                backward(net, step, scaler)
                scaler.unscale_(optimizer)
                clip(net)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_replaced_gradients_are_taken():
    p = nn.Parameter(torch.ones(3))
    ours = AccumulatingSGD([p], lr=1.0)
    with deferred(ours):
        p.grad = torch.ones(3)
        norm = torch.nn.utils.clip_grad_norm_([p], 100.0)
        assert norm > 1.7
        p.grad = torch.full((3,), 0.5)
        ours.step()
    assert p.tolist() == [0.5] * 3


def test_pre_hook_sees_true_gradients():
    p = nn.Parameter(torch.ones(3))
    ours = AccumulatingSGD([p], lr=1.0)
    seen = []
    ours.register_step_pre_hook(lambda *_: seen.append(p.grad.tolist()))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with deferred(ours):
        scaler.scale(p.sum()).backward()
        scaler.unscale_(ours)
        torch.nn.utils.clip_grad_norm_([p], 100.0)
        scaler.step(ours)
    assert seen == [[1.0] * 3]


def test_order_of_calls_is_still_checked():
    mine, _ = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    scaler = torch.amp.GradScaler("cpu")
    with deferred(ours):
        backward(mine, 0, scaler)
        scaler.unscale_(ours)
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.unscale_(ours)
        scaler.step(ours)
        with pytest.raises(RuntimeError, match="after step"):
            scaler.unscale_(ours)


def test_forgotten_ema_update_is_said():
    mine, _ = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    with deferred(ours, OfficialEMA(mine)):
        backward(mine, 0, torch.amp.GradScaler("cpu", enabled=False))
        ours.step()
        with pytest.raises(RuntimeError, match=r"ema\.update"):
            ours.step()


def test_everything_is_put_back():
    before = (
        torch.amp.GradScaler.unscale_,
        torch.nn.utils.clip_grad_norm_,
        torch.nn.utils.clip_grad_value_,
    )
    mine, theirs = twins()
    ema = OfficialEMA(mine)
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    other = AccumulatingSGD(theirs.parameters(), **RATES)
    with deferred(ours, ema):
        with deferred(other):
            pass
        assert torch.nn.utils.clip_grad_norm_ is not before[1]
    assert before == (
        torch.amp.GradScaler.unscale_,
        torch.nn.utils.clip_grad_norm_,
        torch.nn.utils.clip_grad_value_,
    )
    assert "update" not in vars(ema) and ours.ema is None and ours.zero_grads


def test_to_stop_what_does_not_run_does_nothing():
    net, _ = twins()
    optimizer = AccumulatingSGD(net.parameters(), **RATES)
    before = torch.amp.GradScaler.unscale_, "grad" in vars(nn.Parameter)
    never = deferred(optimizer)
    never.stop()
    twice = deferred(optimizer, ModelEMA(net), net)
    twice.start()
    never.stop()
    assert torch.amp.GradScaler.unscale_ is not before[0]
    twice.stop()
    twice.stop()
    assert before == (torch.amp.GradScaler.unscale_, "grad" in vars(nn.Parameter))
    assert optimizer.zero_grads
    with twice:  # once more
        assert not optimizer.zero_grads
    assert optimizer.zero_grads


def test_one_within_another_is_refused_and_leaves_that_as_it_is():
    net, other = twins()
    before = torch.amp.GradScaler.unscale_
    ema = OfficialEMA(net)
    optimizer = AccumulatingSGD(net.parameters(), **RATES)
    outer = deferred(optimizer, ema, net)
    with outer:
        for inner in (outer, deferred(optimizer)):
            with pytest.raises(RuntimeError, match="is within a deferred already"):
                inner.start()
        with (
            pytest.raises(RuntimeError, match="within a deferred"),
            deferred(optimizer),
        ):
            pass
        assert not optimizer.zero_grads
        assert optimizer.ema is ema
        with deferred(AccumulatingSGD(other.parameters(), **RATES)):
            pass  # of another optimizer: fine
        assert torch.amp.GradScaler.unscale_ is not before
    assert torch.amp.GradScaler.unscale_ is before
    assert optimizer.zero_grads
    assert "update" not in vars(ema)


def test_bad_input():
    mine, _ = twins()
    with pytest.raises(TypeError, match="expected AccumulatingSGD, got SGD"):
        deferred(torch.optim.SGD(mine.parameters()))
    with pytest.raises(ValueError, match="accumulate: is 2"):
        deferred(AccumulatingSGD(mine.parameters(), accumulate=2))


def test_a_failure_leaves_nothing_installed():
    mine, _ = twins()
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.nn.utils.clip_grad_norm_
    other = OfficialEMA(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="in the average but not in the model"):
        deferred(ours, OfficialEMA(nn.ModuleDict({"a": mine})), mine).start()
    with pytest.raises(ValueError, match="live modules of class"):
        deferred(ours, other).start()
    assert torch.nn.utils.clip_grad_norm_ is stock and ours.zero_grads
    waiting = deferred(ours)
    waiting.start()
    mine[0].weight.grad = torch.ones(9, 3, 3, 3)
    grad = mine[0].weight.grad.detach()
    torch.nn.utils.clip_grad_norm_([mine[0].weight], 1.0)
    grad.add_(1.0)
    with pytest.raises(RuntimeError, match="was written or replaced"):
        waiting.stop()
    assert torch.nn.utils.clip_grad_norm_ is stock and ours.zero_grads
    assert "update" not in vars(other)


def test_lazy_norm_is_a_tensor():
    p = nn.Parameter(torch.ones(4))
    ours = AccumulatingSGD([p], lr=0.0)
    with deferred(ours):
        p.grad = torch.ones(4)
        norm = torch.nn.utils.clip_grad_norm_([p], 100.0)
        assert isinstance(norm, torch.Tensor)
        assert norm.item() == 2.0 and float(norm) == 2.0 and f"{norm:.1f}" == "2.0"
        assert bool(norm > 1) and torch.isfinite(norm)
        assert torch.stack([norm, norm]).tolist() == [2.0, 2.0]
        assert type(norm + 1) is torch.Tensor and norm.numpy() == 2.0
        assert copy.deepcopy(norm).item() == 2.0
        later = torch.nn.utils.clip_grad_norm_([p], 1.0)
        ours.zero_grad()
        assert later.item() == 2.0
