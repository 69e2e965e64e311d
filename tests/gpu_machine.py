# SPDX-License-Identifier: MIT
"""Where the tests of test_gpu_*.py run: on a GPU.

YOLOV9MEM_REHEARSE=1 runs most of them on the CPU, to try the tests themselves where there
is no GPU: host memory stands for a GPU's and the adapter takes its CUDA path over the
emulated backend (emulated_gpu.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from emulated_gpu import emulated_gpu
from test_cuda_tensors import exact_float32, why_no_gpu

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks

REHEARSES = os.environ.get("YOLOV9MEM_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSES else "cuda"
NAMES = ("cuda", "cuda:plain")  # as ym.checkpoint(backend=...) takes them
needs_gpu = pytest.mark.skipif(
    not REHEARSES and why_no_gpu() is not None, reason=str(why_no_gpu())
)
on_a_gpu_only = pytest.mark.skipif(
    REHEARSES or why_no_gpu() is not None, reason=str(why_no_gpu() or "a rehearsal")
)


@pytest.fixture(autouse=True)
def rehearsal() -> Iterator[None]:
    """Imported by every test_gpu_*.py."""
    with emulated_gpu() if REHEARSES else nullcontext():
        yield


def dtypes() -> tuple[torch.dtype, ...]:
    """Those that the GPU has."""
    every = (torch.float32, torch.float16, torch.bfloat16)
    knows_all = not torch.cuda.is_available() or (
        torch.cuda.get_device_capability() >= (8, 0)
    )
    return every if knows_all else every[:2]


def warm_up(step: Callable[[], None], times: int = 3) -> None:
    """Runs the step on a stream of its own, as has to be done before it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(side)


__all__ = ["DEVICE", "NAMES", "REHEARSES", "ROOT", "dtypes", "exact_float32"]
__all__ += ["needs_gpu", "on_a_gpu_only", "rehearsal", "warm_up"]
