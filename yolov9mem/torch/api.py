# SPDX-License-Identifier: MIT
"""checkpoint() and release(): what a user calls."""

from __future__ import annotations

import re
from typing import TypeVar

import torch
from torch import nn

from . import patch
from .arenas import drop_workspace
from .entry import Entry
from .lower import Keep

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
Module = TypeVar("Module", bound=nn.Module)


def parse_keep(keep: str | int) -> Keep:
    """ "all", "conv", "min", or a size: bytes, or text such as "6GB" (10^9) or "6GiB"."""
    if isinstance(keep, str) and keep in ("all", "conv", "min"):
        return Keep(keep)
    if isinstance(keep, int) and not isinstance(keep, bool):
        size: float | None = keep
    else:
        text = keep if isinstance(keep, str) else ""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
        unit = UNITS.get(match[2].upper()) if match else None
        size = float(match[1]) * unit if match and unit else None
    if size is None or size <= 0:
        raise ValueError(
            f"keep: is {keep!r}, must be 'all', 'conv', 'min' or a size such as '6GB'"
        )
    return Keep("budget", int(size))


def checkpoint(
    module: Module,
    keep: str | int = "conv",
    strict: bool = True,
    *,
    segments: int | None = None,
    backend: str = "cpu",
) -> Module:
    """Makes the module's training forward and backward run in yolov9mem.

    Args:
        module: any module, one block or a whole detector. It stays what it is: class,
            parameters, state_dict keys, pickles; copies of it are stock.
        keep: what is kept between forward and backward: "conv" (convolution outputs, no
            convolution runs twice), "min" (the smallest peak with each convolution run at
            most twice), "all" (as eager) or a size (the cheapest plan that fits it).
        strict: raise CannotLower, naming the call and the path, when a part of the module
            can't be lowered; False leaves that part in stock PyTorch (see report()).
        segments: into how many autograd nodes backward is cut; None: by parameter bytes.
        backend: "cpu", or "ref" for the slow and plain reference.

    Returns the same object. Calling it again changes ``keep``. Raises TypeError for what is
    no module or a wrapper of one, ValueError for a bad ``keep``.

    The module is recorded lazily, at its next training forward. In eval mode, without
    gradients and under tracing the stock forward runs. Outputs are channels_last tensors.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module: is a {type(module).__name__}, must be a torch.nn.Module"
        )
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(module, wrappers):
        kind = type(module).__name__
        raise TypeError(f"module: is a {kind}, checkpoint its .module instead")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("module: is a ScriptModule, whose forward cannot be replaced")
    if segments is not None and segments < 1:
        raise ValueError(f"segments: is {segments}, must be at least 1")
    release(module)
    patch.register(module, Entry(module, parse_keep(keep), strict, segments, backend))
    return module


def release(module: Module) -> Module:
    """The module and all below it run in stock PyTorch again; kept memory is freed.

    Returns the same object. A ready-made block stays stock until checkpoint() is called.
    """
    for part in module.modules():
        patch.unregister(part)
    drop_workspace()
    return module
