# SPDX-License-Identifier: MIT
"""AccumulatingSGD on a GPU: the CPU's bits, GradScaler's semantics."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_machine import DEVICE, needs_gpu, rehearsal  # noqa: F401
from models_for_tests import Elan
from sgd_twins import assert_same, assert_same_state, official_groups, twins
from torch import Tensor, nn

import yolov9mem.torch as ym

pytestmark = needs_gpu
OPTIONS = {"lr": 0.05, "momentum": 0.937, "nesterov": True, "weight_decay": 5e-4}


class Average:
    """A moving average as the official trainer has it."""

    def __init__(self, model: nn.Module) -> None:
        self.ema, self.updates = copy.deepcopy(model).eval(), 0

    def decay(self, updates: int) -> float:
        return 0.9999 * updates / (10 + updates)


class Run:
    """A model, its optimizer, average and scaler on one device."""

    def __init__(self, device: str, max_norm: float | None, **options: object) -> None:
        torch.manual_seed(0)
        self.model = Elan(16, 24, 8).to(device)
        self.ema = Average(self.model)
        self.optimizer = ym.AccumulatingSGD(
            self.model.parameters(),
            **{**OPTIONS, **options},
            max_norm=max_norm,
            ema=self.ema,
            model=self.model,
        )
        self.scaler = torch.amp.GradScaler(device, init_scale=1024.0)
        self.scaler.scale(torch.ones((), device=device))

    def step(self, seed: int, bad: float | None = None) -> None:
        random = torch.Generator().manual_seed(seed)
        for i, p in enumerate(self.model.parameters()):
            grad = torch.randn(p.shape, generator=random) * 1024
            if bad is not None and i == 3:
                grad.view(-1)[0] = bad
            p.grad = grad.to(p.device)
        self.optimizer.step(scaler=self.scaler)
        self.scaler.update()

    def state(self) -> list[Tensor]:
        buffers = [
            s["momentum_buffer"]
            for s in self.optimizer.state.values()
            if s.get("momentum_buffer") is not None
        ]
        parts = [*self.model.state_dict().values(), *self.ema.ema.state_dict().values()]
        return [t.detach().cpu() for t in (*parts, *buffers)]


@pytest.mark.parametrize("max_norm", [None, 10.0, 1e9])
def test_the_bits_are_those_of_the_cpu(max_norm: float | None) -> None:
    cpu, gpu = Run("cpu", max_norm), Run(DEVICE, max_norm)
    for seed in range(4):
        cpu.step(seed)
        gpu.step(seed)
    for a, b in zip(gpu.state(), cpu.state(), strict=True):
        if max_norm == 10.0:  # the norm's sum has another order
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-8)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_skips_the_step_and_halves_the_scale(bad: float) -> None:
    run = Run(DEVICE, 10.0)
    run.step(0)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.step(1, bad)
    for p, old in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert run.scaler.get_scale() == 512.0
    assert run.ema.updates == 2
    run.step(2)
    changed = [
        not torch.equal(p, old)
        for p, old in zip(run.model.parameters(), before, strict=True)
    ]
    assert all(changed)


def test_as_stock_within_rounding() -> None:
    """PyTorch's own kernels may fuse a multiplication with an addition."""
    ours = Run(DEVICE, 10.0)
    torch.manual_seed(0)
    stock = Elan(16, 24, 8).to(DEVICE)
    optimizer = torch.optim.SGD(stock.parameters(), **OPTIONS)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    scaler.scale(torch.ones((), device=DEVICE))
    for seed in range(4):
        ours.step(seed)
        random = torch.Generator().manual_seed(seed)
        for p in stock.parameters():
            p.grad = (torch.randn(p.shape, generator=random) * 1024).to(DEVICE)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(stock.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
    for a, b in zip(ours.model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [None, 1])
def test_without_clip_the_bits_are_stock_s(poison: int | None) -> None:
    rates = OPTIONS | {"lr": 0.01}
    mine, theirs = (net.to(DEVICE) for net in twins())
    ours = ym.AccumulatingSGD(official_groups(mine), **rates)
    stock = torch.optim.SGD(official_groups(theirs), **rates, foreach=False)
    scalers = [torch.amp.GradScaler(DEVICE, growth_interval=2) for _ in range(2)]
    random = torch.Generator().manual_seed(2)
    for number in range(4):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            if not p.requires_grad:
                continue
            p.grad = torch.randn(p.shape, generator=random).to(DEVICE) * 65536
            p.grad = torch.empty_like(p).copy_(p.grad)  # of the parameter's layout
            q.grad = p.grad.clone()
        if number == poison:
            mine.conv.weight.grad[0, 0, 0, 0] = torch.inf
            theirs.conv.weight.grad[0, 0, 0, 0] = torch.inf
        for scaler in scalers:
            scaler.scale(torch.zeros((), device=DEVICE))
        ours.step(scaler=scalers[0])
        scalers[1].step(stock)
        for scaler in scalers:
            scaler.update()
        assert ours.skipped == (number == poison)
        assert scalers[0].get_scale() == scalers[1].get_scale()
    assert ours.fallback is None
    assert_same(mine, theirs)
    assert_same_state(ours, stock)


def test_gradients_are_zeroed_in_place_and_groups_count() -> None:
    torch.manual_seed(0)
    model = Elan(16, 24, 8).to(DEVICE)
    all_ = list(model.parameters())
    groups = [{"params": all_[:3], "lr": 0.0}, {"params": all_[3:]}]
    optimizer = ym.AccumulatingSGD(groups, **OPTIONS, accumulate=2)
    before = [p.detach().clone() for p in all_]
    for p in all_:
        p.grad = torch.ones_like(p)
    places = [p.grad.data_ptr() for p in all_]
    optimizer.step()
    assert not optimizer.stepped
    optimizer.step()
    assert optimizer.stepped
    assert [p.grad.data_ptr() for p in all_] == places
    assert all(not p.grad.any() for p in all_)
    moved = [not torch.equal(p, old) for p, old in zip(all_, before, strict=True)]
    assert not any(moved[:3]) and all(moved[3:])


def test_two_runs_have_the_same_bits() -> None:
    runs = [Run(DEVICE, 10.0) for _ in range(2)]
    for run in runs:
        for seed in range(3):
            run.step(seed)
    for a, b in zip(runs[0].state(), runs[1].state(), strict=True):
        assert torch.equal(a, b)


def test_the_kernel_alone_by_addresses() -> None:
    """_cuda.sgd_step on a table of our own, against float64."""
    import numpy as np

    from yolov9mem import _cuda
    from yolov9mem.torch import devices

    random = torch.Generator().manual_seed(0)
    counts = (1, 700, 8192, 20011)
    arrays = [
        [torch.randn(n, generator=random).to(DEVICE) for _ in range(4)] for n in counts
    ]
    truth = [[x.double().cpu() for x in four] for four in arrays]
    rows = np.array(
        [[*(x.data_ptr() for x in four), n, 0, 0] for four, n in zip(arrays, counts)],
        np.int64,
    )
    groups = np.array([[0.01, 0.9, 0, 5e-4, 1, 0]])
    table = np.frombuffer(_cuda.sgd_table(rows, groups), np.uint8).copy()
    memory = torch.from_numpy(table).to(DEVICE)
    found = torch.zeros(1, device=DEVICE)
    scale = torch.full((1,), 2.0, device=DEVICE)
    _cuda.sgd_step(
        rows,
        memory.data_ptr(),
        groups,
        0,
        stream=devices.stream(torch.device(DEVICE)),
        scale=scale.data_ptr(),
        found_inf=found.data_ptr(),
        ema_decay=0.99,
    )
    assert found.item() == 0
    for (p, g, m, e), four in zip(arrays, truth, strict=True):
        old, grad, momentum, average = four
        d = grad / 2 + 5e-4 * old
        momentum = 0.9 * momentum + d
        new = old - 0.01 * (d + 0.9 * momentum)
        for made, exact in (
            (p, new),
            (m, momentum),
            (e, 0.99 * average + 0.01 * new),
        ):
            torch.testing.assert_close(made.double().cpu(), exact, rtol=1e-5, atol=1e-6)
        assert not g.any()
