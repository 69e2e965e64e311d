# SPDX-License-Identifier: MIT
"""Where the tests of test_gpu_*.py run: on a GPU, and nowhere else; those of test_cuda_*.py
need none. `python -m benchmarks gpu` goes by these names.

YOLOV9MEM_REHEARSE=1 runs most of them on the CPU, to try the tests themselves where there
is no GPU: host memory stands for a GPU's and the adapter takes its CUDA path over the
emulated backend (emulated_gpu.py).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from emulated_gpu import emulated_gpu
from tensor_run import EMULATED

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks

REHEARSES = os.environ.get("YOLOV9MEM_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSES else "cuda"
NAMES = ("cuda", "cuda:plain")  # as ym.checkpoint(backend=...) takes them
PLANS = (
    tuple(EMULATED) if REHEARSES else ("cuda:0", "cuda:0:plain")
)  # as TensorRun does


def why_no_gpu() -> str | None:
    if importlib.util.find_spec("yolov9mem._cuda") is None:
        return "built without CUDA"
    return None if torch.cuda.is_available() else "no GPU"


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


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For those who import it: where there is a GPU, float32 does without TF32."""
    if why_no_gpu():
        yield
        return
    from yolov9mem import _cuda

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    _cuda.use_cudnn(False, False)
    yield
    _cuda.use_cudnn(True, False)


def dtypes() -> tuple[torch.dtype, ...]:
    """Those that the GPU has."""
    every = (torch.float32, torch.float16, torch.bfloat16)
    knows_all = not torch.cuda.is_available() or (
        torch.cuda.get_device_capability() >= (8, 0)
    )
    return every if knows_all else every[:2]


# Of a test with that argument.
each_dtype = pytest.mark.parametrize(
    "dtype", dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def warm_up(step: Callable[[], None], times: int = 3) -> None:
    """Runs the step on a stream of its own, as has to be done before it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(side)


# Of the GPU's clock, about a second; a step takes milliseconds.
COVER_CYCLES = 2_000_000_000


def returns_while_the_gpu_is_busy(work: Callable[[], object]) -> bool:
    """Whether the host is done with the work long before the GPU is with what was queued
    ahead of it: a wait for the GPU anywhere inside lasts as long as that.

    PyTorch's sync debug mode sees PyTorch's own waits alone, and the core has a CUDA
    runtime of its own.
    """
    torch.cuda.synchronize()
    begin = time.perf_counter()
    torch.cuda._sleep(COVER_CYCLES)
    work()
    returned = time.perf_counter() - begin
    torch.cuda.synchronize()
    return returned < (time.perf_counter() - begin) / 2
