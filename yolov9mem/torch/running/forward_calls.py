# SPDX-License-Identifier: MIT
"""From the stages' outputs to what forward returns: the stock calls around them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from yolov9mem._keep import Keep

from .. import devices
from ..recording.gaps import Gap
from ..recording.ir import Ref, Stage, StockCall
from .autograd_nodes import made_by
from .binding import Outside
from .lowered import Lowered
from .planned import TorchPlan
from .promises import Promise, promised
from .recompute import SharedResult, rebuilder, recomputed_later
from .recomputed_outputs import RecomputedOutput
from .stock_calls import Caller
from .surroundings import Surroundings


class Replay:
    """One forward: what the graphs and the stock calls have made so far."""

    def __init__(
        self,
        lowered: Lowered,
        outside: Outside,
        arguments: tuple[Any, Any],
        leaves: list[Any],
        keep: Keep,
    ) -> None:
        """``leaves``: of ``arguments``, which are (args, kwargs). ``keep`` says which gaps
        may be recomputed in backward."""
        self._lowered, self._keep = lowered, keep
        self._recording, self._outside = lowered.recording, outside
        self._arguments, self._leaves = arguments, leaves
        self._device = devices.of(leaves)
        self._caller = Caller(self._device)
        self._plans: tuple[TorchPlan, ...] = ()  # of the graphs so far
        self._params: list[Tensor] = []  # of the latest
        self._recompute = lowered.recompute((), keep)
        self._promises: dict[Ref, Promise] = {}  # of what is not held
        self._surroundings: Surroundings | None = None  # once a gap asks
        self._made: dict[Ref, Tensor] = {}  # values and results of stock calls
        self._fed: dict[Ref, Tensor] = {}  # what is recomputed, as stages read it
        self._stages = 0  # how many have run
        self._next = 0  # stock call
        self.go_on()

    def inputs(self, stage: Stage) -> list[Tensor]:
        """What the stage reads."""
        return [self._source(ref) for ref in stage.sources]

    def begin_graph(self, plan: TorchPlan, params: list[Tensor]) -> None:
        """The next one runs, with this plan and these parameters."""
        self._plans, self._params = (*self._plans, plan), params
        self._recompute = self._lowered.recompute(self._plans, self._keep)

    def add(self, stage: Stage, outputs: list[Tensor]) -> None:
        """What the next stage has made."""
        for value, y in zip(stage.values, outputs):
            ref = Ref("value", value)
            self._made[ref] = y
            made = made_by(y) if ref in self._recompute.outputs else None
            if made is not None:
                self._promises[ref] = RecomputedOutput(*made, self._params, y)
        self._let_go(stage)
        self._stages += 1

    def go_on(self) -> None:
        """The stock calls that follow the latest stage."""
        calls = self._recording.calls
        while self._next < len(calls) and calls[self._next].after == self._stages:
            gap = self._recompute.gaps.get(self._next)
            if gap is not None and self._can_be_recomputed(gap):
                self._make_gap(gap)
            else:
                self._make(calls[self._next])

    def _make(self, call: StockCall) -> None:
        promises = self._promises_of(call.refs)
        with promised(promises):
            made = self._caller.make(call, self._resolve)
        for leaf, tensor in enumerate(made):
            ref = Ref("stock", (self._next, leaf))
            self._made[ref] = tensor
            for promise in promises:
                if promise.has_memory_of(tensor):  # a view
                    self._promises[ref] = promise
        self._let_go(call)
        self._next += 1

    def result(self) -> Any:
        """What forward returns, after the last part."""
        done = self._recording
        for write in done.writes:
            self._container(write.path)[write.key] = self._resolve(write.ref)
        if done.out_path is not None:
            return self._container(done.out_path)
        return tree_unflatten(
            [self._resolve(x) for x in done.out_leaves], done.out_spec
        )

    def _container(self, path: tuple[Any, ...]) -> Any:
        found: Any = self._arguments
        for key in path:
            found = found[key]
        return found

    def _resolve(self, leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        if leaf.kind in ("value", "stock"):
            return self._made[leaf]
        if leaf.kind == "input":
            return self._leaves[leaf.key]
        return self._outside.tensor(leaf.key) if leaf.kind == "path" else leaf.key

    def _source(self, ref: Ref) -> Any:
        fed = self._fed.get(ref)
        return self._resolve(ref) if fed is None else fed

    def _promises_of(self, refs: Collection[Ref]) -> list[Promise]:
        return [self._promises[ref] for ref in refs if ref in self._promises]

    def _can_be_recomputed(self, gap: Gap) -> bool:
        if gap.draws and devices.is_capturing(self._device):
            return False  # the generator's state, which would be put back, is not there
        # Forbidden is what torch.utils.checkpoint works with, else.
        return torch._C._autograd._saved_tensors_hooks_is_enabled()

    def _make_gap(self, gap: Gap) -> None:
        given = [self._resolve(ref) for ref in gap.reads]
        calls = self._recording.calls
        promises = self._promises_of(gap.reads)
        if self._surroundings is None:
            self._surroundings = Surroundings()
        made = recomputed_later(
            gap,
            calls,
            self._caller,
            given,
            self._recompute.feeds,
            promises,
            self._surroundings,
        )
        self._made.update(made.makes)
        self._fed.update(made.feeds)
        for ref, tensor in made.shares:
            self._made[ref] = tensor
            node = rebuilder(tensor)
            if node is not None:
                self._promises[ref] = SharedResult(tensor, node)
        for number in gap.calls:
            self._let_go(calls[number])
        self._next = gap.calls.stop

    def _let_go(self, step: Stage | StockCall) -> None:
        for ref in step.done_with:
            self._made.pop(ref, None)
            self._fed.pop(ref, None)
            self._promises.pop(ref, None)
