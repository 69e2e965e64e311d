# SPDX-License-Identifier: MIT
"""Gradients that a script touches while its unscale_ or clip waits for the step."""

import contextlib
import gc
import math

import pytest
import torch
from torch import nn

from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def nan_to_num(params):
    for p in params:
        torch.nan_to_num_(p.grad, 0, 0, 0)


def halve(params):
    for p in params:
        p.grad.mul_(0.5)


def add_by_data(params):
    for p in params:
        p.grad.data.add_(0.25)


def replace(params):
    for p in params:
        p.grad = p.grad * 0.5


def replace_unseen(params):
    for p in params:
        p.grad = torch.full_like(p, 0.25)


def forget_one(params):
    params[0].grad = None


def delete_one(params):
    del params[0].grad


def forget_by_module(params):
    holder = nn.ParameterList(params)
    holder.zero_grad()
    holder[0].grad = torch.ones_like(holder[0])


TOUCHES = [
    *(nan_to_num, halve, add_by_data, replace, replace_unseen),
    *(forget_one, delete_one, forget_by_module),
]


def run(ours, touch, where, poison=None, read=False):
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    kind = AccumulatingSGD if ours else torch.optim.SGD
    optimizer = kind(net.parameters(), lr=1.0, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    params = list(net.parameters())
    norms = []
    with deferred(optimizer) if ours else contextlib.nullcontext():
        for step in range(2):
            scaler.scale((net(torch.ones(5, 3)) ** 2).sum()).backward()
            if step == poison:
                net.weight.grad[0, 0] = math.inf
            scaler.unscale_(optimizer)
            if where == "after unscale_":
                touch(params)
            norm = torch.nn.utils.clip_grad_norm_(params, 0.1)
            if read:
                norms.append(float(norm))
            if where == "after clip":
                touch(params)
            scaler.step(optimizer)
            scaler.update()
            norms.append(float(norm))
            optimizer.zero_grad()
    return [p.detach() for p in params], [*norms, scaler.get_scale()]


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("poison", [None, 0])
@pytest.mark.parametrize("where", ["after unscale_", "after clip"])
@pytest.mark.parametrize("touch", TOUCHES)
def test_gradients_that_a_script_reads_or_sets_are_finished_first(
    touch, where, poison, read
):
    expected, log = run(False, touch, where, poison, read)
    got, ours = run(True, touch, where, poison, read)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
    assert ours == pytest.approx(log, rel=2e-6, nan_ok=True)
    assert "grad" not in vars(nn.Parameter)


def test_clip_before_unscale_is_done_in_that_order():
    outcomes = []
    for kind in (torch.optim.SGD, AccumulatingSGD):
        p = nn.Parameter(torch.zeros(4))
        optimizer = kind([p], lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        waits = deferred(optimizer) if kind is AccumulatingSGD else torch.no_grad()
        with waits, torch.enable_grad():
            scaler.scale(p.sum()).backward()
            torch.nn.utils.clip_grad_norm_([p], 16.0)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        outcomes.append(p.detach())
    torch.testing.assert_close(*outcomes, rtol=2e-6, atol=0)


def backward(p, grad):
    (p * 3).sum().backward()


def write(p, grad):
    grad.mul_(0.5)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("touch", [backward, write])
def test_what_is_written_unseen_is_refused_by_name(touch, scaled):
    first, p = (nn.Parameter(torch.ones(3)) for _ in range(2))
    ours = AccumulatingSGD([first, p], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=scaled)
    call = "unscale_" if scaled else "clip_grad_norm_"
    text = rf"param_groups\[0\], parameter 1 of shape \(3,\): .* after {call}, which"
    with deferred(ours):
        scaler.scale((first + p).sum()).backward()
        grad = p.grad.detach()
        scaler.unscale_(ours)
        if not scaled:
            norm = torch.nn.utils.clip_grad_norm_([first, p], 0.1)
        touch(p, grad)
        for _ in range(2):  # it is not forgotten
            with pytest.raises(RuntimeError, match=text):
                scaler.step(ours)
        with pytest.raises(RuntimeError, match=text):
            print(p.grad)
        if not scaled:
            with pytest.raises(RuntimeError, match=text):
                norm.item()
        assert first.tolist() == p.tolist() == [1.0] * 3
        ours.zero_grad()
        p.grad = torch.ones(3)
        if not scaled:
            ours.step()
            assert p.tolist() == [0.0] * 3
            with pytest.raises(RuntimeError, match=text):
                norm.item()  # a norm that nobody knows any more


def print_taken(grads, told):
    told += [grad.clone() for grad in grads]


def halve_taken(grads, told):
    torch._foreach_mul_(grads, 0.5)


def add_by_data_of_taken(grads, told):
    for grad in grads:
        grad.data.add_(0.25)


@pytest.mark.parametrize("taken", [slice(0, 2), slice(1, 2)])
@pytest.mark.parametrize("where", ["after unscale_", "after clip"])
@pytest.mark.parametrize("touch", [print_taken, halve_taken, add_by_data_of_taken])
def test_gradients_that_a_script_has_taken_before_are_not_let_wait(touch, where, taken):
    outcomes = []
    for kind in (torch.optim.SGD, AccumulatingSGD):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4)) for _ in range(2)]
        optimizer = kind(params, lr=1.0, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        waits = deferred(optimizer) if kind is AccumulatingSGD else torch.no_grad()
        told = []
        with waits, torch.enable_grad():
            for _ in range(2):
                scaler.scale(sum(p.square().sum() for p in params)).backward()
                grads = [p.grad for p in params][taken]
                scaler.unscale_(optimizer)
                if where == "after unscale_":
                    touch(grads, told)
                norm = torch.nn.utils.clip_grad_norm_(params, 0.1)
                if where == "after clip":
                    touch(grads, told)
                scaler.step(optimizer)
                scaler.update()
                told.append(norm.clone())
                optimizer.zero_grad()
        outcomes.append([*(p.detach() for p in params), *told])
    torch.testing.assert_close(*outcomes, rtol=2e-6, atol=1e-7)


def test_a_refused_step_leaves_waiting_what_waits():
    p, q = (
        nn.Parameter(torch.zeros(4)),
        nn.Parameter(torch.zeros(2, dtype=torch.double)),
    )
    ours = AccumulatingSGD([p, q], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with deferred(ours):
        scaler.scale(p.sum() + q.sum()).backward()
        scaler.unscale_(ours)
        ours.param_groups[0]["lr"] = math.nan
        for _ in range(2):
            with pytest.raises(ValueError, match="lr is nan"):
                scaler.step(ours)
        ours.param_groups[0]["lr"] = 1.0
        scaler.step(ours)
    assert p.tolist() == [-1.0] * 4 and q.tolist() == [-1.0] * 2


def test_a_norm_that_was_read_stays_true():
    p = nn.Parameter(torch.ones(4))
    ours = AccumulatingSGD([p], lr=1.0)
    with deferred(ours):
        p.grad = grad = torch.ones(4)
        norm = torch.nn.utils.clip_grad_norm_([p], 1.0)
        assert norm.item() == 2.0
        grad.zero_()
        ours.zero_grad()
        assert norm.item() == 2.0


def test_an_error_of_the_block_is_the_one_that_is_told():
    p = nn.Parameter(torch.ones(4))
    ours = AccumulatingSGD([p], lr=1.0)

    def block():
        with deferred(ours):
            p.grad = grad = torch.ones(4)
            torch.nn.utils.clip_grad_norm_([p], 1.0)
            grad.zero_()
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        block()
    assert "grad" not in vars(nn.Parameter)
    assert not p.grad.any()


def test_other_parameters_are_read_without_ado():
    p, q = (nn.Parameter(torch.ones(4)) for _ in range(2))
    ours = AccumulatingSGD([p], lr=1.0)
    with deferred(ours):
        p.grad, q.grad = torch.ones(4), torch.ones(4)
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        assert q.grad.tolist() == [1.0] * 4
        assert ours._pending is not None
        q.grad = None
        assert ours._pending is not None
        assert p.grad.tolist() == pytest.approx([0.5] * 4)
        assert ours._pending is None


def test_an_optimizer_that_is_let_go_while_it_waits_is_forgotten():
    p = nn.Parameter(torch.ones(4))
    ours = AccumulatingSGD([p], lr=1.0)
    waiting = deferred(ours)
    waiting.start()
    p.grad = torch.ones(4)
    torch.nn.utils.clip_grad_norm_([p], 1.0)
    del ours, waiting
    gc.collect()
    assert p.grad.tolist() == [1.0] * 4
    with deferred(AccumulatingSGD([p], lr=1.0)):
        pass
    assert "grad" not in vars(nn.Parameter)
