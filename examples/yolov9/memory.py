# SPDX-License-Identifier: MIT
"""Memory figures of a process: resident bytes, a sampled timeline, saved tensors."""

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Resident set of this process now; its peak where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Largest resident set since the process started."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_use(device: torch.device) -> int:
    """What the progress bar shows: reserved on CUDA, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return resident_bytes()


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_resident_bytes()


class Timeline:
    """Samples (seconds, resident bytes) in a thread; `mark` notes moments."""

    def __init__(self, interval: float = 0.002) -> None:
        self.interval = interval
        self.samples: list[tuple[float, int]] = []
        self.marks: dict[str, float] = {}
        self._stop = threading.Event()
        self._start = 0.0

    def _read(self) -> None:
        self.samples.append((time.perf_counter() - self._start, resident_bytes()))

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._read()

    def mark(self, name: str) -> None:
        self._read()
        self.marks[name] = time.perf_counter() - self._start

    def __enter__(self):
        self._start = time.perf_counter()
        self._read()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()


class HeldBytes:
    """Sum of the distinct storages that autograd saved."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    @property
    def total(self) -> int:
        return sum(self.storages.values())


@contextmanager
def held_by_autograd(model: nn.Module) -> Iterator[HeldBytes]:
    """Counts what autograd saves within the block, parameters and buffers left out.

    The count holds while the graph is alive: storages are told apart by address.
    """
    state = [*model.parameters(), *model.buffers()]
    own = {t.untyped_storage().data_ptr() for t in state}
    held = HeldBytes()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        yield held
