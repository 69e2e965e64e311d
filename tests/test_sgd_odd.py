# SPDX-License-Identifier: MIT
"""Tensors that C does not step or average: double or lazily negated."""

import pytest
import torch
from torch import nn

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
