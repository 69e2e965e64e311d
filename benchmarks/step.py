# SPDX-License-Identifier: MIT
"""One training step (forward, loss, backward) of a detector, in several ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from benchmarks.gpu.names import CONV, EAGER, LAST, MIN, PER_LAYER
from benchmarks.models import detection_loss, detection_model

OBJECTS = 8  # per image
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def in_channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


def checkpointed_by_torch(model: nn.Module) -> nn.Module:
    """Every layer that has parameters keeps its input only and is run twice."""
    for layer in model.model:
        if any(True for _ in layer.parameters()):
            layer.forward = partial(
                torch_checkpoint, layer.forward, use_reentrant=False
            )
    return model


def checkpointed(model: nn.Module, **options: Any) -> nn.Module:
    """By yolov9mem; the options are those of its checkpoint()."""
    from yolov9mem.torch import checkpoint

    return checkpoint(model, **options)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    EAGER: as_it_is,
    LAST: in_channels_last,
    PER_LAYER: checkpointed_by_torch,
    CONV: partial(checkpointed, keep="conv"),
    MIN: partial(checkpointed, keep="min"),
}


class Step:
    """A model made ready in one of WAYS, with a batch of random images and targets.

    Args:
        way: a key of WAYS.
        name: the model, e.g. "yolov9-s".
        batch, size: images, and their height and width in pixels.
        dtype: "fp32", or "bf16" for autocast.
    """

    def __init__(self, way: str, name: str, batch: int, size: int, dtype: str) -> None:
        torch.manual_seed(0)
        model = detection_model(name)
        self._loss = detection_loss(model)
        self.model = WAYS[way](model)
        self._images = torch.rand(batch, 3, size, size)
        if way == LAST:
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        targets = torch.rand(batch * OBJECTS, 6)
        targets[:, 0] = torch.arange(batch).repeat_interleave(OBJECTS)
        targets[:, 1] = torch.arange(len(targets)) % 80
        targets[:, 2:] = targets[:, 2:] * 0.3 + 0.3
        self._targets = targets
        self._dtype = DTYPES[dtype]

    def forward(self) -> Any:
        with torch.autocast(
            "cpu", self._dtype, enabled=self._dtype is not torch.float32
        ):
            output = self.model(self._images)
            return self._loss(output, self._targets)[0]

    def __call__(self) -> None:
        self.forward().backward()

    def clear(self) -> None:
        """Zeroes the gradients in place, so that their memory is no part of a step."""
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.zero_()
