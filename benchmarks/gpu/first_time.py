# SPDX-License-Identifier: MIT
"""torch.compile's first time: what it compiles stays in its cache, and no figure is taken.

A request is one of step.py, of a compiled way. Only forward and backward of the network
are compiled, so a sum of squares stands for the loss, and nothing of yolov9mem is imported:
this begins before it is built. It is one thread's work for most of its minutes.
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.step import Training


def any_loss(model: nn.Module) -> Any:
    """Called as the real one; sends a gradient into every output."""

    def loss(output: Any, targets: Tensor) -> tuple[Tensor, None]:
        means = [x.float().square().mean() for x in tree_leaves(output)]
        return torch.stack(means).sum(), None

    return loss


def try_nothing() -> None:
    """Trials of engines and of Triton's settings say nothing beside other work, and wait
    for it: the first of them does."""
    torch.backends.cudnn.benchmark = False
    CachingAutotuner.bench = lambda *_, **__: 0.0


def run(request: dict[str, Any]) -> dict[str, Any]:
    gc.disable()  # a fifth of the time, for millions of objects that stay
    training = Training(request, any_loss)
    try_nothing()
    begin = time.perf_counter()
    for _ in range(2):
        training.alone()
    Clock(request["device"]).wait()
    return {"warm_s": time.perf_counter() - begin}
