# SPDX-License-Identifier: MIT
"""largest_batch(): the most images whose training step fits a GPU.

Found by making steps, not from plans alone: a step also holds what is PyTorch's own (the
loss, the optimizer's state, cuDNN's workspaces of a stock module). Plans say that its
memory is piece by piece a straight line in the batch. So two small batches tell where
the limit is, and the steps there, and of one batch more, are measured before it is
returned: what is returned has fitted, and bends and steps on the way cost trials.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from yolov9mem._checks import INT_MAX, check_real, check_whole
from yolov9mem._keep import MOST_BYTES, parse_size
from yolov9mem.plan_table import readable_bytes

from . import devices as places
from .checks import check_callable, check_device
from .running.arenas import drop_workspace

# Of what a GPU has for this process. The peak of the chosen batch is measured, and of all
# that torch reserves: what is left is for what comes later, such as batches with more
# objects, blocks of other sizes that lie badly, kernels loaded late, other processes.
SHARE = 0.9
MOST = 1024  # images, unless a caller says another number
GROWTH = 4  # no batch is tried that is more than this many times one that fits
MOST_TRIALS = 16  # each takes seconds; 6 where the line is straight
# Then what lies between a batch that fits and one that does not is halved.
MOST_BY_LINES = 10
FINE = 1 / 50  # of a batch: where memory ran out, and told no peak, it is near enough
# How PyTorch, CUDA's libraries and our plans say that there is too little memory.
NO_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "can't allocate memory",
    "not enough memory",
)
NO_BUDGET = "keep: a budget of"

Step = Callable[[int], object]
# Runs the work; (peak, room) in bytes of the GPU that is fullest: the most that the
# process had of it, and the most that it could have.
Meter = Callable[[Callable[[], object]], tuple[int, int]]


@dataclass(frozen=True)
class Trial:
    """Steps of one batch size."""

    batch: int
    peak_bytes: int | None  # all that the process held; None: memory ran out
    limit_bytes: int
    room_bytes: int  # of the GPU, for this process

    @property
    def fits(self) -> bool:
        """Did its peak stay within the limit?"""
        return self.peak_bytes is not None and self.peak_bytes <= self.limit_bytes

    def __str__(self) -> str:
        peak = self.peak_bytes
        return f"{self.batch}: {'too much' if peak is None else readable_bytes(peak)}"


@dataclass(frozen=True)
class LargestBatch:
    """Prints as a line; `trials` in the order in which they were made."""

    batch: int
    trials: tuple[Trial, ...]

    @property
    def chosen(self) -> Trial:
        """The measured steps of `batch`."""
        return next(t for t in self.trials if t.batch == self.batch)

    def __str__(self) -> str:
        found = self.chosen
        peak, room = found.peak_bytes or 0, found.room_bytes
        part = peak / max(room, 1)
        return (
            f"a batch of {found.batch} takes {readable_bytes(peak)}, {part:.0%} of "
            f"the {readable_bytes(room)} that this process can have (limit "
            f"{readable_bytes(found.limit_bytes)}); measured "
            + ", ".join(map(str, self.trials))
        )


def largest_batch(
    prepare: Callable[[], Step],
    *,
    devices: Sequence[torch.device | str] | None = None,
    memory: int | str | None = None,
    share: float = SHARE,
    most: int = MOST,
    multiple: int = 1,
    meter: Meter | None = None,
) -> LargestBatch:
    """The largest batch whose training step fits, and what was measured for it.

    Args:
        prepare: makes a model, optimizer, ... of its own and returns ``step(batch)``,
            which makes one training step of that many images, with all that training
            does: loss, backward, optimizer. It is called again after memory has run out.
            What it made is let go at the end, so nothing of yours has changed; the random
            numbers of Python, NumPy and PyTorch go on as if nothing had been drawn. A
            deep copy of a checkpointed model is stock: checkpoint the copy.
        devices: GPUs that the step uses, e.g. "cuda:1"; None: the current one.
        memory: bytes that the process may take of each, at most, or such as "6GB".
        share: of what each has for this process (free, or reserved by torch already).
        most: images at most.
        multiple: of which the batch is one, e.g. the GPUs of DataParallel.
        meter: measures in another way, see `Meter`; for what is no GPU.

    Each size is run twice: gradients and the state of an optimizer are there the second
    time. Sizes grow at most fourfold from one that fits; a step that runs out of memory,
    or whose ``keep`` is a budget that is too small for it, is one that does not fit.

    What is returned was measured and fits. The next one, ``multiple`` images more, was
    measured too and does not, so it is the largest if memory never falls with the batch;
    but for two cases, which `trials` show: where memory ran out, which tells no peak, up
    to 2% more may fit; and after 16 sizes the search ends with the largest that fitted.

    Raises:
        MemoryError: not even ``multiple`` images fit; says what there is.
        TypeError, ValueError: an argument that breaks its rule, or no GPU and no meter.
    """
    check_callable("prepare", prepare)
    if meter is not None:
        check_callable("meter", meter)
    # As ints: NumPy's would go on into all batches that are worked out from them.
    multiple = check_whole("multiple", multiple, 1, INT_MAX)
    most = check_whole("most", most, multiple, INT_MAX)
    check_real("share", share)
    if not 0 < share <= 1:
        raise ValueError(f"share: is {share}, must be above 0 and at most 1")
    limit = None if memory is None else _bytes_of(memory)
    gpus = _gpus_among(() if devices is None else devices, others=meter is not None)
    if not torch.cuda.is_available():
        if meter is None:
            raise ValueError("devices: this PyTorch sees no GPU, and there is no meter")
        if gpus:
            raise ValueError(f"devices: has {gpus[0]}, and this PyTorch sees no GPU")
    if meter is None:
        gpus = gpus or [torch.device("cuda")]
        meter = CudaMeter(gpus)
    measuring = _Measuring(prepare, meter, limit, share)
    trials: list[Trial] = []
    batch: int | None = multiple
    with _same_random_numbers(gpus):
        try:
            while batch is not None and len(trials) < MOST_TRIALS:
                trials.append(measuring.trial(batch))
                batch = _next(trials, most, multiple)
        finally:
            measuring.forget()
    if not trials[0].fits:
        raise MemoryError(measuring.why(trials[0]))
    best = max(trial.batch for trial in trials if trial.fits)
    return LargestBatch(best, tuple(trials))


def _gpus_among(
    devices: Sequence[torch.device | str], others: bool
) -> list[torch.device]:
    """GPUs; others: devices that are none are passed over, not refused."""
    if isinstance(devices, (str, torch.device)) or not isinstance(devices, Iterable):
        raise TypeError(f"devices: is {devices!r}, must be a sequence of devices")
    found = [check_device("devices", device) for device in devices]
    for device in found:
        if device.type != "cuda" and not others:
            raise ValueError(
                f"devices: has {device}, must be GPUs where there is no meter"
            )
    return [device for device in found if device.type == "cuda"]


def _bytes_of(memory: int | str) -> int:
    """Of the limit that a caller has set."""
    size = parse_size(memory) if isinstance(memory, str) else memory
    if size is not None:
        check_real("memory", size)
    if size is None or not size > 0:
        raise ValueError(
            f"memory: is {memory!r}, must be above 0 bytes, or a size such as '6GB'"
        )
    return int(min(size, MOST_BYTES))


def _measured(told: object) -> tuple[int, int]:
    """What a meter has told, as ints: floats would make floats of the batches that are
    worked out from them, and 32 bits of NumPy's overflow."""
    if not isinstance(told, Sequence) or len(told) != 2:
        raise TypeError(f"meter: told {told!r}, must tell (peak, room) in bytes")
    peak, room = told
    for name, count in (("peak", peak), ("room", room)):
        check_real(f"meter: {name}", count)
        if not 0 <= count < math.inf:
            raise ValueError(f"meter: {name}: is {count}, must be bytes, from 0")
    return math.ceil(peak), int(room)


class CudaMeter:
    """Measures what torch's allocator reserves on GPUs."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        # With their numbers, without which PyTorch 2.4 tells no free memory.
        self.devices = [torch.device("cuda", places.index(d)) for d in devices]

    def __call__(self, work: Callable[[], object]) -> tuple[int, int]:
        for device in self.devices:
            torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        for device in self.devices:
            torch.cuda.reset_peak_memory_stats(device)
        work()
        used = [self._used(device) for device in self.devices]
        return max(used, key=lambda pair: pair[0] / max(pair[1], 1))

    def _used(self, device: torch.device) -> tuple[int, int]:
        """Afterwards: what CUDA's context and its kernels take is not free by then."""
        torch.cuda.synchronize(device)
        free, _ = torch.cuda.mem_get_info(device)
        room = free + torch.cuda.memory_reserved(device)
        return torch.cuda.max_memory_reserved(device), room


class _Measuring:
    """Makes the steps, and a new model after memory has run out."""

    def __init__(
        self,
        prepare: Callable[[], Step],
        meter: Meter,
        memory: int | None,
        share: float,
    ) -> None:
        self.prepare, self.meter = prepare, meter
        self.memory, self.share = memory, share
        self.step: Step | None = None
        self.said = ""  # by the latest step that ran out of memory

    def trial(self, batch: int) -> Trial:
        peak: int | None = None
        try:
            peak, room = _measured(self.meter(lambda: self._twice(batch)))
        except Exception as error:
            if not _is_too_much(error):
                raise
            self.said = str(error).strip().partition("\n")[0]
        # Outside of the handler the error is gone, and with it the tensors of its frames.
        if peak is None:
            self.forget()
            _, room = _measured(self.meter(lambda: None))
        limit = int(room * self.share)
        if self.memory is not None:
            limit = min(limit, self.memory)
        return Trial(batch, peak, limit, room)

    def forget(self) -> None:
        """Lets go of the model, and of the memory that was kept for it."""
        self.step = None
        gc.collect()
        drop_workspace()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _twice(self, batch: int) -> None:
        if self.step is None:
            step: object = self.prepare()
            if not callable(step):
                raise TypeError(f"prepare: returned {step!r}, must return step(batch)")
            self.step = step
        self.step(batch)
        self.step(batch)

    def why(self, first: Trial) -> str:
        """That the first trial did not fit."""
        limit, room = map(readable_bytes, (first.limit_bytes, first.room_bytes))
        taken = f"takes {readable_bytes(first.peak_bytes or 0)}"
        took = taken if first.peak_bytes is not None else f"fails ({self.said})"
        return (
            f"a batch of {first.batch} {took}, and there are {limit} of {room} for it"
        )


def _next(trials: list[Trial], most: int, multiple: int) -> int | None:
    """The batch to try after these; None: the largest that fits is among them."""
    fitting = sorted((t for t in trials if t.fits), key=lambda t: t.batch)
    failed = min((t for t in trials if not t.fits), key=lambda t: t.batch, default=None)
    if not fitting:
        return None
    low, limit = fitting[-1], trials[-1].limit_bytes
    top = (most if failed is None else failed.batch - 1) // multiple * multiple
    if low.batch >= top:
        return None
    if failed is None:
        unknown = min(low.batch * (2 if len(fitting) == 1 else GROWTH), top)
    else:
        if failed.peak_bytes is None and failed.batch - low.batch <= FINE * low.batch:
            return None
        unknown = (low.batch + failed.batch) // 2 // multiple * multiple
        unknown = max(unknown, low.batch + multiple)
    other = failed if failed is not None and failed.peak_bytes else None
    if other is None:  # nor one that fits and takes as much: of the same step
        smaller = [t for t in fitting if (t.peak_bytes or 0) < (low.peak_bytes or 0)]
        other = smaller[-1] if smaller else None
    if other is None or (failed is not None and len(trials) >= MOST_BY_LINES):
        return unknown
    assert low.peak_bytes is not None and other.peak_bytes is not None
    images, taken = other.batch - low.batch, other.peak_bytes - low.peak_bytes
    if images * taken <= 0:
        return unknown
    more = (limit - low.peak_bytes) * images // taken // multiple * multiple
    if more <= 0:  # by the line: a step or a bend may be there, or a bit further on
        near = sum(0 < low.batch - t.batch <= low.batch // 8 for t in fitting)
        step = multiple << near if trials[-1] is low else multiple
        return min(low.batch + step, top if failed is None else unknown)
    if failed is None:
        return low.batch + min(more, top - low.batch, (GROWTH - 1) * low.batch)
    return low.batch + more if low.batch + more <= top else unknown


@contextmanager
def _same_random_numbers(gpus: list[torch.device]) -> Iterator[None]:
    """What is drawn inside has not been drawn for those who come after."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _is_too_much(error: Exception) -> bool:
    """Is there too little memory, or in the budget, for what was asked?"""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, ValueError):
        return str(error).startswith(NO_BUDGET)
    return isinstance(error, RuntimeError) and any(w in str(error) for w in NO_MEMORY)
