# SPDX-License-Identifier: MIT
"""Processes that share the statistics of batch norms: torch.nn.SyncBatchNorm.

As in torch.nn.modules._functions.SyncBatchNorm, forward normalises by the values of all
processes of a group and backward sums what it needs of theirs; gradients of weight and bias
are each process's own, which DistributedDataParallel averages. The core makes the sums of
one process (float64) and stops there for this file's all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from yolov9mem._errors import BackendError


class Sharing(NamedTuple):
    """Who shares a batch norm's statistics."""

    group: Any  # a ProcessGroup; None: all processes
    processes: int
    rank: int  # of this process in the group


def membership() -> tuple[int, int] | None:
    """How many processes there are, and which of them this is; None: it is alone."""
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_world_size(), distributed.get_rank()


def sharing_of(module: nn.Module | None) -> Sharing | None:
    """With whom a module shares the statistics of its batches, if with anybody."""
    shares = isinstance(module, nn.SyncBatchNorm) and module.training
    if not shares or membership() is None:
        return None
    group: Any = module.process_group  # type: ignore[union-attr]
    size = distributed.get_world_size(group)
    return Sharing(group, size, distributed.get_rank(group)) if size > 1 else None


def sums_of(
    groups: list[Any], *arenas: Tensor | None
) -> Callable[[int, int, int], None] | None:
    """What the core calls in a run to sum over the processes of ``groups``, by number from
    1; None where there are none. The numbers lie in one of the run's ``arenas``."""
    if not groups:
        return None

    def sum_over(group: int, address: int, count: int) -> None:
        values = _doubles(arenas, address, count)
        distributed.all_reduce(values, group=groups[group - 1])

    return sum_over


def _doubles(arenas: Iterable[Tensor | None], address: int, count: int) -> Tensor:
    for arena in arenas:
        first = -1 if arena is None else address - arena.data_ptr()
        if arena is not None and 0 <= first <= arena.numel() - 8 * count:
            return arena[first : first + 8 * count].view(torch.float64)
    raise BackendError("batch norm: what is to be summed lies in no arena of the run")
