# SPDX-License-Identifier: MIT
"""Host memory that stands for a GPU: the torch adapter takes its CUDA path on the CPU.

Within `emulated_gpu()` every CPU tensor counts as one of GPU 0 and yolov9mem._cuda is
csrc/python_cuda over csrc/emulation, kernels and cuDNN included.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cuda_emulation as ce
import pytest
import torch

from yolov9mem.torch import devices
from yolov9mem.torch.recording import fakes

LAUNCHES, WAITS, UPLOADS, WATCHED = range(4)


class Gpu:
    """What a test may ask of the emulated device and tell it."""

    def __init__(self, extension: Any) -> None:
        self.extension = extension
        self.lib = ce.library()
        self.capturing = False

    def count(self, what: int) -> int:
        return int(self.lib.ym_emulation_count(what))

    def watch(self, kernel: str) -> None:
        """count(WATCHED) is then of launches of that kernel."""
        self.lib.ym_emulation_watch(kernel.encode())

    def capture(self, capturing: bool) -> None:
        """The current stream is being captured, or no longer."""
        self.capturing = capturing
        self.lib.ym_emulation_capture(int(capturing))

    def reset(self) -> None:
        self.lib.ym_emulation_driver(0)
        self.capture(False)
        self.lib.ym_emulation_devices(1)
        self.lib.ym_emulation_capability(9)
        self.lib.ym_emulation_reset_counts()


@contextmanager
def emulated_gpu(*, cudnn: bool = False) -> Iterator[Gpu]:
    """cudnn: leave the choice of cuDNN to the test's YOLOV9MEM_CUDNN."""
    extension = ce.extension()
    if not cudnn:
        ce.open_cudnn()
    gpu = Gpu(extension)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "kind", lambda device: "cuda")
        patch.setattr(devices, "index", lambda device: 0)
        patch.setattr(devices, "number", lambda tensor: 0)
        patch.setattr(devices, "is_capturing", lambda device: gpu.capturing)
        patch.setattr(devices, "why_not_built", lambda: None)
        patch.setattr(devices, "extension", lambda: extension)
        patch.setitem(sys.modules, "yolov9mem._cuda", extension)
        gpu.reset()
        try:
            yield gpu
        finally:
            gpu.reset()


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with emulated_gpu() as made:
        yield made


def autocast(dtype: torch.dtype) -> torch.autocast:
    """As torch.autocast("cuda", dtype) on a GPU."""
    return torch.autocast("cpu", dtype)


@pytest.fixture
def autocast_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fakes are on a GPU: what its autocast casts is known without one."""
    monkeypatch.setattr(fakes, "_place", lambda *_: torch.device("cuda", 0))
    known = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    yield
    torch.set_autocast_enabled("cuda", known[0])
    torch.set_autocast_dtype("cuda", known[1])
