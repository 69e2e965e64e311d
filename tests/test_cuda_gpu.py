# SPDX-License-Identifier: MIT
"""What only a real GPU can show: streams, waits, captures, GradScaler on the device.

The same paths run everywhere over the emulation (test_cuda_step.py and others).
"""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_machine import warm_up
from models_for_tests import Elan
from sgd_twins import assert_same, assert_same_state, official_groups, twins
from test_cuda_mosaic_batch import HYPS, make_mosaic, samples
from test_cuda_tensors import why_no_gpu

import yolov9mem.torch as ym
from yolov9mem.torch import AccumulatingSGD, ModelEMA, MosaicBatchDataset, MosaicDataset

pytestmark = pytest.mark.skipif(bool(why_no_gpu()), reason=str(why_no_gpu()))
RATES = dict(lr=0.01, momentum=0.937, nesterov=True, weight_decay=5e-4)


@pytest.fixture
def no_waiting():
    """Within it, a call that waits for the GPU raises."""
    torch.cuda.synchronize()
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    torch.cuda.set_sync_debug_mode("default")


def image(seed: int, layout: torch.memory_format) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 16, 24, 16, generator=random)
    return x.cuda().to(memory_format=layout).requires_grad_()


def step(module: torch.nn.Module, x: torch.Tensor, dtype: torch.dtype | None):
    with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
        y = module(x)
    y.float().square().mean().backward()
    return [y, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
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


def test_a_step_never_waits(no_waiting) -> None:
    """Model, optimizer with scaler, clip and average: after the first steps no call of a
    whole training step waits for the GPU."""
    module = ym.checkpoint(Elan(16, 24, 8).train().cuda())
    ema = ModelEMA(module)
    optimizer = AccumulatingSGD(
        module.parameters(), **RATES, max_norm=10.0, ema=ema, model=module
    )
    scaler = torch.amp.GradScaler("cuda")
    x = image(1, torch.channels_last)
    for number in range(5):
        no_waiting(number > 2)
        with torch.autocast("cuda", torch.float16):
            y = module(x)
        scaler.scale(y.float().square().mean()).backward()
        optimizer.step(scaler=scaler)
        scaler.update()
    no_waiting(False)
    assert not optimizer.skipped
    assert optimizer.grad_norm > 0
    assert optimizer.fallback is None


@pytest.mark.parametrize("poison", [None, 1])
def test_the_optimizer_gives_stocks_bits(poison) -> None:
    mine, theirs = (net.cuda() for net in twins())
    ours = AccumulatingSGD(official_groups(mine), **RATES)
    stock = torch.optim.SGD(official_groups(theirs), **RATES, foreach=False)
    scalers = [torch.amp.GradScaler("cuda", growth_interval=2) for _ in range(2)]
    random = torch.Generator().manual_seed(2)
    for number in range(4):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            if not p.requires_grad:
                continue
            p.grad = torch.randn(p.shape, generator=random).cuda() * 65536
            p.grad = torch.empty_like(p).copy_(p.grad)  # of the parameter's layout
            q.grad = p.grad.clone()
        if number == poison:
            mine.conv.weight.grad[0, 0, 0, 0] = torch.inf
            theirs.conv.weight.grad[0, 0, 0, 0] = torch.inf
        for scaler in scalers:
            scaler.scale(torch.zeros((), device="cuda"))
        ours.step(scaler=scalers[0])
        scalers[1].step(stock)
        for scaler in scalers:
            scaler.update()
        assert ours.skipped == (number == poison)
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert ours.fallback is None
    assert_same(mine, theirs)
    assert_same_state(ours, stock)


@pytest.mark.parametrize("hyp", HYPS.values(), ids=HYPS)
def test_mosaic_has_the_bytes_of_the_cpu(hyp: dict) -> None:
    mosaic = make_mosaic(hyp)
    images, _ = samples(MosaicDataset(mosaic))
    batch, _ = samples(MosaicBatchDataset(mosaic))
    made = batch.pin_memory().to("cuda").render()
    assert made.is_cuda
    assert torch.equal(made.cpu(), images)


def test_forward_and_backward_in_a_cuda_graph() -> None:
    """After a warm-up a step can be captured, and a replay gives its bits."""
    module = ym.checkpoint(Elan(16, 24, 8).train().cuda(), segments=1)
    x = image(1, torch.channels_last).detach()
    momentum = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]

    def run() -> None:
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()

    warm_up(run)
    eager = [p.grad.clone() for p in module.parameters()]
    before = [m.running_mean.clone() for m in momentum]
    graph = torch.cuda.CUDAGraph()
    module.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        module(x).square().mean().backward()
    graph.replay()
    torch.cuda.synchronize()
    for p, truth in zip(module.parameters(), eager, strict=True):
        assert torch.equal(p.grad, truth)
    for m, old in zip(momentum, before, strict=True):
        assert not torch.equal(m.running_mean, old)


def test_another_stream(no_waiting) -> None:
    """Work is queued on torch's current stream, in forward and in backward."""
    module = ym.checkpoint(Elan(16, 24, 8).train().cuda())
    truth = step(module, image(1, torch.channels_last), None)
    truth = [t.detach().clone() for t in truth]
    module.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = image(1, torch.channels_last)
        made = step(module, x, None)
    side.synchronize()
    for a, b in zip(made, truth, strict=True):
        assert torch.equal(a, b)


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
