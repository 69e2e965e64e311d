# SPDX-License-Identifier: MIT
"""A step that AccumulatingSGD refuses has done nothing, and may be made again."""

import math

import pytest
import torch
from torch import nn

from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def ones(n=5, dtype=torch.float32, grad=1.0):
    p = nn.Parameter(torch.ones(n, dtype=dtype))
    p.grad = torch.full((n,), grad, dtype=dtype)
    return p


def spread(n=5):
    """A parameter whose gradient is one number in memory."""
    p = nn.Parameter(torch.ones(n))
    p.grad = torch.ones(1).expand(n)
    return p


def assert_untouched(optimizer, params, before):
    assert not optimizer.stepped and not optimizer.skipped
    assert not any(optimizer.state[p] for p in params if p in optimizer.state)
    for p, (value, grad) in zip(params, before, strict=True):
        assert torch.equal(p, value) and torch.equal(p.grad, grad)


def snapshot(params):
    return [(p.detach().clone(), p.grad.clone()) for p in params]


@pytest.mark.parametrize("scaled", [False, True])
def test_an_expanded_gradient_is_refused_before_anything_is_written(scaled):
    a, b = ones(), spread()
    ours = AccumulatingSGD([a, b], lr=0.1, momentum=0.9, max_norm=0.5)
    before = snapshot([a, b])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    text = r"param_groups\[0\], parameter 1 of shape \(5,\): several elements of its gr"
    for _ in range(2):
        with pytest.raises(ValueError, match=text):
            ours.step(scaler=scaler if scaled else None)
        assert_untouched(ours, [a, b], before)
    b.grad = b.grad.clone()
    ours.step(scaler=scaler if scaled else None)
    assert ours.stepped and not torch.equal(a, before[0][0])


def test_an_expanded_gradient_that_is_only_read_steps_as_stock():
    mine, theirs = [ones(), spread()], [ones(), spread()]
    AccumulatingSGD(mine, lr=0.1, momentum=0.9).step()
    torch.optim.SGD(theirs, lr=0.1, momentum=0.9, foreach=False).step()
    assert all(torch.equal(p, q) for p, q in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("momentum", "text"),
    [
        (torch.zeros(3, dtype=torch.float64), r"its momentum has shape \(3,\)"),
        (torch.zeros(1, dtype=torch.float64).expand(5), "momentum's elements are one"),
        (torch.zeros(5, dtype=torch.int64), "is torch.int64, which cannot hold"),
    ],
)
def test_a_momentum_that_does_not_fit_is_refused_before_anything_is_written(
    momentum, text
):
    a, c = ones(), ones(dtype=torch.float64)
    ours = AccumulatingSGD([a, c], lr=0.1, momentum=0.9)
    ours.state[c]["momentum_buffer"] = momentum
    before = snapshot([a])
    with pytest.raises(ValueError, match=rf"parameter 1 of shape \(5,\).*{text}"):
        ours.step()
    assert_untouched(ours, [a], before)


def test_a_changed_shape_is_seen():
    """The last step's table must not be taken again."""
    p = nn.Parameter(torch.zeros(6))
    ours = AccumulatingSGD([p], lr=0.1, momentum=0.9)
    for _ in range(3):
        p.grad = torch.ones(6)
        ours.step()
    kept = p.detach().clone()
    p.data = p.data.view(2, 3)
    p.grad = None
    p.grad = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"its momentum has shape \(6,\)"):
        ours.step()
    assert torch.equal(p.view(6), kept)


def set_lr(ours):
    ours.param_groups[0]["lr"] = math.nan


def mend_lr(ours):
    ours.param_groups[0]["lr"] = 0.1


def set_decay(ours):
    ours.ema.decay = lambda updates: 1 / 0


def mend_decay(ours):
    del ours.ema.decay


def set_sparse(ours):
    p = ours.param_groups[0]["params"][0]
    ours.kept, p.grad = p.grad, p.grad.to_sparse()


def mend_sparse(ours):
    ours.param_groups[0]["params"][0].grad = ours.kept


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("harm", "mend", "error"),
    [
        (set_lr, mend_lr, ValueError),
        (set_decay, mend_decay, ZeroDivisionError),
        (set_sparse, mend_sparse, TypeError),
    ],
)
def test_a_refused_step_can_be_made_again(harm, mend, error, scaled):
    outcomes = []
    for fails in (False, True):
        net = nn.ParameterList([ones(3, grad=8.0), ones(3, torch.float64, 8.0)])
        ema = ModelEMA(net)
        ours = AccumulatingSGD(
            net, lr=0.1, momentum=0.9, accumulate=2, ema=ema, model=net
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
        if scaled:
            scaler.scale(torch.ones(()))
        ours.step(scaler=scaler)
        for _ in range(2 if fails else 0):
            harm(ours)
            with pytest.raises(error):
                ours.step(scaler=scaler)
            mend(ours)
            assert not ours.stepped and ema.updates == 0
            assert [p.grad.tolist() for p in net] == [[8.0] * 3] * 2
        ours.step(scaler=scaler)
        assert ours.stepped and ema.updates == 1
        outcomes.append([x.tolist() for x in (*net, *ema.ema)])
        ours.step(scaler=None)
        assert not ours.stepped
    assert outcomes[0] == outcomes[1]


def test_overlap_is_refused_by_name_and_before_other_gradients_are_unscaled():
    memory = torch.ones(6)
    a, b = nn.Parameter(memory[:4]), nn.Parameter(memory[2:])
    c = ones(3, torch.float64, 8.0)
    for p in (a, b):
        p.grad = torch.ones(4)
    ours = AccumulatingSGD([c, a, b], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    text = (
        r"\[0\], parameter 2 of shape \(4,\): param overlaps the param of .*parameter 1"
    )
    with pytest.raises(ValueError, match=text):
        ours.step(scaler=scaler)
    assert c.grad.tolist() == [8.0] * 3 and memory.tolist() == [1.0] * 6


def test_names_count_parameters_without_gradients():
    a, b, c = (nn.Parameter(torch.ones(4)) for _ in range(3))
    c.grad = c.detach()
    with pytest.raises(ValueError, match=r"param_groups\[0\], parameter 2 of shape"):
        AccumulatingSGD([a, b, c], lr=0.1).step()


def test_average_that_raises_counts_nothing():
    net = nn.Linear(2, 2)
    ema = ModelEMA(net)
    with pytest.raises(ValueError, match="shape"):
        ema.update(nn.Linear(3, 3))
    assert ema.updates == 0


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(lr="a"), "lr: expected a number, got str: 'a'"),
        (dict(lr=torch.ones(2)), "lr: expected a number, got Tensor"),
        (dict(weight_decay=None), "weight_decay: expected a number, got NoneType"),
        (dict(accumulate="3"), "accumulate: expected a number, got str: '3'"),
        (dict(max_norm="3"), "max_norm: expected a number, got str: '3'"),
    ],
)
def test_types_are_refused_by_name(settings, text):
    with pytest.raises(TypeError, match=text):
        AccumulatingSGD([ones()], **settings)


def test_types_of_a_step_are_refused_by_name():
    p = ones()
    ours = AccumulatingSGD([p], lr=0.1)
    with pytest.raises(TypeError, match=r"scaler: expected a .*GradScaler, got int"):
        ours.step(scaler=3)
    with pytest.raises(TypeError, match="max_norm: expected a number, got str"):
        ours.step(max_norm="1")
    ours.param_groups[0]["lr"] = "a"
    with pytest.raises(TypeError, match=r"param_groups\[0\]: lr: expected a number"):
        ours.step()
    assert p.tolist() == [1.0] * 5


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_max_norm_is_checked_when_it_is_assigned(value):
    ours = AccumulatingSGD([ones()], lr=0.1, max_norm=3)
    with pytest.raises(ValueError, match=f"max_norm: is {value}, must be at least 0"):
        ours.max_norm = value
    assert ours.max_norm == 3.0
    ours.max_norm = None
    assert ours.max_norm is None
