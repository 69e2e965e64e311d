# SPDX-License-Identifier: MIT
"""What the segments of one backward share: gradients, their places and their masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arenas import unfilled
from .binding import address
from .lower import Program
from .planned import BackwardPlan


@dataclass
class BackwardState:
    """What the segments of one backward share."""

    latest: int  # the segment that ran last; the highest runs first
    mask: list[bool]  # by output: has it a gradient, as far as is known?
    inputs: list[Tensor | None]  # as the core reads them, while it needs them
    input_addresses: list[Any]  # of all stages
    params: list[Tensor]  # in fp32, as their gradients are
    param_addresses: list[Any]
    is_exact: bool = True  # has each gradient that was awaited come?
    plan: BackwardPlan | None = None  # what runs
    reached: BackwardPlan | None = None  # what the gradients that have come reach

    def __post_init__(self) -> None:
        outputs, params = len(self.mask), len(self.params)
        inputs = len(self.input_addresses)
        self.given = [False] * outputs  # has a gradient come?
        self.grad_outputs: list[Tensor | None] = [None] * outputs  # while they are read
        self.grad_output_addresses: list[Any] = [None] * outputs
        # From the first segment that writes them.
        self.grad_inputs: list[Tensor | None] = [None] * inputs
        self.grad_input_addresses: list[Any] = [None] * inputs
        # Those of segments that have begun.
        self.grad_params: list[Tensor | None] = [None] * params
        self.grad_addresses: list[Any] = [None] * params
        self.sums = bytearray(params)  # is its gradient added to what is there?

    def set_gradient(self, place: int, grad: Tensor) -> None:
        """Of an output, as the core reads it."""
        self.grad_outputs[place] = grad
        self.grad_output_addresses[place] = address(grad)

    def set_input(self, place: int, packed: Tensor) -> None:
        """As the core reads it."""
        self.inputs[place] = packed
        self.input_addresses[place] = address(packed)

    def end_reads(self, places: list[int]) -> None:
        """Lets go of inputs that have been read."""
        for place in places:
            self.inputs[place] = self.input_addresses[place] = None

    def end_outputs(self, places: list[int]) -> None:
        """Lets go of gradients that have been read."""
        for place in places:
            self.grad_outputs[place] = self.grad_output_addresses[place] = None

    def begin_inputs(self, places: list[int], program: Program) -> None:
        """Makes room for gradients of inputs, packed."""
        with unfilled():
            for i in places:
                shape = program.input_shapes[i]
                made = torch.empty(shape, dtype=program.dtype, device=program.device)
                self.grad_inputs[i], self.grad_input_addresses[i] = made, address(made)

    def end_input(self, i: int) -> Tensor | None:
        """The gradient of an input, complete and no longer ours."""
        grad = self.grad_inputs[i]
        self.grad_inputs[i] = self.grad_input_addresses[i] = None
        return grad

    def set_place(self, i: int, grad: Tensor) -> None:
        """The gradient of param ``i`` is to be written there."""
        _, kind, shape, _, device = self.param_addresses[i]
        self.grad_params[i] = grad
        self.grad_addresses[i] = (grad.data_ptr(), kind, shape, grad.stride(), device)

    def make_places(self, touched: list[int]) -> None:
        """For the gradients of those params that have none yet, laid out as these are."""
        with unfilled():
            for i in touched:
                if self.grad_params[i] is None:
                    self.set_place(i, torch.empty_like(self.params[i]))

    def take(self, i: int) -> Tensor | None:
        """The gradient of param ``i``, complete and no longer ours."""
        grad = self.grad_params[i]
        self.grad_params[i] = self.grad_addresses[i] = None
        assert self.reached is not None
        return grad if self.sums[i] or self.reached.reached_params[i] else None
