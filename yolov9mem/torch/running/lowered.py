# SPDX-License-Identifier: MIT
"""A recording with its graphs, and what these have in a module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from yolov9mem._keep import Keep

from ..layout import follows_channels_last
from ..recording.ir import Recording, Ref
from .binding import Binding, Outside, Stale, planar_dtype
from .gradient_flow import learning_inputs
from .lower import Program
from .planned import TorchPlan, Wanted
from .recompute_choice import Recompute, choose_recompute
from .stock_calls import DRAWS

# Of one graph or recording: a training that freezes other layers at every step would add
# to them as long as it runs.
MOST_KNOWN = 64
_runs = itertools.count(1)


def drop_oldest(known: dict[Any, Any]) -> None:
    """Leaves the latest so many. Other threads may do so too."""
    for key in list(known)[:-MOST_KNOWN]:
        known.pop(key, None)


class Graph:
    """A program with its tensors and plans."""

    def __init__(self, program: Program, module: nn.Module) -> None:
        self.program = program
        self.binding = Binding(program, module)
        self.plans: dict[Any, TorchPlan] = {}
        self.last: TorchPlan | None = None

    def planar(self, leaves: list[Any]) -> tuple[torch.dtype | None, ...]:
        """By input, the dtype of an argument that the plan is to pack itself. How a stock
        call will lay out its result is not known when the plan is chosen."""
        dtype = self.program.dtype
        return tuple(
            planar_dtype(leaves[source.key], dtype) if source.kind == "input" else None
            for source in self.program.part.sources
        )


class Lowered:
    """A recording and its graphs, for one signature of the arguments."""

    def __init__(
        self, recording: Recording, programs: list[Program], module: nn.Module
    ) -> None:
        self.recording = recording
        self.graphs = [Graph(program, module) for program in programs]
        self.outside = Outside(recording, module)
        self.ran = 0
        self.draws = any(call.name in DRAWS for call in recording.calls)
        self._order: list[bool] | None = None
        self._learning: dict[Any, list[tuple[bool, ...]]] = {}
        self._recompute: dict[tuple[Any, ...], Recompute] = {}

    def check_order(self, params: list[list[Tensor]]) -> None:
        """Raises Stale where something draws in the order of memory of the recording, and
        a weight, of ``params`` by graph, is in another since then."""
        if self.draws:
            order = list(map(follows_channels_last, itertools.chain(*params)))
            self._order = order if self._order is None else self._order
            if order != self._order:
                raise Stale

    def recompute(self, plans: tuple[TorchPlan, ...], keep: Keep) -> Recompute:
        """What is recomputed with these plans, of the graphs so far."""
        known = self._recompute.get((keep, *plans))
        if known is None:
            known = choose_recompute(self.recording, keep, plans)
            self._recompute[(keep, *plans)] = known
            drop_oldest(self._recompute)
        return known

    def running(self) -> Lowered:
        """Itself; notes which run this is of all that there are."""
        self.ran = next(_runs)
        return self

    def bound(self, module: nn.Module) -> tuple[list[Binding], Outside]:
        """To the tensors of a replica, by graph and outside of the graphs."""
        bindings = [Binding(graph.program, module) for graph in self.graphs]
        return bindings, Outside(self.recording, module)

    def learning_inputs(
        self, leaves: list[Any], outside: Outside, params: tuple[tuple[bool, ...], ...]
    ) -> list[tuple[bool, ...]]:
        """By graph, which inputs want gradients; ``params``: which of its params do."""
        given = tuple(x.requires_grad for x in leaves if isinstance(x, Tensor))
        key = given, outside.learning(), params
        known = self._learning.get(key)
        if known is None:

            def learns(ref: Ref) -> bool:
                is_input = ref.kind == "input"
                tensor = leaves[ref.key] if is_input else outside.tensor(ref.key)
                return bool(tensor.requires_grad)

            known = self._follow(params, learns)
            self._learning[key] = known
            drop_oldest(self._learning)
        return known

    def wanted_at_most(self, leaves: list[Any]) -> Iterator[Wanted]:
        """By graph, when all learn that may."""

        def learns(ref: Ref) -> bool:
            return ref.kind != "input" or bool(leaves[ref.key].requires_grad)

        params = tuple(graph.binding.may_learn() for graph in self.graphs)
        inputs = self._follow(params, learns)
        for graph, of_inputs, of_params in zip(self.graphs, inputs, params):
            yield Wanted(of_inputs, of_params, graph.planar(leaves))

    def _follow(
        self, params: tuple[tuple[bool, ...], ...], learns: Callable[[Ref], bool]
    ) -> list[tuple[bool, ...]]:
        programs = [graph.program for graph in self.graphs]
        return learning_inputs(self.recording, programs, params, learns)
