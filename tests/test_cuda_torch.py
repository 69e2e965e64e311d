# SPDX-License-Identifier: MIT
"""The torch adapter on the CUDA backend, emulated: a module trains as in stock PyTorch.
test_gpu_torch.py is the same on a GPU."""

from __future__ import annotations

import copy
import re
from typing import Any

import cuda_emulation as ce
import pytest
import torch
from models_for_tests import Detector, Elan, assert_same_training, image

import yolov9mem.torch as ym


def train(module: torch.nn.Module, device: str) -> list[torch.Tensor]:
    """Output, gradients and running statistics of one step."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 12, 8, generator=random).to(device).requires_grad_()
    y = module(x)
    (y * torch.randn(y.shape, generator=random).to(device)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [t.detach().cpu() for t in (y, *grads, *module.buffers())]


def check_one_graph(device: str, backend: Any, keep: str) -> None:
    torch.manual_seed(0)
    stock = Elan(16, 24, 8).to(device).train()
    ours = copy.deepcopy(stock)
    ym.checkpoint(ours, keep, segments=2, backend=backend)
    for made, truth in zip(train(ours, device), train(stock, device), strict=True):
        torch.testing.assert_close(made, truth, rtol=1e-4, atol=1e-4)


def check_several_graphs(device: str, backend: Any) -> None:
    torch.manual_seed(0)
    stock = Detector().to(device).train()
    ours = ym.checkpoint(copy.deepcopy(stock), "min", strict=False, backend=backend)
    for size in (16, 24):
        assert_same_training(ours, stock, image(size=size).to(device))
    pieces = r"(a piece|\d+ pieces) of stock calls made again"
    detail = rf"keep=min, in 2 stages, {pieces}, CUDA graphs repeated \d+ times"
    assert re.fullmatch(detail, ym.report(ours).rows[0].detail)


def check_tensors_on_the_cpu() -> None:
    """Those run in stock PyTorch where backend="cuda" was asked for."""
    stock = Elan(16, 24, 8).train()
    ours = ym.checkpoint(copy.deepcopy(stock), backend="cuda")
    for made, truth in zip(train(ours, "cpu"), train(stock, "cpu"), strict=True):
        torch.testing.assert_close(made, truth, rtol=0, atol=0)


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_module_trains_as_in_stock(keep: str) -> None:
    check_one_graph("cpu", ce.capsule(), keep)


def test_several_graphs_with_stock_calls_between() -> None:
    check_several_graphs("cpu", ce.capsule())


def test_tensors_on_the_cpu_run_in_stock_when_cuda_was_asked_for() -> None:
    check_tensors_on_the_cpu()
