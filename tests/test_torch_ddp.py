# SPDX-License-Identifier: MIT
"""DistributedDataParallel with gloo: two processes, all the ways the field sets it up.

The children are started once; each case is a function that both ranks run.
"""

from __future__ import annotations

import copy
import os
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models_for_tests import Net, assert_close, backward, leaves, ran_in_core
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import yolov9mem.torch as ym
from yolov9mem.torch.running import autograd_nodes

WORLD = 2


def batch(rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(10 + rank))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def expected(steps: int = 1) -> list[torch.Tensor]:
    """The mean over the ranks' batches of stock gradients, summed over the steps."""
    total: list[torch.Tensor] | None = None
    for rank in range(WORLD):
        stock = model()
        for _ in range(steps):
            backward(stock(batch(rank)))
        grads = [p.grad / WORLD for p in stock.parameters()]
        total = grads if total is None else [a + b for a, b in zip(total, grads)]
    assert total is not None
    return total


def check_grads(ddp: nn.Module, steps: int = 1) -> None:
    assert_close([p.grad for p in ddp.parameters()], expected(steps), 1e-3)
    assert ran_in_core(ddp.module) == steps


def plain(rank: int) -> None:
    ddp = DistributedDataParallel(ym.checkpoint(model(), segments=4))
    backward(ddp(batch(rank)))
    check_grads(ddp)


def static_graph(rank: int) -> None:
    ddp = DistributedDataParallel(ym.checkpoint(model(), segments=2), static_graph=True)
    for _ in range(3):
        ddp.zero_grad()
        backward(ddp(batch(rank)))
    assert ran_in_core(ddp.module) == 3
    assert_close([p.grad for p in ddp.parameters()], expected(), 1e-3)


def find_unused(rank: int) -> None:
    ym_model = ym.checkpoint(model(), segments=2)
    ddp = DistributedDataParallel(ym_model, find_unused_parameters=True)
    backward(ddp(batch(rank)))
    check_grads(ddp)
    for _ in range(2):  # a loss on one of the two heads only
        ddp.zero_grad()
        backward(ddp(batch(rank)), only=slice(2, 4))
    assert not any(
        p.grad is not None and p.grad.any() for p in ddp.module.aux.parameters()
    )


def accumulate(rank: int) -> None:
    ddp = DistributedDataParallel(ym.checkpoint(model()))
    with ddp.no_sync():
        backward(ddp(batch(rank)))
    backward(ddp(batch(rank)))
    check_grads(ddp, steps=2)


def first_all_reduce_comes_early(rank: int) -> None:
    events: list[Any] = []
    ddp = DistributedDataParallel(
        ym.checkpoint(model(), segments=4), bucket_cap_mb=0.002, static_graph=False
    )

    def hook(state, bucket):  # DDP refuses annotations that are strings
        events.append("all-reduce")
        future = dist.all_reduce(
            bucket.buffer().div_(WORLD), async_op=True
        ).get_future()
        return future.then(lambda done: done.value()[0])

    ddp.register_comm_hook(None, hook)
    stock_backward = autograd_nodes.Call.backward

    def logged(call: autograd_nodes.Call, segment: int, nodes: Any) -> Any:
        events.append(segment)
        return stock_backward(call, segment, nodes)

    autograd_nodes.Call.backward = logged  # type: ignore[method-assign]
    try:
        for _ in range(2):  # DDP orders its buckets by the first iteration
            ddp.zero_grad()
            events.clear()
            backward(ddp(batch(rank)))
    finally:
        autograd_nodes.Call.backward = stock_backward  # type: ignore[method-assign]
    segments = [event for event in events if event != "all-reduce"]
    assert segments == sorted(segments, reverse=True), events
    assert len(segments) == 4, events
    assert events.index("all-reduce") < events.index(segments[-1]), events
    assert_close([p.grad for p in ddp.parameters()], expected(), 1e-3)


def sync_batch_norm_is_refused_by_name(rank: int) -> None:
    module = ym.checkpoint(nn.SyncBatchNorm.convert_sync_batchnorm(model()))
    with pytest.raises(ym.CannotLower, match="SyncBatchNorm in stem.bn"):
        module(batch(rank))


def ema_and_checkpoint_of_the_wrapped_model(rank: int) -> None:
    ddp = DistributedDataParallel(ym.checkpoint(model()))
    backward(ddp(batch(rank)))
    ema = copy.deepcopy(ddp.module).eval()
    assert ran_in_core(ema) == 0
    assert all(torch.isfinite(leaf).all() for leaf in leaves(ema(batch(rank))))
    assert ema.state_dict().keys() == model().state_dict().keys()


CASES = (
    plain,
    static_graph,
    find_unused,
    accumulate,
    first_all_reduce_comes_early,
    sync_batch_norm_is_refused_by_name,
    ema_and_checkpoint_of_the_wrapped_model,
)


def child(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        for case in CASES:
            try:
                case(rank)
                results.put((case.__name__, rank, ""))
            except Exception as error:
                results.put((case.__name__, rank, f"{type(error).__name__}: {error}"))
            dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome() -> dict[str, list[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.Queue()
        mp.spawn(child, (port, results), nprocs=WORLD)
        found: dict[str, list[str]] = {}
        while not results.empty():
            name, rank, error = results.get()
            found.setdefault(name, []).append(error and f"rank {rank}: {error}")
    return found


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_distributed_data_parallel(case: str, outcome: dict[str, list[str]]) -> None:
    assert outcome[case] == ["", ""]
