# SPDX-License-Identifier: MIT
"""An average whose module a script replaces, and one that cannot be moved."""

import contextlib
import copy

import pytest
import torch
from sgd_twins import (
    RATES,
    OfficialEMA,
    assert_same,
    backward,
    official_ema_update,
    twins,
)
from torch import nn

from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def copied(ema):
    ema.ema = copy.deepcopy(ema.ema)


def other_values(ema):
    ema.ema = copy.deepcopy(ema.ema)
    for p in ema.ema.parameters():
        p.data.fill_(0.5)


def in_halves(ema):
    ema.ema = copy.deepcopy(ema.ema).half()


REPLACED = [copied, other_values, in_halves]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("replace", REPLACED)
@pytest.mark.parametrize("kind", [OfficialEMA, ModelEMA])
def test_a_module_that_replaces_the_average_is_moved(kind, replace, waits):
    mine, theirs = twins()
    ema, official = kind(mine), OfficialEMA(theirs)
    attached = {} if waits else dict(ema=ema, model=mine)
    ours = AccumulatingSGD(mine.parameters(), **RATES, **attached)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    with deferred(ours, ema, mine) if waits else contextlib.nullcontext():
        for step in range(4):
            for net, optimizer in ((mine, ours), (theirs, stock)):
                if step == 2:
                    replace(ema if net is mine else official)
                backward(net, step)
                optimizer.step()
                optimizer.zero_grad()
            if waits:
                ema.update(mine)
            official_ema_update(official, theirs)
            assert_same(ema.ema, official.ema)
    assert ema.updates == 4


def test_a_module_that_was_replaced_before_an_update_alone_is_moved():
    mine, theirs = twins()
    ema, official = ModelEMA(mine), OfficialEMA(theirs)
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    with deferred(ours, ema, mine):
        other_values(ema)
        ema.update(mine)
    other_values(official)
    official_ema_update(official, theirs)
    assert_same(ema.ema, official.ema)


def test_a_module_in_a_wrapper_is_still_the_average():
    net, _ = twins()
    ema = ModelEMA(net)
    ours = AccumulatingSGD(net.parameters(), **RATES, ema=ema, model=net)
    average = ema.ema
    ema.ema = nn.DataParallel(average)
    before = average.conv.weight.clone()
    backward(net, 0)
    ours.step()
    assert not torch.equal(before, average.conv.weight)


@pytest.mark.parametrize(
    ("average", "error", "text"),
    [
        (None, TypeError, "ema: ema: is a NoneType, must be a torch.nn.Module"),
        (nn.Conv2d(1, 1, 1), ValueError, "weight is in the average but not in the mod"),
    ],
)
def test_a_replacement_that_cannot_be_moved_is_refused_by_a_step_that_does_nothing(
    average, error, text
):
    net, _ = twins()
    ema = ModelEMA(net)
    ours = AccumulatingSGD(net.parameters(), **RATES, ema=ema, model=net)
    mended = ema.ema
    ema.ema = average
    backward(net, 0)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=text):
        ours.step()
    assert_same(net, before)
    assert ema.updates == 0 and not ours.stepped
    ema.ema = mended
    ours.step()
    assert ema.updates == 1 and ours.stepped


def make_complex(net, ema):
    net.conv.bias.data = net.conv.bias.data.to(torch.complex64)


def expand_average(net, ema):
    ema.ema.conv.bias.data = torch.zeros(1).expand(13)


def average_of_inference(net, ema):
    with torch.inference_mode():
        made = torch.zeros(13, dtype=torch.float64)
    ema.ema.conv._buffers["bias"] = made
    del ema.ema.conv._parameters["bias"]


HARMS = {
    make_complex: "parameter 1 of shape .13,.: is torch.complex64, which its average, tor",
    expand_average: "several elements of its average are one in memory .strides .0,",
    average_of_inference: "its average was made in inference mode",
}


@pytest.mark.parametrize(("harm", "text"), HARMS.items())
def test_an_average_that_cannot_be_written_is_refused_before_anything_is(harm, text):
    net, _ = twins()
    ema = ModelEMA(net)
    ours = AccumulatingSGD(net.parameters(), **RATES, ema=ema, model=net)
    harm(net, ema)
    for p in net.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = copy.deepcopy((net.state_dict(), ema.ema.state_dict()))
    with pytest.raises(ValueError, match=f"ema: .*{text}"):
        ours.step()
    assert all(bool((p.grad == 1).all()) for p in net.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=text.rpartition("shape")[2]):
        ema.update(net)
    assert_same(net, before[0])
    assert_same(ema.ema, before[1])
    assert ema.updates == 0 and not ours.state


def test_an_average_of_another_device_is_refused_by_a_step_that_does_nothing():
    net, _ = twins()
    ema = ModelEMA(net)
    ours = AccumulatingSGD(net.parameters(), **RATES, ema=ema, model=net)
    ema.ema.norm.to("meta")
    backward(net, 0)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="is on cpu, its average on meta"):
        ours.step()
    assert_same(net, before)
    assert ema.updates == 0
