# SPDX-License-Identifier: MIT
"""What only a real GPU can show of a step: waits, cuDNN's engines, what its allocator
reserves, a module that is moved there."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_machine import dtypes, on_a_gpu_only, returns_while_the_gpu_is_busy
from models_for_tests import Elan

import yolov9mem.torch as ym
from yolov9mem.torch import AccumulatingSGD, ModelEMA

pytestmark = on_a_gpu_only
LOSS_SCALE = 1024  # else float16's gradients would be among its smallest numbers
RATES = dict(lr=0.01, momentum=0.937, nesterov=True, weight_decay=5e-4)


def image(seed: int, layout: torch.memory_format) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 24, 16, generator=random)
    return x.cuda().to(memory_format=layout).requires_grad_()


def step(module: torch.nn.Module, x: torch.Tensor, dtype: torch.dtype | None):
    with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
        y = module(x)
    (y.float().square().mean() * LOSS_SCALE).backward()
    return [y, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [None, *dtypes()[1:]])
def test_a_module_moved_after_checkpoint(dtype, layout, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    stock = Elan(16, 24, 8).train()
    ours = ym.checkpoint(copy.deepcopy(stock))
    ours.cuda().to(memory_format=layout)
    exact = copy.deepcopy(stock).double().cuda()
    stock = stock.cuda().to(memory_format=layout)
    x = [image(1, layout) for _ in range(2)]
    wide = x[0].detach().double().requires_grad_()
    truth = step(exact, wide, None)
    for made, theirs, true in zip(
        step(ours, x[0], dtype), step(stock, x[1], dtype), truth, strict=True
    ):
        assert made.dtype == theirs.dtype
        norm = true.norm()
        error, stocks = ((t.double() - true).norm() / norm for t in (made, theirs))
        limit = 2 * stocks + (1e-5 if dtype is None else 2e-3)
        assert error <= limit, (tuple(true.shape), float(error), float(stocks))
    assert ym.report(ours).rows[0].calls == 1


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_engines_of_cudnn_are_tried(dtype, monkeypatch) -> None:
    """The first step runs several for each convolution; later ones have its bits."""
    torch.manual_seed(0)
    module = ym.checkpoint(Elan(64, 64, 32).train().cuda())
    x = torch.randn(4, 64, 40, 40, device="cuda").requires_grad_()

    def bits() -> list[torch.Tensor]:
        x.grad = None
        module.zero_grad()
        return [t.detach().clone() for t in step(module, x, dtype)]

    recommended = bits()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    first = bits()
    for a, b, old in zip(first, bits(), recommended, strict=True):
        assert torch.equal(a, b)
        assert (a - old).norm() <= 1e-2 * old.norm()


def test_what_waits_is_told_from_what_does_not() -> None:
    x = torch.ones(8, device="cuda")
    x.sum().item()
    assert returns_while_the_gpu_is_busy(lambda: x.sum())
    assert not returns_while_the_gpu_is_busy(lambda: x.sum().item())


def test_a_step_never_waits() -> None:
    """Model, optimizer with scaler, clip and average: after the first steps no call of a
    whole training step waits for the GPU."""
    module = ym.checkpoint(Elan(16, 24, 8).train().cuda())
    ema = ModelEMA(module)
    optimizer = AccumulatingSGD(
        module.parameters(), **RATES, max_norm=10.0, ema=ema, model=module
    )
    scaler = torch.amp.GradScaler("cuda")
    x = image(1, torch.channels_last)

    def whole_step() -> None:
        with torch.autocast("cuda", torch.float16):
            y = module(x)
        scaler.scale(y.float().square().mean()).backward()
        optimizer.step(scaler=scaler)
        scaler.update()

    for _ in range(8):  # until its CUDA graphs are recorded
        whole_step()
    torch.cuda.set_sync_debug_mode("error")  # names the call that waits, if PyTorch's
    try:
        whole_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert returns_while_the_gpu_is_busy(whole_step)
    assert not optimizer.skipped
    assert optimizer.grad_norm > 0
    assert optimizer.fallback is None


def test_reserved_memory_follows_sizes_that_change() -> None:
    module = ym.checkpoint(Elan(16, 64, 32).train().cuda())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for size in (160, 256, 192, 320, 224, 384, 288):
        x = torch.randn(8, 16, size, size, device="cuda")
        module(x).square().mean().backward()
        del x
    reserved = torch.cuda.max_memory_reserved()
    # What forward worked in is too small for backward and stays reserved beside it; blocks
    # of sizes that have gone must not.
    assert reserved <= 1.25 * torch.cuda.max_memory_allocated() + (40 << 20)
