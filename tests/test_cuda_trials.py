# SPDX-License-Identifier: MIT
"""torch.backends.cudnn.benchmark: engines of cuDNN are tried on a convolution's first
call and the fastest does it from then on. The GPU and cuDNN are emulated: of the engines
of csrc/emulation/cudnn.cpp the first is what cuDNN recommends, and number 5 is the fastest
that is deterministic, compiled beforehand, within the cap, and runs."""

from __future__ import annotations

import copy
import ctypes as C
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from emulated_gpu import WAITS, Gpu, autocast, gpu  # noqa: F401
from models_for_tests import Elan

import yolov9mem.torch as ym
from yolov9mem.torch.running import shared_call

RECOMMENDED, FASTEST, ENGINES = 0, 5, 7
CAP = 32 << 20


@pytest.fixture
def engines(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:  # noqa: F811
    """How often each was run since the last call."""
    monkeypatch.setenv("FAKE_CUDNN", "engines")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    counts = (C.c_int * ENGINES).in_dll(gpu.lib, "fake_cudnn_executions")
    before = list(counts)

    def since() -> list[int]:
        nonlocal before
        old, before = before, list(counts)
        return [now - then for now, then in zip(before, old, strict=True)]

    return since


def step(module: torch.nn.Module, size: int, dtype: torch.dtype = torch.float32):
    """Sizes that only one test uses: plans live as long as the process."""
    module.zero_grad()
    torch.manual_seed(0)
    with nullcontext() if dtype is torch.float32 else autocast(dtype):
        y = module(torch.randn(2, 8, size, size))
    y.float().square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in module.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_fastest_engine_is_found_once(engines, gpu, dtype) -> None:  # noqa: F811
    stock = Elan(8, 8, 8).train()
    module = ym.checkpoint(copy.deepcopy(stock), cuda_graphs=False)
    found = [step(module, 21, dtype)]
    assert engines()[FASTEST] > 0
    assert gpu.count(WAITS) > 0
    gpu.reset()
    found.append(step(module, 21, dtype))
    again = engines()
    assert again[FASTEST] > again[RECOMMENDED], "those that add to dx are not tried"
    assert sum(again) == again[FASTEST] + again[RECOMMENDED]
    assert gpu.count(WAITS) == 0
    torch.backends.cudnn.benchmark = False
    other = ym.checkpoint(copy.deepcopy(stock), cuda_graphs=False)
    found.append(step(other, 21, dtype))
    recommended = engines()
    assert sum(recommended) == recommended[RECOMMENDED] == sum(again)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_engines_that_may_not_be_used_are_not_tried(engines) -> None:
    step(ym.checkpoint(Elan(8, 8, 8).train()), 22)
    nondeterministic, compiled, large = engines()[1:4]
    assert nondeterministic == compiled == large == 0


@pytest.mark.usefixtures("engines")
def test_a_search_costs_workspace_within_the_cap_and_nothing_that_is_kept() -> None:
    made = []
    for search in (False, True):
        torch.backends.cudnn.benchmark = search
        module = ym.checkpoint(Elan(8, 8, 8).train())
        step(module, 23)
        made.append(ym.report(module).rows[0])
    assert made[1].held_bytes == made[0].held_bytes
    assert made[0].workspace_bytes < made[1].workspace_bytes < 1.1 * CAP


def test_no_engine_is_tried_while_a_stream_is_captured(
    engines,
    gpu,  # noqa: F811
    monkeypatch,
) -> None:
    """Where it was planned before, and not yet run."""
    module = ym.checkpoint(Elan(8, 8, 8).train())
    with monkeypatch.context() as patch:
        patch.setattr(shared_call, "take_workspace", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            step(module, 24)
    engines()
    gpu.capture(True)
    step(module, 24)
    gpu.capture(False)
    captured = engines()
    assert captured[RECOMMENDED] == sum(captured) > 0
    step(module, 24)
    assert engines()[FASTEST] > 0


def test_repeated_graphs_run_the_engine_that_was_found(engines) -> None:
    stock = Elan(8, 8, 8).train()
    torch.manual_seed(1)
    repeats = ym.checkpoint(copy.deepcopy(stock))
    queues = ym.checkpoint(copy.deepcopy(stock), cuda_graphs=False)
    for _ in range(3):
        for a, b in zip(step(repeats, 25), step(queues, 25), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert engines()[FASTEST] > 0


def test_where_nothing_can_be_timed_the_recommended_engine_stays(
    engines,
    monkeypatch,
) -> None:
    monkeypatch.setenv("FAKE_CUDNN", "")  # one engine
    module = ym.checkpoint(Elan(8, 8, 8).train())
    first = step(module, 26)
    for a, b in zip(first, step(module, 26), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert sum(engines()[1:]) == 0
