# SPDX-License-Identifier: MIT
"""What a program has around a forward, and stock calls find again in backward.

With other kernels than in forward autograd would save other tensors, and on another
default device what is made anew would lie elsewhere. Autocast, random numbers and the
stream are seen to already: by the calls, by torch.utils.checkpoint and by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._device import DeviceContext

_CHOICES = (  # of kernels: how PyTorch tells one and is told it
    ("_get_cudnn_enabled", "_set_cudnn_enabled"),
    ("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    ("_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    ("_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    ("_get_math_sdp_enabled", "_set_sdp_use_math"),
    ("_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
    ("_get_overrideable_sdp_enabled", "_set_sdp_use_overrideable"),
    ("_get_sdp_priority_order", "_set_sdp_priority_order"),
)


def _determinism() -> tuple[bool, bool]:
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warns


def _set_determinism(asked: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])


_Choice = tuple[Callable[[], Any], Callable[[Any], Any]]
_choices: list[_Choice] = [
    *(
        (getattr(torch._C, get), getattr(torch._C, change))
        for get, change in _CHOICES
        if hasattr(torch._C, get) and hasattr(torch._C, change)  # not in all versions
    ),
    (_determinism, _set_determinism),
]


def _default_device() -> torch.device:
    modes = reversed(torch.overrides._get_current_function_mode_stack())
    devices = (mode.device for mode in modes if isinstance(mode, DeviceContext))
    return next(devices, torch.device("cpu"))


class Surroundings:
    """Of a forward, as they are now."""

    def __init__(self) -> None:
        self._chosen = [get() for get, _ in _choices]
        self._device = _default_device()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """What is another by now is as it was, inside."""
        changed: list[tuple[Callable[[Any], Any], Any]] = []
        try:
            for (get, change), chosen in zip(_choices, self._chosen):
                now = get()
                if now != chosen:
                    changed.append((change, now))
                    change(chosen)
            if self._device == _default_device():
                yield
            else:
                with torch.device(self._device):
                    yield
        finally:
            for change, now in changed:
                change(now)
