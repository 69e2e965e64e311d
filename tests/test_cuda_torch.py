# SPDX-License-Identifier: MIT
"""The torch adapter on the CUDA backend: a module trains as in stock PyTorch.

"emulated" is the backend on the CPU; "cuda" and "cuda:plain" run where there is a GPU.
"""

from __future__ import annotations

import copy

import cuda_emulation as ce
import pytest
import torch
from models_for_tests import Detector, Elan, assert_same_training, image
from test_cuda_tensors import exact_float32, why_no_gpu  # noqa: F401

import yolov9mem.torch as ym

BACKENDS = [
    "emulated",
    *(
        pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=str(why)))
        for why in [why_no_gpu()]
        for name in ("cuda", "cuda:plain")
    ),
]


def train(module: torch.nn.Module, device: str) -> list[torch.Tensor]:
    """Output, gradients and running statistics of one step."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 12, 8, generator=random).to(device).requires_grad_()
    y = module(x)
    (y * torch.randn(y.shape, generator=random).to(device)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [t.detach().cpu() for t in (y, *grads, *module.buffers())]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_module_trains_as_in_stock(backend: str, keep: str) -> None:
    torch.manual_seed(0)
    device = "cpu" if backend == "emulated" else "cuda"
    stock = Elan(16, 24, 8).to(device).train()
    ours = copy.deepcopy(stock)
    wanted = ce.capsule() if backend == "emulated" else backend
    ym.checkpoint(ours, keep, segments=2, backend=wanted)
    for made, truth in zip(train(ours, device), train(stock, device), strict=True):
        torch.testing.assert_close(made, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_graphs_with_stock_calls_between(backend: str) -> None:
    torch.manual_seed(0)
    device = "cpu" if backend == "emulated" else "cuda"
    wanted = ce.capsule() if backend == "emulated" else backend
    stock = Detector().to(device).train()
    ours = ym.checkpoint(copy.deepcopy(stock), "min", strict=False, backend=wanted)
    for size in (16, 24):
        assert_same_training(ours, stock, image(size=size).to(device))
    assert ym.report(ours).rows[0].detail == "keep=min, 2 graphs"


def test_tensors_on_the_cpu_run_in_stock_when_cuda_was_asked_for() -> None:
    stock = Elan(16, 24, 8).train()
    ours = ym.checkpoint(copy.deepcopy(stock), backend="cuda")
    for made, truth in zip(train(ours, "cpu"), train(stock, "cpu"), strict=True):
        torch.testing.assert_close(made, truth, rtol=0, atol=0)
