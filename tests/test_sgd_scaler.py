# SPDX-License-Identifier: MIT
"""AccumulatingSGD under torch.amp.GradScaler, by either of the two ways to step."""

import contextlib
import math

import pytest
import torch
from sgd_twins import (
    OFFICIAL,
    assert_same,
    assert_same_state,
    backward,
    official_ema_update,
    twins,
)
from torch import nn

from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_scaler_step_recovers_from_an_inf_as_the_official_loop(unscales, max_norm):
    mine, theirs = twins()
    ema, official = ModelEMA(mine), ModelEMA(theirs)
    ours = AccumulatingSGD(
        mine.parameters(), **OFFICIAL, ema=ema, model=mine, max_norm=max_norm
    )
    stock = torch.optim.SGD(theirs.parameters(), **OFFICIAL, foreach=False)
    scalers = [torch.amp.GradScaler("cpu", growth_interval=2) for _ in range(2)]
    for step in range(6):
        for net, optimizer, scaler in zip(
            (mine, theirs), (ours, stock), scalers, strict=True
        ):
            backward(net, step, scaler)
            if step in (0, 3):
                net.conv.weight.grad[0, 0, 0, 0] = math.inf
            if unscales:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        stock.zero_grad()
        official_ema_update(official, theirs)
        assert ours.stepped and ours.skipped == (step in (0, 3))
        assert not any(p.grad.any() for p in mine.parameters() if p.grad is not None)
        assert_same(mine, theirs)
        assert_same(ema.ema, official.ema)
        assert_same_state(ours, stock)
        assert ema.updates == official.updates == step + 1
        assert scalers[0].get_scale() == scalers[1].get_scale()


def test_scaler_step_with_other_dtypes():
    mine, theirs = (
        [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.bfloat16, torch.float32)]
        for _ in range(2)
    )
    ours = AccumulatingSGD(mine, **OFFICIAL)
    stock = torch.optim.SGD(theirs, **OFFICIAL, foreach=False)
    for params, optimizer in ((mine, ours), (theirs, stock)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(4):
            scaler.scale((params[0].float() * params[1]).sum() * 0.5).backward()
            if step == 1:
                params[0].grad[1] = math.nan
            scaler.step(optimizer)
            scaler.update()
            stock.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


def test_hooks_before_the_step_see_unscaled_gradients_by_scaler_step():
    p = nn.Parameter(torch.ones(3))
    ours = AccumulatingSGD([p], lr=1.0)
    seen = []
    ours.register_step_pre_hook(lambda *_: seen.append(p.grad.tolist()))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.step(ours)
    assert seen == [[1.0] * 3] and p.tolist() == [0.0] * 3


def test_scaler_step_that_is_refused_leaves_no_scale_behind():
    """GradScaler multiplies by a scale that it finds on the optimizer."""
    p = nn.Parameter(torch.zeros(3))
    ours = AccumulatingSGD([p], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    ours.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr is nan"):
        scaler.step(ours)
    with pytest.raises(RuntimeError, match="closure"):
        scaler.step(ours, lambda: 1.0)
    with pytest.raises(RuntimeError, match="the scaler comes by itself"):
        scaler.step(ours, scaler=scaler)
    ours.param_groups[0]["lr"] = 1.0
    scaler.step(ours)
    assert p.tolist() == [-1.0] * 3
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(ours)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_infs_are_looked_for_in_gradients_as_they_come(own, max_norm):
    """With a scale below 1 a finite gradient may overflow when it is unscaled."""
    outcome = []
    for kind in (AccumulatingSGD, torch.optim.SGD):
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.full((2,), 3e38)
        optimizer = kind([p], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-10)
        scaler.scale(torch.ones(1))
        if kind is AccumulatingSGD and own:
            optimizer.step(scaler=scaler, max_norm=max_norm)
        else:
            scaler.unscale_(optimizer)
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_([p], max_norm)
            scaler.step(optimizer)
        scaler.update()
        outcome.append((str(p.tolist()), scaler.get_scale()))
    assert outcome[0] == outcome[1]


@pytest.mark.parametrize("waits", [False, True], ids=["step", "deferred"])
def test_a_complex_gradient_is_refused_before_another_is_unscaled(waits):
    """To unscale those before it, and to fail then, would unscale them twice."""
    p, q = (nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.double, torch.cfloat))
    ours = AccumulatingSGD([p, q], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    p.grad, q.grad = torch.full((3,), 4.0).double(), torch.ones(3, dtype=torch.cfloat)
    with deferred(ours) if waits else contextlib.nullcontext():
        with pytest.raises(
            TypeError, match=r"groups\[0\].* is torch.complex64, must be"
        ):
            scaler.unscale_(ours) if waits else ours.step(scaler=scaler)
        assert p.grad.tolist() == [4.0] * 3
        q.grad = None
        if waits:
            scaler.unscale_(ours)
        ours.step(scaler=scaler)
    assert p.tolist() == [0.9] * 3
