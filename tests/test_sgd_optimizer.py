# SPDX-License-Identifier: MIT
"""AccumulatingSGD as a torch.optim.Optimizer: state, copies, hooks, bad input, leaks."""

import copy
import gc
import io
import math
import pickle
import resource
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from sgd_twins import OFFICIAL, assert_same, backward, official_groups, twins
from torch import nn

from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def test_finding_the_model():
    mine, theirs = twins()
    ema = ModelEMA(mine)
    ours = AccumulatingSGD(mine.parameters(), lr=0.1, ema=ema)
    assert ours.averages(mine)
    stranger = ModelEMA(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="pass model="):
        ours.attach_ema(stranger)
    with pytest.raises(ValueError, match="not in the model"):
        ours.attach_ema(stranger, mine)
    with pytest.raises(TypeError, match="no attribute 'updates'"):
        ours.attach_ema(type("E", (), {"ema": mine})())
    constant = {"ema": ema.ema, "updates": 0, "decay": 0.999}
    with pytest.raises(TypeError, match=r"decay is 0\.999, must be a function"):
        ours.attach_ema(type("E", (), constant)(), mine)
    ours.attach_ema(ema, nn.DataParallel(mine))
    assert ours.averages(mine) and ours.ema is ema
    ours.attach_ema(None)
    assert ours.ema is None


def test_state_dict_goes_both_ways():
    mine, theirs = twins()
    ours = AccumulatingSGD(official_groups(mine), **OFFICIAL)
    stock = torch.optim.SGD(official_groups(theirs), **OFFICIAL)
    for step in range(2):
        backward(mine, step)
        backward(theirs, step)
        ours.step()
        stock.step()
        stock.zero_grad()
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    there = torch.load(file, weights_only=True)
    back = stock.state_dict()
    assert there["param_groups"] == back["param_groups"]
    stock.load_state_dict(there)
    ours.load_state_dict(back)
    for step in range(2, 4):
        backward(mine, step)
        backward(theirs, step)
        ours.step()
        stock.step()
        ours.zero_grad()
        stock.zero_grad()
    assert_same(mine, theirs)
    fused = torch.optim.SGD(theirs.parameters(), lr=0.1, fused=True).state_dict()
    plain = AccumulatingSGD(mine.parameters(), lr=0.1)
    plain.load_state_dict(fused)
    backward(mine, 9)
    plain.step()


def test_copies_keep_their_settings():
    mine, _ = twins()
    ema = ModelEMA(mine)
    ours = AccumulatingSGD(mine.parameters(), **OFFICIAL, accumulate=3, ema=ema)
    ours.max_norm = 7.0
    backward(mine, 0)
    ours.step()
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert (twin.accumulate, twin.max_norm, twin.ema) == (3, 7.0, None)
        for _ in range(2):
            twin.step()
        assert twin.stepped


def test_hooks_schedulers_closures_and_new_groups():
    mine, theirs = twins()
    calls = []
    ours = AccumulatingSGD([mine.conv.weight], lr=0.1)
    stock = torch.optim.SGD([theirs.conv.weight], lr=0.1, foreach=False)
    ours.register_step_pre_hook(lambda *_: calls.append("pre"))
    ours.register_step_post_hook(lambda *_: calls.append("post"))
    for net, optimizer in ((mine, ours), (theirs, stock)):
        optimizer.add_param_group({"params": [net.last.weight], "momentum": 0.5})
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
        for step in range(3):

            def closure(net=net, step=step, optimizer=optimizer):
                optimizer.zero_grad()
                backward(net, step)
                return 5.0

            assert optimizer.step(closure) == 5.0
            scheduler.step()
    assert calls == ["pre", "post"] * 3
    assert_same(mine, theirs)
    assert isinstance(ours, torch.optim.SGD)


def test_autograd_sees_the_step():
    p = nn.Parameter(torch.ones(3))
    ours = AccumulatingSGD([p], lr=0.1)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_zero_grad_keeps_torchs_meaning():
    mine, _ = twins()
    ours = AccumulatingSGD(mine.parameters(), lr=0.1)
    backward(mine, 0)
    ours.zero_grad(set_to_none=False)
    assert not mine.conv.weight.grad.any()
    ours.zero_grad()
    assert mine.conv.weight.grad is None


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (dict(lr=math.nan), ValueError, "lr: is nan"),
        (dict(lr=-0.1), ValueError, "learning rate"),
        (dict(momentum=-0.1), ValueError, "momentum"),
        (dict(weight_decay=math.inf), ValueError, "weight_decay: is inf"),
        (dict(nesterov=True), ValueError, "Nesterov"),
        (dict(fused=True), NotImplementedError, "fused=True"),
        (dict(differentiable=True), NotImplementedError, "differentiable=True"),
        (dict(accumulate=0), ValueError, "accumulate: is 0"),
        (dict(accumulate=1.5), ValueError, "accumulate: is 1.5"),
        (dict(max_norm=-1.0), ValueError, "max_norm: is -1"),
        (dict(ema=object()), TypeError, "no attribute 'ema'"),
        (
            dict(zero_grads="False"),
            TypeError,
            "zero_grads: is 'False', must be True or",
        ),
    ],
)
def test_bad_settings(settings, error, text):
    with pytest.raises(error, match=text):
        AccumulatingSGD([nn.Parameter(torch.ones(2))], **settings)


@pytest.mark.parametrize("name", ["fused", "differentiable"])
def test_groups_may_not_ask_for_other_steps(name):
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    group = {"params": [p], name: True}
    with pytest.raises(NotImplementedError, match=f"{name}=True is not supported"):
        AccumulatingSGD([group], lr=0.1)
    ours = AccumulatingSGD([{"params": [q], name: False}], lr=0.1)
    with pytest.raises(NotImplementedError, match=f"{name}=True is not supported"):
        ours.add_param_group(group)
    stock = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, **{name: True})
    ours.load_state_dict(stock.state_dict())
    assert not ours.param_groups[0][name]


def test_bad_steps():
    p = nn.Parameter(torch.ones(4))
    ours = AccumulatingSGD([p], lr=0.1)
    p.grad = torch.ones(4)
    ours.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="group 0: lr is nan"):
        ours.step()
    ours.param_groups[0]["lr"] = 0.1
    with pytest.raises(TypeError, match="GradScaler, got Loud"):
        ours.step(scaler=type("Loud", (), {"is_enabled": lambda _: True})())
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="closure"):
        ours.step(lambda: 1.0, scaler=scaler)
    with pytest.raises(AssertionError, match="_scale is None"):
        ours.step(scaler=scaler)
    memory = torch.ones(6)
    tied = [nn.Parameter(memory[:4]), nn.Parameter(memory[2:])]
    for q in tied:
        q.grad = torch.ones(4)
    with pytest.raises(ValueError, match="overlaps"):
        AccumulatingSGD(tied, lr=0.1).step()
    p.grad = torch.ones(4).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        ours.step()


def test_thousand_steps_leak_nothing():
    p = nn.Parameter(torch.ones(20000))
    ours = AccumulatingSGD([p], lr=1e-9, momentum=0.9, max_norm=1.0)

    def steps(count):
        for _ in range(count):
            p.grad = torch.ones_like(p)
            ours.step()
        gc.collect()
        return len(gc.get_objects())

    objects = steps(100)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert steps(1000) <= objects + 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1024


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (dict(decay="a"), TypeError, "decay: expected a number, got str: 'a'"),
        (dict(decay=1.5), ValueError, r"decay: is 1.5, must be in \[0, 1\]"),
        (dict(decay=math.nan), ValueError, "decay: is nan, must be in"),
        (dict(tau=None), TypeError, "tau: expected a number, got NoneType"),
        (dict(tau=0), ValueError, "tau: is 0, must be above 0"),
        (dict(updates=-5), ValueError, "updates: is -5, must be 0 to"),
        (dict(updates="x"), TypeError, "updates: is 'x', must be a whole number"),
    ],
)
def test_an_average_is_told_what_its_settings_break(settings, error, text):
    with pytest.raises(error, match=text):
        ModelEMA(nn.Linear(2, 2), **settings)


def test_an_average_of_what_is_no_module():
    net = nn.Linear(2, 2)
    ema = ModelEMA(net)
    optimizer = AccumulatingSGD(net.parameters(), lr=0.1)
    calls = ema.update, ema.update_attr, partial(optimizer.attach_ema, ema)
    for call in calls:
        with pytest.raises(TypeError, match="model: is a dict, must be a torch.nn.Mod"):
            call({})
    assert ema.updates == 0 and optimizer.ema is None


def test_attributes_are_copied_by_name():
    """One name alone would be read as its letters."""
    net = nn.Linear(2, 2)
    ema = ModelEMA(net)
    net.names = ["cell"]
    for name in ("include", "exclude"):
        with pytest.raises(TypeError, match=f"{name}: is the str 'names', must be a c"):
            ema.update_attr(net, **{name: "names"})
    ema.update_attr(net, exclude=["names"])
    assert not hasattr(ema.ema, "names")
    ema.update_attr(net, include=["names"])
    assert ema.ema.names == ["cell"]


def test_a_decay_of_other_numbers():
    """Small integers would wrap, and decimals are none that a float goes with."""
    plain = ModelEMA(nn.Linear(2, 2), 0.5, 20).decay(3)
    ema = ModelEMA(nn.Linear(2, 2), Decimal("0.5"), Fraction(20))
    assert ema.decay(np.uint8(3)) == plain == 0.5 * (1 - math.exp(-3 / 20))
