# SPDX-License-Identifier: MIT
"""Tensors that C does not step or average: double."""

import torch
from torch import nn

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
