# SPDX-License-Identifier: MIT
"""The inputs of one forward's stages, as they were given and as the core reads them.

They are packed for the first stage that reads them, in forward and again in backward, and
let go after the last. What is recomputed (see recompute.py) is not held between.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import is_channels_last
from .arenas import unfilled
from .backward_state import BackwardState
from .binding import address, as_read, held_as_read
from .planned import TorchPlan
from .recompute import rebuilder, rebuilt


class Layout(NamedTuple):
    """How the gradient of an input is to be handed out."""

    dtype: torch.dtype
    is_channels_last: bool


class Inputs:
    """Those of the stages so far."""

    def __init__(self, plan: TorchPlan, counts: Counter[str]) -> None:
        self._plan, self._counts = plan, counts
        # Without their history, which begins with our own nodes: these hold this, and a
        # cycle through the engine is never collected. None: it is recomputed, or backward
        # does not read it.
        self._given: list[Tensor | None] = []
        self.layouts: list[Layout] = []
        self._packed: list[Tensor | None] = []
        self.addresses: list[Any] = [None] * len(plan.program.input_sizes)
        self._stages = 0  # so far
        self._room = plan.most_copies  # for copies that backward finds again

    # Forward

    def add(self, tensors: list[Tensor]) -> tuple[list[Tensor], dict[int, Any]]:
        """Those of the next stage: as they are held, and by place what makes some of them
        again. It holds nodes of earlier stages, so it is this one's that may hold it."""
        plan, first = self._plan, len(self._given)
        stage = plan.program.part.stages[self._stages]
        self._stages += 1
        rebuilders: dict[int, Any] = {}
        made: list[Tensor] = []
        for place, (x, alone) in enumerate(zip(tensors, stage.alone), first):
            node = rebuilder(x)
            if node is not None:
                rebuilders[place] = node
            elif alone:
                x = held_as_read(x, plan.program.dtype)
            held = node is None and plan.read_back[place]
            self._given.append(x.detach() if held else None)
            self.layouts.append(Layout(x.dtype, is_channels_last(x)))
            made.append(x)
        for place, x in enumerate(self._as_read(made, first), first):
            self._packed.append(x)
            self.addresses[place] = address(x)
        return made, rebuilders

    def saved(self) -> list[Tensor]:
        """What is to be held for backward."""
        return [x for x in self._given if x is not None]

    def end_stage(self) -> None:
        """After a stage of forward: what no later one reads goes, if there is no room."""
        last_reads = self._plan.last_reads
        for place, packed in enumerate(self._packed):
            if packed is not None and last_reads[place] < self._stages:
                self._let_go(place, packed)

    def _as_read(self, tensors: list[Tensor], first: int) -> list[Tensor]:
        """Those at ``first`` and after it, as the core reads them."""
        plan = self._plan
        with unfilled():
            read, copies = as_read(tensors, plan.program.dtype, plan.planar[first:])
        self._counts["inputs converted"] += copies
        return read

    def _let_go(self, place: int, packed: Tensor) -> None:
        """All but copies that there is room for: where autograd holds the same memory,
        what it gives back in backward counts, for hooks may have kept that elsewhere."""
        given = self._given[place]
        is_copy = given is None or given.data_ptr() != packed.data_ptr()
        is_read = self._plan.read_back[place]
        if is_read and is_copy and packed.nbytes <= self._room:
            self._room -= packed.nbytes
        else:
            self._packed[place] = self.addresses[place] = None

    # Backward

    def end_forward(self) -> None:
        """Autograd holds what is to be held."""
        self._given = []

    def begin_backward(
        self,
        saved: tuple[Tensor, ...],
        rebuilders: dict[int, Any],
        count: int,
        is_retained: bool,
    ) -> list[Tensor | None]:
        """Of the first ``count``, of whose stages `saved` and `add` gave the others: those
        still packed, which another backward finds again where the graph ``is_retained``."""
        held, read_back = iter(saved), self._plan.read_back
        self._given = [
            next(held) if place not in rebuilders and read_back[place] else None
            for place in range(count)
        ]
        packed = self._packed[:count]
        if not is_retained:
            self._packed = []
        return packed

    def provide(
        self, state: BackwardState, places: list[int], rebuilders: dict[int, Any]
    ) -> None:
        """Packs those that a stage of backward is the first to read."""
        for place in places:
            if state.inputs[place] is None:
                given = self._given[place]
                x = rebuilt(rebuilders[place]) if given is None else given
                state.set_input(place, self._as_read([x], place)[0])

    def end_backward(self, first: int) -> None:
        """Of a stage, whose inputs begin there."""
        del self._given[first:]

    def free(self) -> None:
        """Lets go of them."""
        self._given, self._packed = [], []
