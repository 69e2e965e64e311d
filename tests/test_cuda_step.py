# SPDX-License-Identifier: MIT
"""AccumulatingSGD on a GPU, emulated: the kernels' step in the optimizer's own tests.

The tests of the CPU path run again with host memory standing for a GPU's; then what only
a GPU has: no value comes back to the host, addresses, captures.
"""

from __future__ import annotations

import math

import pytest
import torch
from emulated_gpu import WAITS, gpu  # noqa: F401
from sgd_twins import (
    RATES,
    assert_same,
    assert_same_state,
    backward,
    official_groups,
    twins,
)
from test_sgd_deferred import test_clipping_is_the_same, test_script_gives_the_same_bits  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

from yolov9mem.torch import AccumulatingSGD, ModelEMA, deferred

pytestmark = pytest.mark.usefixtures("gpu")


class Reads(TorchDispatchMode):
    """Counts the calls that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def steps(optimizer, net, scaler, ema, count, start=0):
    for step in range(start, start + count):
        backward(net, step, scaler)
        if ema is None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=10.0)
            scaler.step(optimizer)
        else:
            optimizer.step(scaler=scaler, max_norm=10.0)
        scaler.update()


@pytest.mark.parametrize("waits", [True, False], ids=["deferred", "own step"])
def test_after_the_first_step_nothing_is_read_back(gpu, waits: bool) -> None:  # noqa: F811
    net, _ = twins()
    optimizer = AccumulatingSGD(official_groups(net), **RATES)
    scaler = torch.amp.GradScaler("cpu")
    ema = None if waits else ModelEMA(net)
    if ema is not None:
        optimizer.attach_ema(ema, net)
    with deferred(optimizer) if waits else torch.enable_grad():
        steps(optimizer, net, scaler, ema, 2)
        gpu.reset()
        uploads = optimizer._tables._memory.uploads
        with Reads() as reads:
            steps(optimizer, net, scaler, ema, 3, start=2)
        assert reads.count == 0
        assert gpu.count(WAITS) == 0
        assert optimizer.fallback is None
    if not waits:
        assert optimizer._tables._memory.uploads == uploads, "gradients stayed in place"
        assert gpu.count(0) == 2 * 3, "launches of three steps"


@pytest.mark.parametrize("poison", [None, 0, 2])
@pytest.mark.parametrize("max_norm", [1e9, 0.5])
def test_a_scaled_step_is_that_of_stock_torch(poison, max_norm) -> None:
    mine, theirs = twins()
    ours = AccumulatingSGD(official_groups(mine), **RATES)
    stock = torch.optim.SGD(official_groups(theirs), **RATES, foreach=False)
    scalers = [torch.amp.GradScaler("cpu", growth_interval=2) for _ in range(2)]
    for step in range(4):
        for net, scaler in zip((mine, theirs), scalers, strict=True):
            backward(net, step, scaler)
            if step == poison:
                net.conv.weight.grad[0, 0, 0, 0] = math.inf
        ours.step(scaler=scalers[0], max_norm=max_norm)
        scalers[1].unscale_(stock)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        scalers[1].step(stock)
        stock.zero_grad()
        for scaler in scalers:
            scaler.update()
        assert ours.skipped == (step == poison)
        assert ours.grad_norm == pytest.approx(norm.item(), rel=2e-6, nan_ok=True)
        assert scalers[0].get_scale() == scalers[1].get_scale()
        if step == poison == 0:
            assert not ours.state_dict()["state"], "a skipped step makes no momentum"
    if max_norm == 1e9:
        assert_same(mine, theirs)
        assert_same_state(ours, stock)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_unscaled_gradients_and_a_scaler() -> None:
    """unscale_ by hand, then the one-call step."""
    mine, theirs = twins()
    ours = AccumulatingSGD(official_groups(mine), **RATES)
    stock = torch.optim.SGD(official_groups(theirs), **RATES, foreach=False)
    for net, optimizer in ((mine, ours), (theirs, stock)):
        scaler = torch.amp.GradScaler("cpu")
        backward(net, 0, scaler)
        scaler.unscale_(optimizer)
        if optimizer is ours:
            ours.step(scaler=scaler)
        else:
            scaler.step(stock)
        scaler.update()
    assert_same(mine, theirs)


def test_one_odd_parameter_leaves_all_to_stock_torch_and_says_why() -> None:
    mine, theirs = twins()
    for net in (mine, theirs):
        net.last.bias.data = net.last.bias.data.double()
        net.last.weight.data = net.last.weight.data.double()
    ours = AccumulatingSGD(official_groups(mine), **RATES, foreach=False)
    stock = torch.optim.SGD(official_groups(theirs), **RATES, foreach=False)
    for net, optimizer in ((mine, ours), (theirs, stock)):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert_same(mine, theirs)
    assert "is torch.float64 on cpu" in str(ours.fallback)


@pytest.mark.parametrize("average", [False, True])
def test_more_groups_than_a_launch_takes_are_stepped_by_torch(average: bool) -> None:
    """As one rate for each layer of a large model gives."""

    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.all = torch.nn.ParameterList(torch.ones(3) for _ in range(129))

    made = []
    for kind in (AccumulatingSGD, torch.optim.SGD):
        net = Many()
        groups = [{"params": [p], "lr": 0.001 * i} for i, p in enumerate(net.all)]
        optimizer = kind(groups, **RATES, foreach=False)
        ema = ModelEMA(net)
        if average and kind is AccumulatingSGD:
            optimizer.attach_ema(ema, net)
        for step in range(2):
            for i, p in enumerate(net.all):
                p.grad = torch.full_like(p, 1.0 + i + step)
            optimizer.step()
            if average and kind is torch.optim.SGD:
                ema.update(net)
        made.append((optimizer, net, ema))
    (ours, net, ema), (_, stock, stock_ema) = made
    assert_same(net, stock)
    assert_same(ema.ema, stock_ema.ema)
    assert ours.fallback == (
        "there are 129 param_groups, at most 128 are stepped on a GPU"
    )
    ours.param_groups.pop()
    ours.step()
    assert ours.fallback is None


def test_an_average_within_a_capture_is_refused(gpu) -> None:  # noqa: F811
    net, _ = twins()
    optimizer = AccumulatingSGD(official_groups(net), **RATES, ema=ModelEMA(net))
    for step in range(2):
        backward(net, step)
        optimizer.step()
    before = net.conv.weight.detach().clone()
    updates = optimizer.ema.updates
    gpu.capture(True)
    backward(net, 2)
    with pytest.raises(RuntimeError, match=r"a moving average is attached.*captured"):
        optimizer.step()
    gpu.capture(False)
    assert torch.equal(net.conv.weight, before) and optimizer.ema.updates == updates
    optimizer.step()
    assert optimizer.ema.updates == updates + 1


def test_a_new_address_within_a_capture_is_refused(gpu) -> None:  # noqa: F811
    net, _ = twins()
    optimizer = AccumulatingSGD(official_groups(net), **RATES)
    for step in range(2):
        backward(net, step)
        optimizer.step()
    gpu.capture(True)
    backward(net, 2)
    optimizer.step()  # gradients are where they were
    net.zero_grad(set_to_none=True)
    keep = [torch.ones(p.shape) for p in net.parameters()]
    backward(net, 3)
    with pytest.raises(
        RuntimeError, match=r"AccumulatingSGD\.step: .*before the capture"
    ):
        optimizer.step()
    gpu.capture(False)
    optimizer.step()
    assert len(keep) > 0
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_a_driver_that_fails_is_an_exception_and_the_next_step_works(gpu) -> None:  # noqa: F811
    from yolov9mem import BackendError

    net, _ = twins()
    optimizer = AccumulatingSGD(official_groups(net), **RATES)
    backward(net, 0)
    gpu.lib.ym_emulation_fail_next(700)
    with pytest.raises(BackendError, match="cuda: sgd_step_kernel.*compute-sanitizer"):
        optimizer.step()
    before = net.conv.weight.detach().clone()
    backward(net, 1)
    optimizer.step()
    assert not torch.equal(net.conv.weight, before)
    assert all(torch.isfinite(p).all() for p in net.parameters())
