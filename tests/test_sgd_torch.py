# SPDX-License-Identifier: MIT
"""AccumulatingSGD against torch.optim.SGD(foreach=False) and the official average."""

import copy
import math

import pytest
import torch
from sgd_twins import (
    OFFICIAL,
    OPTIONS,
    assert_same,
    assert_same_state,
    backward,
    official_ema_update,
    official_groups,
    twins,
)
from torch import nn

from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD

WITH_TENSORS = OPTIONS | {"tensor lr": dict(lr=torch.tensor(0.05), momentum=0.9)}


@pytest.mark.parametrize("name", WITH_TENSORS)
def test_bits_of_the_for_loop(name):
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **WITH_TENSORS[name])
    stock = torch.optim.SGD(theirs.parameters(), foreach=False, **WITH_TENSORS[name])
    for step in range(5):
        backward(mine, step)
        backward(theirs, step)
        ours.step()
        stock.step()
        stock.zero_grad(set_to_none=False)
        assert_same(mine, theirs)
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.equal(p.grad, q.grad)


RATES_SET_LATER = [
    dict(momentum=1e-46, dampening=0.5),  # 0 in float32, and a momentum to torch
    dict(momentum=1e-40, dampening=0.5, weight_decay=1e-46),
    dict(weight_decay=1e-46),
    dict(weight_decay=-0.1),
    dict(momentum=-0.5),
    dict(momentum=-0.5, dampening=0.3, weight_decay=-1e-3, lr=-0.1),
]


@pytest.mark.parametrize("rates", RATES_SET_LATER)
def test_bits_of_rates_that_a_script_sets_in_its_groups(rates):
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.1)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1, foreach=False)
    for step in range(4):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            backward(net, step)
            net.conv.bias.grad.fill_(-0.0)
            optimizer.param_groups[0].update(rates)
            optimizer.step()
        stock.zero_grad(set_to_none=False)
        assert_same(mine, theirs)
        for x, y in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(x.signbit(), y.signbit())
    assert_same_state(ours, stock)
    assert ours.fallback is None


@pytest.mark.parametrize(
    "sizes", [[1, 2, 15, 16, 17, 31, 63, 1023, 1025, 65537, 131073]]
)
def test_bits_at_every_vector_tail(sizes):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(n)) for n in sizes]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    ours = AccumulatingSGD(mine, **OFFICIAL, weight_decay=5e-4)
    stock = torch.optim.SGD(theirs, **OFFICIAL, weight_decay=5e-4, foreach=False)
    for _ in range(5):
        for p, q in zip(mine, theirs, strict=True):
            q.grad = torch.randn_like(q) * torch.rand_like(q) ** 8
            p.grad = q.grad.clone()
        ours.step()
        stock.step()
        for p, q in zip(mine, theirs, strict=True):
            assert torch.equal(p, q)


def test_official_loop_with_scaler_clip_and_average():
    mine, theirs = twins()
    ema, official = ModelEMA(mine), ModelEMA(theirs)
    ours = AccumulatingSGD(official_groups(mine), **OFFICIAL, ema=ema, max_norm=1e9)
    stock = torch.optim.SGD(official_groups(theirs), **OFFICIAL, foreach=False)
    scalers = [torch.amp.GradScaler("cpu", growth_interval=3) for _ in range(2)]
    for step in range(8):
        for optimizer in (ours, stock):  # warm-up moves both in every iteration
            optimizer.param_groups[0]["lr"] = 0.1 - 0.01 * step
            for group in optimizer.param_groups:
                group["momentum"] = 0.8 + 0.01 * step
        backward(mine, step, scalers[0])
        backward(theirs, step, scalers[1])
        if step == 4:
            mine.conv.weight.grad[0, 0, 0, 0] = math.inf
            theirs.conv.weight.grad[0, 0, 0, 0] = math.inf
        ours.step(scaler=scalers[0])
        scalers[0].update()
        scalers[1].unscale_(stock)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1e9)
        scalers[1].step(stock)
        scalers[1].update()
        stock.zero_grad(set_to_none=False)
        official_ema_update(official, theirs)
        assert ours.skipped == (step == 4)
        assert_same(mine, theirs)
        assert_same(ema.ema, official.ema)
        assert ema.updates == official.updates
        assert_same_state(ours, stock)
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert all(not p.grad.any() for p in mine.parameters() if p.grad is not None)


def test_clip_as_clip_grad_norm():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.1, zero_grads=False)
    backward(mine, 0)
    backward(theirs, 0)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    ours.step(max_norm=0.5)
    assert ours.grad_norm == pytest.approx(norm.item(), rel=2e-6)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        if p.grad is not None:  # left unscaled and clipped, as torch leaves them
            torch.testing.assert_close(p.grad, q.grad, rtol=2e-6, atol=0)


def test_a_scale_that_was_halved_down_to_zero_skips_as_torch():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.1)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for model, optimizer in ((mine, ours), (theirs, stock)):
        scaler = torch.amp.GradScaler("cpu", init_scale=1e-45)
        scaler.scale(torch.zeros(()))
        scaler.update(0.0)
        backward(model, 0, scaler)
        model.conv.weight.grad[0, 0, 0, 0] = math.nan
        if optimizer is ours:
            ours.step(scaler=scaler)
        else:
            scaler.step(stock)
        scaler.update()
    assert ours.skipped
    assert_same(mine, theirs)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_non_finite_norm_without_scaler_as_torch(poison):
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    ours = AccumulatingSGD([p], lr=0.1, max_norm=1.0)
    stock = torch.optim.SGD([q], lr=0.1, foreach=False)
    p.grad, q.grad = (torch.tensor([1.0, poison, 2.0]) for _ in range(2))
    torch.nn.utils.clip_grad_norm_([q], 1.0)
    ours.step()
    stock.step()
    torch.testing.assert_close(p, q, equal_nan=True)


def test_skip_creates_no_buffer_and_late_buffers_start_late():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **OFFICIAL)
    stock = torch.optim.SGD(theirs.parameters(), **OFFICIAL, foreach=False)
    scaler = torch.amp.GradScaler("cpu")
    backward(mine, 0, scaler)
    backward(theirs, 0)
    stock.zero_grad()
    mine.norm.bias.grad[0] = math.nan
    ours.step(scaler=scaler)
    scaler.update()
    assert ours.skipped and not ours.state_dict()["state"]
    for step in range(1, 5):
        if step == 3:  # an unfrozen parameter starts with a copy of its gradient
            for net in (mine, theirs):
                net.frozen.requires_grad_(True)
        backward(mine, step)
        backward(theirs, step)
        ours.step()
        stock.step()
        stock.zero_grad()
        assert_same(mine, theirs)
        assert_same_state(ours, stock)


def test_accumulate_sums_and_acts_on_the_last():
    mine, theirs = twins()
    ema, official = ModelEMA(mine), ModelEMA(theirs)
    ours = AccumulatingSGD(mine.parameters(), **OFFICIAL, accumulate=3, ema=ema)
    stock = torch.optim.SGD(theirs.parameters(), **OFFICIAL, foreach=False)
    acted = []
    for step in range(7):
        backward(mine, step)
        backward(theirs, step)
        ours.step()
        acted.append(ours.stepped)
        if step % 3 == 2:
            stock.step()
            stock.zero_grad()
            official_ema_update(official, theirs)
    assert acted == [False, False, True] * 2 + [False]
    assert_same(mine, theirs)
    assert_same(ema.ema, official.ema)
    ours.accumulate = 1
    backward(mine, 7)
    ours.step()
    assert ours.stepped


def test_accumulate_with_scaler():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.01, accumulate=2)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.01, foreach=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(4):
        backward(mine, step, scaler)
        backward(theirs, step)
        ours.step(scaler=scaler)
        if ours.stepped:
            scaler.update()
            stock.step()
            stock.zero_grad()
    assert_same(mine, theirs)
    backward(mine, 4, scaler)
    with pytest.raises(RuntimeError, match=r"call optimizer\.step"):
        scaler.step(ours)
    ours.step(scaler=scaler)  # and the right way still works after that


def test_stock_scaler_protocol():
    mine, theirs = twins()
    ours = AccumulatingSGD(mine.parameters(), **OFFICIAL)
    stock = torch.optim.SGD(theirs.parameters(), **OFFICIAL, foreach=False)
    for net, optimizer in ((mine, ours), (theirs, stock)):
        scaler = torch.amp.GradScaler("cpu")
        for step in range(3):
            backward(net, step, scaler)
            if step == 1:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert_same(mine, theirs)


def test_unscaled_before_and_stepped_twice():
    mine, _ = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    backward(mine, 0, scaler)
    scaler.unscale_(ours)
    mine.conv.bias.grad[0] = 1.0
    expected = mine.conv.bias[0].item() - 0.01
    ours.step(scaler=scaler)
    assert mine.conv.bias[0].item() == pytest.approx(expected)
    with pytest.raises(RuntimeError, match="already been called"):
        ours.step(scaler=scaler)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    ours.step(scaler=disabled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_take_stock_torch(dtype):
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4).to(dtype))]
    theirs = copy.deepcopy(mine)
    ours = AccumulatingSGD(mine, **OFFICIAL)
    stock = torch.optim.SGD(theirs, **OFFICIAL, foreach=False)
    for _ in range(3):
        for p, q in zip(mine, theirs, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 100.0)
        ours.step(max_norm=100.0)
        stock.step()
        assert ours.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))
        assert not any(p.grad.any() for p in mine)


def test_other_dtypes_under_a_scaler():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    q = nn.Parameter(torch.ones(3))
    ours = AccumulatingSGD([p, q], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for poison, left in ((1.0, 0.0), (math.inf, 0.0)):
        scaler.scale((p.float() * q).sum()).backward()
        p.grad[0] *= poison
        ours.step(scaler=scaler)
        scaler.update()
        assert p.tolist() == [left] * 3
    assert ours.skipped
    half = nn.Parameter(torch.ones(3, dtype=torch.float16))
    ours = AccumulatingSGD([half], lr=1.0)
    scaler.scale(half.float().sum()).backward()
    with pytest.raises(ValueError, match=r"groups\[0\].* is torch.float16, must be"):
        ours.step(scaler=scaler)


def test_layouts():
    torch.manual_seed(0)
    base = torch.randn(6, 5, 3, 3)
    mine, theirs = (
        [
            nn.Parameter(base.clone().to(memory_format=torch.channels_last)),
            nn.Parameter(base.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)),
            nn.Parameter(base.clone()[:, ::2]),  # gaps
            nn.Parameter(base[:1, :, :1, :1].clone()),
            nn.Parameter(torch.zeros(0, 4)),
        ]
        for _ in range(2)
    )
    ours = AccumulatingSGD(mine, **OFFICIAL)
    stock = torch.optim.SGD(theirs, **OFFICIAL, foreach=False)
    for step in range(4):
        for p, q in zip(mine, theirs, strict=True):
            g = torch.randn(p.shape)
            # The second time every gradient has another layout than its parameter.
            q.grad = g.contiguous() if step == 1 else torch.empty_like(q).copy_(g)
            p.grad = q.grad.clone()
        ours.step()
        stock.step()
        assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_average_of_halves_ties_and_other_layouts():
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(4, 4, 3))
    mine[1].weight = mine[0].weight
    mine.register_buffer("short", torch.ones(3, dtype=torch.float16))
    mine.register_buffer("count", torch.ones(3, dtype=torch.int64))
    mine.register_buffer("hidden", torch.ones(3), persistent=False)
    theirs = copy.deepcopy(mine)
    ema, official = ModelEMA(mine), ModelEMA(theirs)
    for e in (ema, official):
        e.ema[2].to(memory_format=torch.channels_last)
    ours = AccumulatingSGD(mine.parameters(), lr=0.1, ema=ema)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1, foreach=False)
    for _ in range(3):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            net[1](net[0](torch.ones(4))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        official_ema_update(official, theirs)
        assert_same(ema.ema, official.ema)


def test_ema_alone_and_changed_modules():
    mine, _ = twins()
    ema, official = ModelEMA(mine), ModelEMA(mine)
    for _ in range(3):
        nn.init.normal_(mine.conv.weight)
        ema.update(mine)
        official_ema_update(official, mine)
        assert_same(ema.ema, official.ema)
    ours = AccumulatingSGD(mine.parameters(), lr=0.1, ema=ema, model=mine)
    for net in (mine, ema.ema, official.ema):  # the tree changes under the optimizer
        net.norm = nn.BatchNorm2d(13)
    backward(mine, 0)
    ours.step()
    official_ema_update(official, mine)
    assert_same(ema.ema, official.ema)
    mine.names = ["cell"]
    ema.update_attr(mine)
    assert ema.ema.names == ["cell"] and not ema.ema.training
