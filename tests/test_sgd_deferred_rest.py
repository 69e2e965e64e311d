# SPDX-License-Identifier: MIT
"""What waits where stock torch steps a part, or where another model is clipped."""

import copy

import pytest
import torch
from torch import nn

from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD

RATES = dict(lr=0.1, momentum=0.9)


def with_gaps(p):
    return torch.ones(3, 4)[:, :3].copy_(p) if p.ndim == 2 else p.clone()


NOT_FOR_C = {
    "float64": lambda p: p.double() if p.ndim == 1 else p,
    "bfloat16": lambda p: p.bfloat16() if p.ndim == 1 else p,
    "gaps": with_gaps,
}


def twins(kind):
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    for name, p in list(net.named_parameters()):
        setattr(net, name, nn.Parameter(NOT_FOR_C[kind](p.detach())))
    other = copy.deepcopy(net)
    return net, other


def set_gradients(net, step):
    for i, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, 2.0 + i + step)


def clip_once_more(net, optimizer, scaler):
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)


def clip_values(net, optimizer, scaler):
    torch.nn.utils.clip_grad_value_(net.parameters(), 0.25)


def read(net, optimizer, scaler):
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def unscale(net, optimizer, scaler):
    scaler.unscale_(optimizer)


@pytest.mark.parametrize("then", [clip_once_more, clip_values, read, unscale])
@pytest.mark.parametrize("kind", NOT_FOR_C)
def test_before_the_first_step_too(kind, then):
    mine, theirs = twins(kind)
    ours = AccumulatingSGD(mine.parameters(), **RATES)
    stock = torch.optim.SGD(theirs.parameters(), **RATES, foreach=False)
    with deferred(ours):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            scaler.scale(torch.ones(()))  # makes the scale
            for step in range(2):
                set_gradients(net, step)
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                then(net, optimizer, scaler)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    assert ours.fallback is not None
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def clipped(net, max_norm=1.0):
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
    return [p.grad.tolist() for p in net.parameters()]


def test_what_cannot_be_finished_is_not_told_at_another_models_clip():
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = clipped(other)
    ours = AccumulatingSGD(net.parameters(), lr=0.1)
    waiting = deferred(ours)
    waiting.start()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    taken = net.weight.grad.detach()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    taken.add_(1.0)
    assert clipped(other) == expected
    torch.nn.utils.clip_grad_value_(other.parameters(), 1e-3)
    assert other.bias.grad.tolist() == [pytest.approx(1e-3)] * 2
    with pytest.raises(RuntimeError, match="was written or replaced"):
        torch.nn.utils.clip_grad_norm_(net.bias, 1.0)
    with pytest.raises(RuntimeError, match="was written or replaced"):
        waiting.stop()


def test_another_models_clip_leaves_what_waits_to_the_step():
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    ours = AccumulatingSGD(net.parameters(), lr=0.1)
    with deferred(ours):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        clipped(other)
        assert ours.waits_with(net.weight)
        ours.step()


def test_gradients_that_lie_in_those_that_wait_are_finished_first():
    flat = torch.full((6,), 3.0)
    p, whole = nn.Parameter(torch.zeros(4)), torch.zeros(6, requires_grad=True)
    ours = AccumulatingSGD([p], lr=1.0)
    with deferred(ours):
        p.grad, whole.grad = flat[:4], flat
        torch.nn.utils.clip_grad_norm_([p], 3.0)
        torch.nn.utils.clip_grad_value_([whole], 2.0)
        assert flat.tolist() == pytest.approx([1.5] * 4 + [2.0] * 2)
        ours.step()
    assert p.tolist() == pytest.approx([-1.5] * 4)
