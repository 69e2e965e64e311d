# SPDX-License-Identifier: MIT
"""The only place of the example that imports yolov9mem, when something of it is used."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import nn


class NotInstalledError(Exception):
    """yolov9mem can't be imported; the message says what to do."""


def _load(module: str) -> object:
    try:
        return import_module(module)
    except ImportError as error:
        raise NotInstalledError(
            f"{module} can't be imported ({error}): run `pip install .` in the "
            "repository"
        ) from error


def training_sample() -> Callable:
    """(dataset, index) -> (image, labels) by yolov9mem's one-pass mosaic."""
    return _load("yolov9mem.augment").official_sample


def detection_loss(head: nn.Module, hyp: dict) -> Callable:
    """yolov9mem.torch.DetectionLoss, of --stock too: (output, targets) -> (sum, parts)."""
    return _load("yolov9mem.torch").DetectionLoss(head, hyp)


def sgd(groups: list[dict], **options: object) -> torch.optim.SGD:
    """yolov9mem.torch.AccumulatingSGD over parameter groups."""
    return _load("yolov9mem.torch").AccumulatingSGD(groups, **options)


def checkpoint(model: nn.Module, keep: str) -> nn.Module:
    """The same model, its training forward and backward run by yolov9mem."""
    library = _load("yolov9mem.torch")
    library.use_expandable_segments()
    return library.checkpoint(model, keep=keep)


def largest_batch(prepare: Callable, **options: object) -> object:
    """yolov9mem.torch.largest_batch; its `batch` is the number of images."""
    return _load("yolov9mem.torch").largest_batch(prepare, **options)


def report(model: nn.Module) -> object:
    """Bytes kept from the last training forward to its backward."""
    return _load("yolov9mem.torch").report(model)


def held_bytes(model: nn.Module) -> int:
    """Bytes kept from the last training forward to its backward, image included."""
    return sum(row.held_bytes for row in report(model).rows)
