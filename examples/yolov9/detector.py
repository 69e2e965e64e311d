# SPDX-License-Identifier: MIT
"""The detector of a run: made, frozen, checkpointed and wrapped for its devices."""

import argparse

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from . import swap
from .environment import Processes
from .model import DetectionModel, freeze
from .options import OptionError


def make(name: str, nc: int, frozen: list[int]) -> DetectionModel:
    """A detector for `nc` classes; frozen: layers, as --freeze gives them.

    Raises OptionError where no layer is left to be trained.
    """
    model = DetectionModel(name, nc)
    freeze(model, frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise OptionError(f"--freeze {' '.join(map(str, frozen))}: no layer is left")
    return model


def wrap(
    model: nn.Module,
    opt: argparse.Namespace,
    processes: Processes,
    devices: list[torch.device],
) -> nn.Module:
    """The model as --sync-bn, --ckpt, torchrun and several devices want it.

    It lies on the first device. Raises OptionError for a --ckpt that is none.
    """
    cuda = devices[0].type == "cuda"
    if opt.sync_bn and processes.is_distributed:
        if cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        else:
            print("WARNING --sync-bn needs CUDA: plain batch norm on the CPU")
    if opt.ckpt:
        try:
            model = swap.checkpoint(model, opt.ckpt)
        except ValueError as error:
            raise OptionError(f"--ckpt: {error}") from error
    if processes.is_distributed:
        return DistributedDataParallel(model, device_ids=devices[:1] if cuda else None)
    return nn.DataParallel(model, device_ids=devices) if len(devices) > 1 else model


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside DataParallel or DistributedDataParallel."""
    wrappers = (nn.DataParallel, DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model
