# SPDX-License-Identifier: MIT
"""Threads that stand for processes which share batch norms: each has its part of a batch,
its own graph and plan, and waits for the others in every sum. One runs at a time: the
emulation of CUDA has one GPU."""

from __future__ import annotations

import copy
import ctypes as C
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from graph_oracle import Run, Tracer, nhwc


class Group:
    """What sums over the members of one group."""

    def __init__(self, members: int) -> None:
        self.barrier = threading.Barrier(members, timeout=60)
        self.turn = threading.Lock()
        self.given: dict[int, np.ndarray] = {}
        self.sums = 0

    def add(self, rank: int, address: int, count: int) -> None:
        """The numbers of ``rank`` become the sum, in the order of the ranks."""
        own = np.ctypeslib.as_array((C.c_double * count).from_address(address))
        self.given[rank] = own.copy()
        self.turn.release()
        try:
            self.barrier.wait()
            assert {x.size for x in self.given.values()} == {count}
            own[:] = sum(self.given[rank] for rank in sorted(self.given))
            if self.barrier.wait() == 0:
                self.sums += 1
        finally:
            self.turn.acquire()


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """What ``work`` returns for each rank; raises what the first of them has raised."""
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = work(rank)
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found.values():
        if isinstance(value, BaseException):
            raise value
    return [found[rank] for rank in range(count)]


class Parts:
    """A traced batch in parts, one for each process, with norms that they share.

    trace: makes the whole batch's tracer, the same one each time.
    sizes: images of each process.
    shared: which norms are shared; the others have statistics of their own part.
    keeps: rules of the single processes.
    """

    def __init__(
        self,
        trace: Callable[[], tuple[Tracer, list[dict]]],
        sizes: Sequence[int],
        shared: Callable[[int], bool] = lambda norm: True,
        keeps: Sequence[str] = (),
        **request: Any,
    ) -> None:
        self.group, ends = Group(len(sizes)), np.cumsum(sizes)
        self.runs: list[Run] = []
        self.rows = [slice(end - n, end) for end, n in zip(ends, sizes)]
        for rank, rows in enumerate(self.rows):
            whole, before = trace()
            norms = [i for i, n in enumerate(before) if len(n["mean"])]
            for norm in filter(shared, norms):
                whole.graph.share(norm, 1, len(sizes), rank)
            part = copy.copy(whole)
            part.inputs = [x[rows] for x in whole.inputs]
            own = {"keep": keeps[rank]} if keeps else {}
            run = Run(part, before, **request, **own)
            run.sum = self._sum_of(rank)
            self.runs.append(run)

    def _sum_of(self, rank: int) -> Callable[[int, int, int], None]:
        def add(group: int, address: int, count: int) -> None:
            assert group == 1
            self.group.add(rank, address, count)

        return add

    def step(self, grads: list[torch.Tensor | None]) -> None:
        """Forward and backward of all parts; ``grads``: of the whole batch's outputs."""

        def work(rank: int) -> None:
            rows, run = self.rows[rank], self.runs[rank]
            with self.group.turn:
                run.forward()
                run.backward([None if g is None else nhwc(g[rows]) for g in grads])

        in_threads(work, len(self.runs))

    def outputs(self) -> list[np.ndarray]:
        """Of the whole batch."""
        return _joined([run.outputs for run in self.runs])

    def grad_inputs(self) -> list[np.ndarray | None]:
        """Of the whole batch."""
        return _joined([run.grad_inputs for run in self.runs])

    def grad_params(self) -> list[np.ndarray | None]:
        """Summed over the parts, as DistributedDataParallel does (and divides)."""
        return [
            None if parts[0] is None else sum(p.astype(np.float64) for p in parts)
            for parts in zip(*(run.grad_params for run in self.runs), strict=True)
        ]


def _joined(by_rank: list[list[Any]]) -> list[Any]:
    return [
        None if parts[0] is None else np.concatenate(parts)
        for parts in zip(*by_rank, strict=True)
    ]
