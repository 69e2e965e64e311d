# SPDX-License-Identifier: MIT
"""Time and memory of the training steps of a run."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def _status(field: str) -> int | None:
    """Bytes of a field of /proc/self/status, or None where there is no such file."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _restart_peak() -> None:
    """The process's highest memory is counted anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


class Measure:
    """Peaks of training and of validation apart, and the time that training takes.

    On CUDA the peak is torch's own figure for the model's device. It is reset once,
    before the first step: the script may read it too. So a phase's peak is known where
    it is the highest so far. On the CPU it is the growth of the process since the first
    step.

    Attributes:
        training_peak: bytes, of everything from the first training forward of an epoch
            to the first eval forward after it; None where not known.
        validation_peak: of the model's eval forwards, with what the script holds
            meanwhile: after the last epoch it loads best.pt as a second model; None
            where not known, as on CUDA where training's is higher.
        validation_growth: the most that one eval forward added to what the process held
            when it began; None where not known, as on CUDA.
        other_peak: of what a script does after an eval forward and before the next
            forward: matching, plots, checkpoints.
        images: how many went through training forwards that were timed.
        seconds: of these, from forward to forward; gaps with validation do not count.
    """

    def __init__(self) -> None:
        self.training_peak: int | None = None
        self.validation_peak: int | None = None
        self.validation_growth: int | None = None
        self.other_peak: int | None = None
        self.images = 0
        self.seconds = 0.0
        self.forwards = 0
        self._cuda: torch.device | None = None
        self._highest = 0  # of all phases, on CUDA
        self._base: int | None = None
        self._held: int | None = None  # when the phase began, above the base
        self._phase = "training"
        self._last: tuple[float, int] | None = None  # time, images of a forward
        self._lock = threading.Lock()

    def begin(self, device: torch.device) -> None:
        """Right before the first training forward."""
        if device.type == "cuda":
            self._cuda = device
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._base = _status("VmRSS")
            _restart_peak()

    def training(self, images: int) -> None:
        """A training forward begins; replicas of DataParallel come from threads."""
        with self._lock:
            now = time.perf_counter()
            if self._phase != "training":
                self._switch("training")
            elif self._last is not None and self.forwards > 1:
                self.seconds += now - self._last[0]
                self.images += self._last[1]
            self._last = now, images
            self.forwards += 1

    def evaluation(self) -> None:
        """A forward in eval mode begins."""
        with self._lock:
            self._switch("validation")

    def evaluated(self) -> None:
        """It is done."""
        with self._lock:
            self._switch("other")

    def finish(self) -> None:
        """The run is over."""
        with self._lock:
            self._switch("other")

    def _switch(self, phase: str) -> None:
        peak = self._peak()
        self._raise(f"{self._phase}_peak", peak)
        if self._phase == "validation" and peak is not None and self._held is not None:
            self._raise("validation_growth", max(peak - self._held, 0))
        if self._cuda is None:
            _restart_peak()
            self._held = self._above_base("VmRSS")
        self._phase = phase
        self._last = None

    def _raise(self, name: str, value: int | None) -> None:
        """An attribute becomes the larger of itself and this."""
        known = getattr(self, name)
        if value is not None:
            setattr(self, name, value if known is None else max(known, value))

    def _peak(self) -> int | None:
        if self._cuda is None:
            return self._above_base("VmHWM")
        before, now = self._highest, torch.cuda.max_memory_allocated(self._cuda)
        self._highest = now
        return now if now > before else None

    def _above_base(self, field: str) -> int | None:
        value = _status(field)
        if value is None or self._base is None:
            return None
        return max(value - self._base, 0)

    @property
    def per_image(self) -> float | None:
        """Seconds, training forward to training forward."""
        return self.seconds / self.images if self.images else None
