# SPDX-License-Identifier: MIT
"""Memory for the C core, from torch's allocator.

On the CPU one workspace is kept between calls while training, because fresh pages cost
more than the arithmetic on them; eval and release() let it go.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import devices
from .binding import address

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_lock = threading.Lock()
_kept: Tensor | None = None


@contextmanager
def unfilled() -> Iterator[None]:
    """torch.empty without the fill that deterministic algorithms ask for.

    The fill takes 171 ms for 450 MB, and the core writes every byte before it reads it.
    """
    settings = torch.utils.deterministic
    if not (
        torch.are_deterministic_algorithms_enabled()
        and settings.fill_uninitialized_memory
    ):
        yield
        return
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = True


def take_workspace(size: int, device: torch.device) -> Tensor:
    """At least ``size`` bytes, uint8; give_workspace takes it back.

    On CUDA torch's own allocator keeps freed memory.
    """
    global _kept
    if devices.kind(device) != "cpu":
        with unfilled():
            return torch.empty(size, dtype=torch.uint8, device=device)
    with _lock:
        found, _kept = _kept, None
    if found is not None and found.numel() >= size:
        return found
    del found
    with unfilled():
        return torch.empty(size, dtype=torch.uint8, device="cpu")


def give_workspace(workspace: Tensor) -> None:
    """Keeps the workspace for the next call, if it is the largest."""
    global _kept
    if devices.kind(workspace.device) != "cpu":
        return
    with _lock:
        if _kept is None or _kept.numel() < workspace.numel():
            _kept = workspace


def use_expandable_segments() -> bool:
    """From now on torch's CUDA allocator grows its segments instead of adding others.

    Sizes that change (``--multi-scale``) otherwise leave holes that nothing fits into:
    memory that is reserved and not used. The same as starting Python with
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, of which PyTorch's notes on CUDA
    tell more. What is allocated already stays where it is, so call it first.

    Returns whether it was switched on: not where one of those variables is set (it says
    how the allocator shall work), on Windows, or in a torch without CUDA.
    """
    if any(os.environ.get(name) for name in ALLOCATOR_SETTINGS):
        return False
    if sys.platform == "win32" or not torch.backends.cuda.is_built():
        return False
    settings = "expandable_segments:True"
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings(settings)
    else:  # before PyTorch 2.9
        torch.cuda.memory._set_allocator_settings(settings)
    return True


def make_room(device: torch.device, saved: int, peak: int) -> None:
    """Before a forward of another size than the last: torch gives its blocks back if it
    would have to reserve a new one beside them, and so more than was ever needed.

    saved, peak: bytes that the forward holds, and most with its workspaces. A block of a
    size that has gone is no use to a larger one, and stays reserved until memory runs
    out; giving all back costs milliseconds, so it is done where it helps alone.
    """
    if device.type != "cuda" or devices.is_capturing(device):
        return
    if torch.cuda.get_allocator_backend() != "native":
        return  # others, such as cudaMallocAsync, do not tell their blocks
    reserved = torch.cuda.memory_reserved(device)
    allocated = torch.cuda.memory_allocated(device)
    needed = max(torch.cuda.max_memory_allocated(device), allocated + peak)
    if reserved + saved > needed and reserved - allocated > reserved // 20:
        if saved > _largest_free_block(device):
            torch.cuda.empty_cache()


def _largest_free_block(device: torch.device) -> int:
    """Bytes that the current stream gets without reserving more."""
    here = (devices.index(device), devices.stream(device))
    usable = (  # not those of a captured graph's own pool
        segment
        for segment in torch.cuda.memory_snapshot()
        if (segment["device"], segment["stream"]) == here
        and not any(segment.get("segment_pool_id", ()))
    )
    free = (
        block["size"]
        for segment in usable
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return max(free, default=0)


def drop_workspace() -> None:
    """Frees what is kept."""
    global _kept
    with _lock:
        _kept = None


def kept_bytes() -> int:
    """How much is kept now."""
    with _lock:
        return 0 if _kept is None else _kept.numel()


def arena_address(arena: Tensor | None) -> Any:
    """As the core takes it."""
    return None if arena is None or arena.numel() == 0 else address(arena)
