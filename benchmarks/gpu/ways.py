# SPDX-License-Identifier: MIT
"""The ways of running a detector's training step that are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.names import COMPILED, CONV, EAGER, GRAPHS, LAST, MIN, PER_LAYER
from benchmarks.step import checkpointed_by_torch, in_channels_last


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(in_channels_last(model))


def checkpointed(
    model: nn.Module, keep: str, backend: Any, **options: Any
) -> nn.Module:
    """By yolov9mem; `backend` None: what the tensors' device asks for."""
    from yolov9mem.torch import checkpoint

    chosen = inspect.signature(checkpoint).parameters["backend"].default
    if backend is None and chosen == "cpu" and next(model.parameters()).is_cuda:
        backend = "cuda"
    options |= {"backend": backend} if backend else {}
    return checkpoint(model, keep=keep, **options)


def prepare(way: str, model: nn.Module, backend: Any = None) -> nn.Module:
    """The model, ready to be called.

    Raises:
        ValueError: way is none of those above.
    """
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        EAGER: lambda model: model,
        LAST: in_channels_last,
        PER_LAYER: checkpointed_by_torch,
        COMPILED: compiled,
        CONV: partial(checkpointed, keep="conv", backend=backend),
        GRAPHS: partial(checkpointed, keep="conv", backend=backend, cuda_graphs=True),
        MIN: partial(checkpointed, keep="min", backend=backend),
    }
    if way not in ways:
        raise ValueError(f"way: is {way!r}, must be one of {list(ways)}")
    return ways[way](model)


def is_ours(way: str) -> bool:
    return way in (CONV, GRAPHS, MIN)


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
