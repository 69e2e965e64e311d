# SPDX-License-Identifier: MIT
"""Two processes with one device and gloo, which share batch norms: each has its part of a
batch, and what they have computed together is compared with stock PyTorch's plain batch
norm on the whole batch."""

from __future__ import annotations

import copy
import os
import socket
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from emulated_gpu import emulated_gpu
from models_for_tests import Elan, image, ran_in_core
from torch import nn

import yolov9mem.torch as ym

WORLD = 2
HALF_LIMIT, LIMIT = 4e-2, 1e-4  # relative L2


def _train(module: nn.Module, x: torch.Tensor, autocast: Any) -> list[torch.Tensor]:
    """Output, gradients and running statistics of one step."""
    x = x.clone().requires_grad_()
    with autocast:
        y = module(x)
    y.float().square().sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    state = [b for b in module.buffers() if b.is_floating_point()]
    return [t.detach().float().cpu() for t in (y, *grads, *state)]


def _check(rank: int, device: str, backend: str, keep: str, half: Any) -> None:
    torch.manual_seed(0)
    stock = Elan(3, 16, 8).to(device)
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(stock))
    ym.checkpoint(ours, keep, segments=2, backend=backend)
    whole = image(2 * WORLD).to(device)

    def autocast() -> Any:
        return torch.autocast(device, half) if half else nullcontext()

    made = _train(ours, whole[2 * rank : 2 * rank + 2], autocast())
    exact = _train(stock, whole, autocast())
    assert ran_in_core(ours) == 1
    params = len(list(stock.parameters()))
    for i, (a, b) in enumerate(zip(made, exact, strict=True)):
        if i < 2:  # the output, the image's gradient
            b = b[2 * rank : 2 * rank + 2]
        elif i < 2 + params:
            dist.all_reduce(a)
        error = float((a - b).norm() / b.norm())
        assert error < (HALF_LIMIT if half else LIMIT), (backend, keep, half, i, error)


def _child(rank: int, port: int, device: str, backends: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    with emulated_gpu() if device == "cpu" else nullcontext():
        for backend in backends:
            for half in (None, torch.bfloat16):
                for keep in ("conv", "min"):
                    _check(rank, device, backend, keep, half)
    dist.barrier()
    let_gloo_finish()
    dist.destroy_process_group()


def free_port() -> int:
    """Of this machine, for the processes' first meeting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def let_gloo_finish() -> None:
    """Its threads let go of tensors some time after their sums, and need the GIL for it:
    in a process that ends meanwhile PyTorch aborts."""
    time.sleep(0.3)


def check_two_processes(device: str, backends: tuple[str, ...]) -> None:
    """device: "cuda", or "cpu", where host memory stands for a GPU's."""
    # Raises what one of them has raised.
    mp.spawn(_child, (free_port(), device, backends), nprocs=WORLD)
