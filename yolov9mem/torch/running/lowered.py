# SPDX-License-Identifier: MIT
"""A recording with its graphs, and what these have in a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..recording.ir import Recording, Ref
from .binding import Binding, Outside
from .lower import Program
from .planned import TorchPlan


class Graph:
    """A program with its tensors and plans."""

    def __init__(self, program: Program, module: nn.Module) -> None:
        self.program = program
        self.binding = Binding(program, module)
        self.plans: dict[Any, TorchPlan] = {}
        self.last: TorchPlan | None = None


class Lowered:
    """A recording and its graphs, for one signature of the arguments."""

    def __init__(
        self, recording: Recording, programs: list[Program], module: nn.Module
    ) -> None:
        self.recording = recording
        self.graphs = [Graph(program, module) for program in programs]
        self.outside = Outside(recording, module)

    def bound(self, module: nn.Module) -> tuple[list[Binding], Outside]:
        """To the tensors of a replica, by graph and outside of the graphs."""
        bindings = [Binding(graph.program, module) for graph in self.graphs]
        return bindings, Outside(self.recording, module)

    def learning(
        self, leaves: list[Any]
    ) -> Iterator[tuple[tuple[bool, ...], tuple[bool, ...]]]:
        """By graph, the inputs and the params that want gradients when all params learn:
        those that are frozen now may not be later."""

        def learns(source: Ref) -> bool:
            return source.kind != "input" or leaves[source.key].requires_grad

        for graph in self.graphs:
            sources, params = graph.program.part.sources, graph.program.params
            yield tuple(map(learns, sources)), (True,) * len(params)
