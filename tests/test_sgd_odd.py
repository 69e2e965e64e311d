# SPDX-License-Identifier: MIT
"""Tensors that C does not step or average: double, lazily negated, sharing memory."""

import numpy as np
import pytest
import torch
from sgd_twins import assert_same, official_ema_update
from torch import nn

from yolov9mem.sgd import clip_coefficient
from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


def test_double_gradients_are_clipped_in_double():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(1000, dtype=torch.float64))
    q = nn.Parameter(p.detach().clone())
    g = torch.randn(1000, dtype=torch.float64)
    p.grad, q.grad = g.clone(), g.clone()
    AccumulatingSGD([p], lr=0.1, max_norm=10.0, zero_grads=False).step()
    torch.nn.utils.clip_grad_norm_([q], 10.0)
    torch.optim.SGD([q], lr=0.1, foreach=False).step()
    truth = g * (10.0 / (g.norm() + 1e-6))
    error = (p.grad - truth).abs().max()
    assert error <= 2 * max((q.grad - truth).abs().max(), torch.tensor(1e-16))
    torch.testing.assert_close(p, q, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128],
    ids=str,
)
def test_gradients_of_other_types_are_clipped_by_the_same_factor(dtype):
    """As clip_grad_norm_ does: the factor is not rounded to their type."""
    torch.manual_seed(0)
    grads = [torch.randn(4097).to(dtype), torch.ones(3)]
    made = []
    for _ in range(2):
        made.append([nn.Parameter(torch.zeros_like(g)) for g in grads])
        for p, g in zip(made[-1], grads, strict=True):
            p.grad = g.clone()
    ours = AccumulatingSGD(made[0], lr=1.0, max_norm=0.1, zero_grads=False)
    ours.step()
    for p in made[1]:
        kind = (
            np.float64 if p.dtype in (torch.float64, torch.complex128) else np.float32
        )
        factor = clip_coefficient(ours.grad_norm, 0.1, kind)
        p.grad.mul_(torch.from_numpy(np.asarray(factor, kind)))
    torch.optim.SGD(made[1], lr=1.0, foreach=False).step()
    for p, q in zip(*made, strict=True):
        assert torch.equal(p.grad, q.grad)
        assert torch.equal(p, q)


@pytest.mark.parametrize("first", [torch.nan, torch.inf])
def test_the_norm_of_a_nan_and_an_infinity_is_a_nan(first):
    """Wherever they are: in what C sums or in what is left to torch."""
    grads = [
        torch.tensor([first, 1.0]),
        torch.ones(3),
        torch.ones(2, dtype=torch.bfloat16),
    ]
    grads[2][0] = torch.inf if first is torch.nan else torch.nan
    made = []
    for _ in range(2):
        made.append([nn.Parameter(torch.ones_like(g)) for g in grads])
        for p, g in zip(made[-1], grads, strict=True):
            p.grad = g.clone()
    ours = AccumulatingSGD(made[0], lr=0.1, max_norm=10.0)
    ours.step()
    norm = torch.nn.utils.clip_grad_norm_(made[1], 10.0)
    torch.optim.SGD(made[1], lr=0.1, foreach=False).step()
    assert norm.isnan() and np.isnan(float(ours.grad_norm))
    for p, q in zip(*made, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_16_bits_is_clipped_as_torch_does(dtype):
    torch.manual_seed(0)
    p, q = (nn.Parameter(torch.zeros(4097, dtype=dtype)) for _ in range(2))
    g = torch.randn(4097).to(dtype)
    for max_norm in (0.1, 0.7, 3.0, 1e3):
        p.grad, q.grad = g.clone(), g.clone()
        AccumulatingSGD([p], lr=1.0, max_norm=max_norm, zero_grads=False).step()
        torch.nn.utils.clip_grad_norm_([q], max_norm)
        torch.optim.SGD([q], lr=1.0, foreach=False).step()
        assert torch.equal(p.grad, q.grad)
        assert torch.equal(p, q)


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_lazily_conjugated_gradients(max_norm):
    outcomes = []
    for make in (torch.Tensor.conj, torch.Tensor.conj_physical):
        p = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        p.grad = make(torch.tensor([1 + 2j, 3 - 1j, 2j]))
        AccumulatingSGD([p], lr=0.1, max_norm=max_norm).step()
        assert not p.grad.any()
        outcomes.append(p.tolist())
    assert outcomes[0] == outcomes[1]


def negated(n):
    return torch._neg_view(torch.arange(1.0, n + 1))


@pytest.mark.parametrize("max_norm", [None, 1e9, 0.5])
@pytest.mark.parametrize("scaled", [False, True])
def test_lazily_negated_gradients(max_norm, scaled):
    p, q, b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4)), torch.ones(2)
    for tensor, make in ((p, negated), (q, lambda n: negated(n).clone())):
        odd, rates = nn.Parameter(b.clone()), dict(lr=0.1, momentum=0.9)
        optimizer = AccumulatingSGD([tensor, odd], **rates)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.ones(()))
        for _ in range(3):  # from the second on by the last step's table
            tensor.grad, odd.grad = make(4), torch.ones(2)
            optimizer.step(scaler=scaler if scaled else None, max_norm=max_norm)
            assert not tensor.grad.any()
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            scaler.scale(torch.ones(()))
    torch.testing.assert_close(p, q, rtol=2e-6, atol=0)
    assert (p > 0).all()


def test_lazily_negated_parameters_momentum_and_averages():
    outcomes = []
    for negates in (False, True):
        view = torch._neg_view if negates else torch.Tensor.neg
        net = nn.ParameterList([nn.Parameter(view(torch.ones(4))), torch.zeros(3)])
        ema = ModelEMA(net)
        ema.ema[0].data = view(torch.full((4,), 3.0))
        ours = AccumulatingSGD(net, lr=0.1, momentum=0.9, ema=ema, model=net)
        ours.state[net[0]]["momentum_buffer"] = view(torch.full((4,), 2.0))
        for _ in range(3):
            for p in net:
                p.grad = torch.ones_like(p)
            ours.step()
        outcomes.append([x.tolist() for x in (*net, *ema.ema)])
    assert outcomes[0] == outcomes[1]
    assert net[0].is_neg()


class Views(nn.Module):
    """Buffers that are views: of a parameter of a later module, and of each other."""

    def __init__(self):
        super().__init__()
        self.head = nn.Module()
        self.body = nn.Linear(3, 3)
        base = torch.arange(8.0)
        self.head.register_buffer("weight", self.body.weight.data.view(9)[2:])
        self.register_buffer("tail", base[2:])
        self.register_buffer("base", base)
        self.register_buffer("alone", torch.ones(3))
        self.register_buffer("columns", torch.ones(4, 4)[:, 1:3])
        self.tied = self.body


def test_buffers_that_share_memory_are_averaged_as_the_official_loop_does():
    made = []
    for _ in range(2):  # a copy would take the views apart
        torch.manual_seed(0)
        made.append(Views())
    mine, theirs = made
    ema, official = ModelEMA(mine), ModelEMA(theirs)
    ours = AccumulatingSGD(mine.parameters(), lr=0.1, ema=ema, model=mine)
    stock = torch.optim.SGD(theirs.parameters(), lr=0.1, foreach=False)
    for step in range(5):
        for net, optimizer in ((mine, ours), (theirs, stock)):
            net.base.add_(1.0 + step)
            net.columns.mul_(2.0)
            for p in net.parameters():
                p.grad = torch.full_like(p, 0.5 + step)
            optimizer.step()
        official_ema_update(official, theirs)
        assert_same(mine, theirs)
        assert_same(ema.ema, official.ema)
    ema.update(mine)
    official_ema_update(official, theirs)
    assert_same(ema.ema, official.ema)


def test_a_buffer_in_a_parameter_that_is_not_averaged():
    p = nn.Parameter(torch.ones(6))
    net = nn.Module()
    net.register_buffer("part", p.data[2:4])
    ema, official = ModelEMA(net), ModelEMA(net)
    ours = AccumulatingSGD([p], lr=0.5, ema=ema, model=net)
    p.grad = torch.ones(6)
    ours.step()
    official_ema_update(official, net)
    assert net.part.tolist() == [0.5] * 2
    assert_same(ema.ema, official.ema)
