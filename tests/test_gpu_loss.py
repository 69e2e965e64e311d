# SPDX-License-Identifier: MIT
"""The detection loss on a GPU: as on the CPU, with deterministic algorithms alone, and
without a wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu_machine import (  # noqa: F401
    DEVICE,
    needs_gpu,
    on_a_gpu_only,
    rehearsal,
    returns_while_the_gpu_is_busy,
)
from loss_by_loops import HYP
from loss_cases import head, make_case
from torch import Tensor

from yolov9mem.torch.loss.detection import DetectionLoss
from yolov9mem.torch.running.arenas import unfilled

pytestmark = needs_gpu
refuses_other_algorithms = pytest.mark.filterwarnings(
    "error:.*not have a deterministic implementation"
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """A warning of what has no such algorithm is an error; cuBLAS's, which asks for a
    variable before a process's first product, is none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def levels_on(device: str, case: list[list], layout: torch.memory_format, dtype):
    return [
        [
            torch.tensor(z)
            .to(device, dtype)
            .contiguous(memory_format=layout)
            .requires_grad_()
            for z in branch
        ]
        for branch in case
    ]


def results(branches: list[list[Tensor]], targets: Tensor) -> list[Tensor]:
    """The parts of the loss and the levels' gradients."""
    loss, parts = DetectionLoss(head(3), HYP | {"fl_gamma": 1.5})(branches, targets)
    (loss * 64).backward()  # else the least gradients are none of float16
    return [parts, *(z.grad for branch in branches for z in branch)]


@refuses_other_algorithms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["nchw", "nhwc"])
def test_as_on_the_cpu(
    deterministic: None, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    aux, targets = make_case(0, 3, count=7)
    case, targets = [aux, make_case(1, 3)[0]], torch.tensor(targets).float()
    truth = results(levels_on("cpu", case, layout, dtype), targets)
    made = results(levels_on(DEVICE, case, layout, dtype), targets)
    again = results(levels_on(DEVICE, case, layout, dtype), targets)
    for a, b, c in zip(made, truth, again, strict=True):
        assert torch.equal(a, c), "two runs differ"
        error = (a.cpu().float() - b.float()).norm() / b.float().norm()
        assert error <= (1e-4 if dtype is torch.float32 else 2e-3), tuple(b.shape)
        assert a.stride() == b.stride()


@on_a_gpu_only
@refuses_other_algorithms
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("exact", [False, True], ids=["fast", "deterministic"])
def test_the_loss_never_waits(
    exact: bool, branches: int, request: pytest.FixtureRequest
) -> None:
    """Nor for the targets, which are more than CUDA copies without a wait by itself.

    Forward and backward each behind a busy GPU of its own, and without the fills of new
    memory that deterministic algorithms add: CUDA queues about a thousand launches, and
    with more of them the host waits for a place in the queue.
    """
    if exact:
        request.getfixturevalue("deterministic")
    aux, targets = make_case(0, 64, size=64, count=70)
    targets = torch.tensor(targets).float()
    levels = levels_on(DEVICE, [aux] * branches, torch.channels_last, torch.float16)
    compute, made = DetectionLoss(head(3), HYP | {"fl_gamma": 1.5}), []

    def forward() -> None:
        made[:] = compute(levels if branches > 1 else levels[0], targets)

    def backward() -> None:
        (made[0] * 64).backward()

    with unfilled():
        for _ in range(3):
            forward(), backward()
        # Names the call that waits, if PyTorch's.
        torch.cuda.set_sync_debug_mode("error")
        try:
            forward(), backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert returns_while_the_gpu_is_busy(forward)
        assert returns_while_the_gpu_is_busy(backward)
