# SPDX-License-Identifier: MIT
"""DistributedDataParallel with gloo: two processes, all the ways the field sets it up.

The children are started once; each case is a function that both ranks run.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models_for_tests import Brick, Net, assert_close, backward, leaves, ran_in_core
from rule import holds, pooled_error
from shared_run import free_port, let_gloo_finish
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import yolov9mem.torch as ym
from yolov9mem.torch.running import shared_call

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
    stock_backward = shared_call.Call.backward

    def logged(call: shared_call.Call, segment: int, nodes: Any) -> Any:
        events.append(segment)
        return stock_backward(call, segment, nodes)

    shared_call.Call.backward = logged  # type: ignore[method-assign]
    try:
        for _ in range(2):  # DDP orders its buckets by the first iteration
            ddp.zero_grad()
            events.clear()
            backward(ddp(batch(rank)))
    finally:
        shared_call.Call.backward = stock_backward  # type: ignore[method-assign]
    segments = [event for event in events if event != "all-reduce"]
    assert segments == sorted(segments, reverse=True), events
    assert len(segments) == 4, events
    assert events.index("all-reduce") < events.index(segments[-1]), events
    assert_close([p.grad for p in ddp.parameters()], expected(), 1e-3)


def synced(module: nn.Module, group: Any = None) -> nn.Module:
    return nn.SyncBatchNorm.convert_sync_batchnorm(module, group)


def synced_ddp(module: nn.Module, group: Any = None, **kwargs: Any) -> nn.Module:
    """PyTorch takes SyncBatchNorm on GPUs alone; what comes later, it does not see."""
    ddp = DistributedDataParallel(ym.checkpoint(module, **kwargs))
    synced(ddp.module, group)
    return ddp


def check_whole_batch(ddp: nn.Module, rank: int) -> None:
    """Against stock's plain batch norm on the batch of all ranks, in float64. (Stock's
    SyncBatchNorm needs a GPU.)"""
    outputs, _ = leaves_and_loss(ddp, batch(rank))
    stock = model()
    double, whole = copy.deepcopy(stock).double(), [batch(r) for r in range(WORLD)]
    of_stock, _ = leaves_and_loss(stock, torch.cat(whole))
    exact, _ = leaves_and_loss(double, torch.cat(whole).double())
    rows = slice(2 * rank, 2 * rank + 2)
    found = [
        [y[rows] if whole else y for y in outputs_of]
        for outputs_of, whole in ((outputs, False), (of_stock, True), (exact, True))
    ]
    assert within_twice(*found)
    # Each rank's loss is a sum: DDP's mean over ranks is a half of the whole batch's.
    grads = [[p.grad for p in m.parameters()] for m in (ddp, stock, double)]
    assert within_twice(grads[0], *([g / WORLD for g in of] for of in grads[1:]))
    state = [list(m.buffers()) for m in (ddp, stock, double)]
    assert within_twice(*state)
    for buffer in ddp.buffers():
        parts = [torch.empty_like(buffer) for _ in range(WORLD)]
        dist.all_gather(parts, buffer)
        assert torch.equal(*parts)


def leaves_and_loss(module: nn.Module, x: torch.Tensor) -> tuple[list, torch.Tensor]:
    outputs = leaves(module(x))
    loss = sum(y.double().square().sum() for y in outputs)
    loss.backward()
    return [y.detach() for y in outputs], loss


def within_twice(ours: list, stock: list, exact: list) -> bool:
    errors = [pooled_error(of, exact) for of in (ours, stock)]
    return holds(*errors)


def sync_batch_norm(rank: int) -> None:
    for keep in ("all", "conv", "min"):
        ddp = synced_ddp(model(), keep=keep, segments=3)
        check_whole_batch(ddp, rank)
        assert ran_in_core(ddp.module) == 1


def sync_batch_norm_of_a_group(rank: int) -> None:
    group = dist.new_group(list(range(WORLD)))
    ddp = synced_ddp(model(), group)
    check_whole_batch(ddp, rank)
    assert ran_in_core(ddp.module) == 1


def sync_batch_norm_of_a_group_of_one(rank: int) -> None:
    """Is plain batch norm."""
    groups = [dist.new_group([r]) for r in range(WORLD)]
    ddp = synced_ddp(model(), groups[rank])
    backward(ddp(batch(rank)))
    check_grads(ddp)


def sync_batch_norm_between_stages(rank: int) -> None:
    """A stock call divides the graph."""

    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = Brick(3, 8), Brick(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.sin(self.first(x)))

    ddp = synced_ddp(Divided(), strict=False)
    outputs, _ = leaves_and_loss(ddp, batch(rank))
    exact = Divided().double()
    whole = torch.cat([batch(r) for r in range(WORLD)]).double()
    truth, _ = leaves_and_loss(exact, whole)
    assert_close(outputs, [y[2 * rank : 2 * rank + 2].float() for y in truth], 1e-3)
    grads = [p.grad.float() / WORLD for p in exact.parameters()]
    assert_close([p.grad for p in ddp.parameters()], grads, 1e-3)
    assert ran_in_core(ddp.module) == 1


def evaluation_and_frozen_norms_ask_nobody(rank: int) -> None:
    module = ym.checkpoint(synced(model()))
    for part in module.modules():
        if isinstance(part, nn.SyncBatchNorm):
            part.eval()
    if rank == 0:  # the other takes no part
        backward(module(batch(rank)))
        module.eval()
        module(batch(rank))


class OwnForward(nn.SyncBatchNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.BatchNorm2d.forward(self, x)


def a_subclass_runs_its_own_forward(rank: int) -> None:
    torch.manual_seed(0)
    stock = Brick(3, 8)
    stock.bn = OwnForward(8)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_close(ours(batch(rank)), stock(batch(rank)), 1e-5)


def a_lost_process_is_an_error(rank: int) -> None:
    module = ym.checkpoint(synced(model()))
    if rank == 0:
        with pytest.MonkeyPatch.context() as patch:

            def fail(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError("Connection closed by peer")

            patch.setattr(dist, "all_reduce", fail)
            with pytest.raises(RuntimeError, match="closed by peer"):
                module(batch(rank))
    dist.barrier()
    backward(module(batch(rank)))


class Gathered(torch.autograd.Function):
    """The sum over the processes, as synchronised batch norms of others make it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.zeros_like(x) for _ in range(WORLD)]
        dist.all_gather(parts, x)
        return torch.stack(parts).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class Exchanges(nn.Module):
    def __init__(self, by_function: bool) -> None:
        super().__init__()
        self.first, self.last = Brick(3, 8, 3), Brick(8, 8, 3)
        self.by_function = by_function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        mean = x.mean((2, 3), keepdim=True).contiguous()
        if self.by_function:
            return self.last(x + Gathered.apply(mean))
        mean = mean.detach()
        dist.all_reduce(mean)
        return self.last(x + mean)


def a_forward_that_exchanges_tensors_stays_stock(rank: int) -> None:
    """As a whole, at every size; its parts are swapped."""
    for by_function in (False, True):
        torch.manual_seed(0)
        stock = Exchanges(by_function)
        ours = ym.checkpoint(copy.deepcopy(stock), "min", strict=False)
        for size in (16, 12, 8):
            x = batch(rank)[..., :size]
            assert_close(ours(x), stock(x), 1e-4)
            backward(ours(x))
        rows = {row.path: row.state for row in ym.report(ours).rows}
        assert rows[""] == "stock" and rows["first"] == rows["last"] == "swapped"


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
    sync_batch_norm,
    sync_batch_norm_of_a_group,
    sync_batch_norm_of_a_group_of_one,
    sync_batch_norm_between_stages,
    evaluation_and_frozen_norms_ask_nobody,
    a_subclass_runs_its_own_forward,
    a_lost_process_is_an_error,
    a_forward_that_exchanges_tensors_stays_stock,
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
        let_gloo_finish()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcome() -> dict[str, list[str]]:
    with mp.get_context("spawn").Manager() as manager:
        results = manager.Queue()
        mp.spawn(child, (free_port(), results), nprocs=WORLD)
        found: dict[str, list[str]] = {}
        while not results.empty():
            name, rank, error = results.get()
            found.setdefault(name, []).append(error and f"rank {rank}: {error}")
    return found


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_distributed_data_parallel(case: str, outcome: dict[str, list[str]]) -> None:
    assert outcome[case] == ["", ""]
