# SPDX-License-Identifier: MIT
"""Plans of the core for a lowered part, and what the adapter asks of one at each call."""

from __future__ import annotations

import math
import threading
from collections import Counter
from itertools import accumulate, compress, count
from typing import NamedTuple

import torch

from yolov9mem import _core
from yolov9mem._keep import Keep

from .. import devices
from .binding import DTYPE_NAMES
from .gradient_flow import flows
from .lower import Program

# Gradients of a large graph leave backward in parts of about this many bytes.
SEGMENT_BYTES = 8 << 20
MOST_SEGMENTS = 6
KEPT_WORKSPACE = 1 / 20  # of the peak, where launches are repeated


def core_backend(backend: str, device: torch.device) -> str:
    """The core's name for it: "cuda" and "cuda:plain" with the number of the device."""
    if backend == "auto":
        backend = devices.kind(device)
    if not str(backend).startswith("cuda"):
        return backend
    plain = ":plain" if backend.endswith(":plain") else ""
    return f"cuda:{devices.index(device)}{plain}"


class Wanted(NamedTuple):
    """What a plan is for, beside a graph and a keep rule."""

    inputs: tuple[bool, ...]  # whose gradients are wanted
    params: tuple[bool, ...]
    # By input: the dtype of one that comes as (N, C, H, W), None of a packed one.
    planar: tuple[torch.dtype | None, ...]


class RecomputeNeeds(NamedTuple):
    """What the core takes to recompute an output."""

    workspace_bytes: int
    params: list[int]
    norms: list[int]


class TorchPlan:
    """A plan of the core and what the adapter asks of it at every call."""

    def __init__(
        self,
        program: Program,
        keep: Keep,
        wanted: Wanted,
        *,
        segments: int | None,
        backend: str,
        cuda_graphs: bool = False,
    ) -> None:
        self.program = program
        self.input_grads, self.param_grads, self.planar = wanted
        self.backend = core_backend(backend, program.device)
        self.use_settings()
        if segments is None:
            segments = self._usual_segments()
        self.core = self._core_plan(keep, segments, cuda_graphs)
        self.repeats = self.core.replays is not None
        self.segments: int = self.core.segments
        self.saved_bytes: int = self.core.saved_bytes
        self._size_workspace()
        self._place_stages()
        self._flows: dict[tuple[bool, ...], list[bool]] = {}
        self._backward_plans: dict[tuple[bool, ...], BackwardPlan] = {}
        self._lock = threading.Lock()
        self.recompute_needs = [  # by output: what it takes, None: it can't be recomputed
            None
            if needs is None
            else RecomputeNeeds(needs[0], *map(_numbers, needs[1:]))
            for needs in self.core.recompute_needs()
        ]
        self._place_reads()

    def _usual_segments(self) -> int:
        """Where nobody says how many: by the bytes of the gradients that are wanted."""
        wanted = compress(self.program.params, self.param_grads)
        size = sum(4 * math.prod(self.program.shapes[path]) for path in wanted)
        return max(1, min(MOST_SEGMENTS, size // SEGMENT_BYTES))

    def _core_plan(self, keep: Keep, segments: int, cuda_graphs: bool) -> _core.Plan:
        program = self.program
        with devices.current(program.device):
            return _core.Plan(
                program.graph,
                program.input_sizes,
                dtype=DTYPE_NAMES[program.dtype],
                keep=keep.rule,
                budget=keep.budget,
                backend=self.backend,
                input_grads=list(self.input_grads),
                param_grads=list(self.param_grads),
                segments=segments,
                replays=cuda_graphs,
                planar_inputs=[
                    None if of is None else DTYPE_NAMES[of] for of in self.planar
                ],
            )

    def _size_workspace(self) -> None:
        """How large forward's is, and whether backward gets the same one."""
        self.forward_workspace_bytes: int = self.core.forward_workspace_bytes
        if self.program.on_cuda:
            # The block that backward will take again: a smaller one would fit nothing
            # afterwards and stay reserved beside it. The peak is backward's either way.
            self.forward_workspace_bytes = max(
                self.forward_workspace_bytes, self.core.backward_workspace_bytes
            )
        # Behind a frozen front backward takes less, and has gradients beside it.
        least = 2 * self.core.backward_workspace_bytes
        self.drops_workspace = least < self.forward_workspace_bytes
        # The launches of a part are repeated where all that it works on lies in the same
        # place; what the allocator gives after the loss may be elsewhere.
        small = KEPT_WORKSPACE * self.core.peak_bytes
        left = small - self.forward_workspace_bytes
        self.keeps_workspace = self.repeats and left >= 0
        self.most_copies = left if self.keeps_workspace else -1  # bytes kept beside it

    def _place_stages(self) -> None:
        """Which segments, inputs and outputs are of which stage, and when params leave."""
        ends = self.core.param_segments()
        self.leaving = [  # by segment: the params whose gradients it completes
            [i for i, end in enumerate(ends) if end == segment]
            for segment in range(self.segments)
        ]
        stages = self.program.part.stages
        self.segment_stage: list[int] = self.core.segment_stages()
        self.stage_segments = [  # by stage, in forward order
            [k for k, of in enumerate(self.segment_stage) if of == stage]
            for stage in range(len(stages))
        ]
        self.stage_inputs = _ranges([len(stage.sources) for stage in stages])
        self.stage_outputs = _ranges([len(stage.outputs) for stage in stages])
        self.last_reads: list[int] = self.core.input_stages()  # by input: of forward

    def _place_reads(self) -> None:
        """By input, what backward does with it."""
        all_given = (True,) * len(self.program.part.outputs)
        needed = self.backward_plan(all_given).needed
        count = len(self.input_grads)
        read = {i for places in needed for i in places}
        self.read_back = [i in read for i in range(count)]
        # Does no stage of backward need it before its own, the one that the gap before it
        # follows? Else many would be recomputed at once.
        early = {
            i
            for stage, places in enumerate(self.stage_inputs)
            for i in needed[stage]
            if i not in places
        }
        self.own = [i in read and i not in early for i in range(count)]

    def use_settings(self) -> None:
        """Before the core is asked for sizes or runs: cuDNN's, as they were recorded."""
        if str(self.backend).startswith("cuda"):
            devices.extension().use_cudnn(*self.program.cudnn)

    def flows(self, inputs: tuple[bool, ...]) -> list[bool]:
        """By output: does a gradient flow through it? ``inputs``: which of the stages so
        far want one, of those whose gradients the plan computes."""
        known = self._flows.get(inputs)
        if known is None:
            later = len(self.input_grads) - len(inputs)
            flowing = flows(self.program, (*inputs, *[False] * later), self.param_grads)
            known = [flowing[value] for value in self.program.part.outputs]
            self._flows[inputs] = known
        return known

    def backward_plan(self, given: tuple[bool, ...]) -> BackwardPlan:
        """What backward does when only some outputs, those ``given``, have gradients."""
        with self._lock:
            known = self._backward_plans.get(given)
            if known is None:
                self.use_settings()
                with devices.current(self.program.device):
                    known = BackwardPlan(self, list(given))
                self._backward_plans[given] = known
            return known


class BackwardPlan:
    """Backward for one set of outputs with gradients."""

    def __init__(self, plan: TorchPlan, given: list[bool]) -> None:
        core = plan.core
        self.workspace_bytes: int = core.backward_workspace(given)
        self.reached_params: list[bool] = core.reached_params(given)
        self.reached_inputs: list[bool] = core.reached_inputs(given)
        self.touched: list[list[int]] = []  # by segment: params written in it
        for segment in range(plan.segments):
            touched = core.touched_params(segment, given)
            self.touched.append([i for i, t in enumerate(touched) if t])
        self.written_once = self._written_once(plan.leaving)
        first, last = core.gradient_segments(given)
        every = range(plan.segments)
        # By segment: inputs whose gradients it is the first to write, and outputs whose
        # gradients it is the last to read.
        self.begun = [[i for i, at in enumerate(first) if at == k] for k in every]
        self.ended = [[i for i, at in enumerate(last) if at == k] for k in every]
        first, last = core.input_segments(given)
        # By segment: inputs that it is the last to read; by stage: the first to read.
        self.read = [[i for i, at in enumerate(last) if at == k] for k in every]
        stages = [plan.segment_stage[at] if at >= 0 else -1 for at in first]
        self.needed = [
            [i for i, of in enumerate(stages) if of == stage]
            for stage in range(len(plan.stage_segments))
        ]

    def _written_once(self, leaving: list[list[int]]) -> list[list[tuple[int, int]]]:
        """By segment: (place in ``leaving``, param) of those that it alone writes."""
        times = Counter(i for touched in self.touched for i in touched)
        return [
            [
                (place, i)
                for place, i in enumerate(left)
                if times[i] == 1 and i in touched and self.reached_params[i]
            ]
            for left, touched in zip(leaving, map(set, self.touched))
        ]


def _ranges(counts: list[int]) -> list[range]:
    """Places of the first so many, of the next so many, ..."""
    ends = list(accumulate(counts))
    return [range(end - count, end) for count, end in zip(counts, ends)]


def _numbers(flags: list[bool]) -> list[int]:
    return list(compress(count(), flags))
