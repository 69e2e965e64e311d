# SPDX-License-Identifier: MIT
"""Where the tests of test_gpu_*.py run: on a GPU.

YOLOV9MEM_REHEARSE=1 runs most of them on the CPU with the emulated backend, to try the
tests themselves where there is no GPU; where tests/emulated_gpu.py is, host memory stands
for a GPU's and the whole adapter takes its CUDA path.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cuda_tensors import exact_float32, why_no_gpu

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # benchmarks

REHEARSES = os.environ.get("YOLOV9MEM_REHEARSE") == "1"
DEVICE = "cpu" if REHEARSES else "cuda"
EMULATES = REHEARSES and importlib.util.find_spec("emulated_gpu") is not None
NAMES = ("emulated",) if REHEARSES and not EMULATES else ("cuda", "cuda:plain")
needs_gpu = pytest.mark.skipif(
    not REHEARSES and why_no_gpu() is not None, reason=str(why_no_gpu())
)
on_a_gpu_only = pytest.mark.skipif(
    REHEARSES or why_no_gpu() is not None, reason=str(why_no_gpu() or "a rehearsal")
)


@pytest.fixture(autouse=True)
def rehearsal() -> Iterator[None]:
    """Imported by every test_gpu_*.py."""
    if not EMULATES:
        yield
        return
    from emulated_gpu import emulated_gpu

    with emulated_gpu():
        yield


def backend(name: str) -> Any:
    """What checkpoint(backend=...) takes."""
    if name != "emulated":
        return name
    import cuda_emulation

    return cuda_emulation.capsule("ym_emulation_packed_backend")


def dtypes() -> tuple[torch.dtype, ...]:
    """Those that the GPU has; the CPU's autocast has no fp16 in a plan."""
    if REHEARSES and not EMULATES:
        return (torch.float32, torch.bfloat16)
    has_bf16 = why_no_gpu() is None and torch.cuda.get_device_capability() >= (8, 0)
    every = (torch.float32, torch.float16, torch.bfloat16)
    return every if has_bf16 or why_no_gpu() else every[:2]


def warm_up(step: Callable[[], None], times: int = 3) -> None:
    """Runs the step on a stream of its own, as has to be done before it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(side)


__all__ = ["DEVICE", "NAMES", "REHEARSES", "ROOT", "backend", "dtypes", "exact_float32"]
__all__ += ["needs_gpu", "on_a_gpu_only", "rehearsal", "warm_up"]
