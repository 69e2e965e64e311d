# SPDX-License-Identifier: MIT
"""The ways of running a detector's training step that are compared."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch._inductor.config
from torch import nn

from benchmarks.gpu.names import (
    COMPILED,
    CONV,
    EAGER,
    GRAPHS,
    GROWING,
    LAST,
    MIN,
    MIN_GRAPHS,
    PER_LAYER,
    REDUCED,
)
from benchmarks.step import (
    as_it_is,
    checkpointed,
    checkpointed_by_torch,
    in_channels_last,
)


def compiled(model: nn.Module, **options: Any) -> nn.Module:
    """Each process chooses anew among Triton's settings: what the first time found, beside
    other work, is not kept."""
    torch._inductor.config.autotune_local_cache = False
    return torch.compile(in_channels_last(model), **options)


def prepare(way: str, model: nn.Module, backend: Any = None) -> nn.Module:
    """The model, ready to be called; `backend` None: what its tensors' device asks for.

    Raises:
        ValueError: way is none of those above.
    """
    on = {"backend": backend} if backend else {}
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        EAGER: as_it_is,
        GROWING: as_it_is,
        LAST: in_channels_last,
        PER_LAYER: checkpointed_by_torch,
        COMPILED: compiled,
        REDUCED: partial(compiled, mode="reduce-overhead"),
        CONV: partial(checkpointed, keep="conv", cuda_graphs=False, **on),
        GRAPHS: partial(checkpointed, keep="conv", **on),
        MIN: partial(checkpointed, keep="min", cuda_graphs=False, **on),
        MIN_GRAPHS: partial(checkpointed, keep="min", **on),
    }
    if way not in ways:
        raise ValueError(f"way: is {way!r}, must be one of {list(ways)}")
    return ways[way](model)


def plan_bytes(model: nn.Module) -> dict[str, int]:
    """What the report says of a model that runs through yolov9mem.

    Raises:
        RuntimeError: a part of it ran in stock PyTorch.
    """
    from yolov9mem.torch import report

    rows = report(model).rows
    stock = [f"{row.path or 'the model'}: {row.detail}" for row in rows if row.reasons]
    if len(rows) != 1 or rows[0].state != "swapped" or stock:
        states = [(row.path, row.state) for row in rows]
        raise RuntimeError(f"did not run through yolov9mem: {stock or states}")
    row = rows[0]
    return {
        "held": row.held_bytes,
        "workspace": row.workspace_bytes,
        "peak": row.peak_bytes,
        "images_converted": row.inputs_converted,
        "gradients_converted": row.gradients_converted,
        "graphs_repeated": row.graphs_repeated,
    }
