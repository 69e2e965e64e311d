# SPDX-License-Identifier: MIT
"""A recording leaves no trace: random generators, log, and the mark that it goes on."""

from __future__ import annotations

import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from .. import devices

CPU = torch.device("cpu")
_lock = threading.RLock()
_recording = threading.local()
# Where a call fails, it logs the error that it raises: 40 lines beside one message.
_fake_log = logging.getLogger("torch._subclasses.fake_tensor")


def is_recording() -> bool:
    """True inside our own recording: the stock forward must run."""
    return getattr(_recording, "active", False)


def random_states() -> tuple[Any, ...]:
    """Of the generators whose numbers decide in Python, unseen by the recorder."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return (random.getstate(),)
    _, keys, *rest = numpy.random.get_state()
    return random.getstate(), keys.tobytes(), rest


def is_seeded() -> bool:
    """Has a generator of PyTorch another state than before the recording? Fakes draw
    nothing from it: whoever moves it sets it."""
    with torch._C._DisableTorchDispatch():  # the mode of fakes would make it one
        return any(
            not torch.equal(generator.get_state(), before)
            for generator, before in _recording.defaults
        )


def nothing_saved(
    instead: Callable[[torch.Tensor], None] = lambda x: None,
) -> AbstractContextManager[Any]:
    """Autograd saves no fakes, and hooks that somebody has around forward see none.

    ``instead`` is called with each that it would save."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(instead, lambda x: x)


def _is_of_others(record: logging.LogRecord) -> bool:
    """Filters the log in the thread that writes to it."""
    return not is_recording()


@contextmanager
def undisturbed(device: torch.device = CPU) -> Iterator[None]:
    """One recording at a time; its thread is marked, and the generators are put back, the
    device's too: torch.manual_seed() sets all.

    Autocast keeps no copies of fakes, which would outlive the recording."""
    with _lock:  # first: the one before puts back what is read here
        caches = torch.is_autocast_cache_enabled()
        python = random.getstate()
        defaults = [(known, known.get_state()) for known in devices.generators(device)]
        numpy = sys.modules.get("numpy")
        legacy = numpy.random.get_state() if numpy is not None else None
        _recording.active, _recording.defaults = True, defaults
        _fake_log.addFilter(_is_of_others)
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(caches)
            _fake_log.removeFilter(_is_of_others)
            _recording.active, _recording.defaults = False, ()
            random.setstate(python)
            for generator, before in defaults:
                generator.set_state(before)
            if numpy is not None:
                numpy.random.set_state(legacy)
