# SPDX-License-Identifier: MIT
"""Plans of the core for a lowered part, and what the adapter asks of one at each call."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import accumulate, compress, count
from typing import NamedTuple

import torch

from yolov9mem import _core
from yolov9mem._keep import Keep

from .. import devices
from .lower import Program, flows

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
        inputs: tuple[bool, ...],
        params: tuple[bool, ...],
        planar: tuple[torch.dtype | None, ...],
        *,
        segments: int | None,
        backend: str,
        cuda_graphs: bool = False,
    ) -> None:
        """``inputs`` and ``params`` say whose gradients are wanted; ``planar``: by input,
        the dtype of one that comes as (N, C, H, W), None of a packed one."""
        wanted = sum(
            4 * _numel(program.shapes[path])
            for path, w in zip(program.params, params)
            if w
        )
        if segments is None:
            segments = max(1, min(MOST_SEGMENTS, wanted // SEGMENT_BYTES))
        self.program, self.input_grads, self.param_grads = program, inputs, params
        self.planar = planar
        self.backend = core_backend(backend, program.device)
        self.use_settings()
        with devices.current(program.device):
            self.core = _core.Plan(
                program.graph,
                program.input_sizes,
                dtype=_name(program.dtype),
                keep=keep.rule,
                budget=keep.budget,
                backend=self.backend,
                input_grads=list(inputs),
                param_grads=list(params),
                segments=segments,
                replays=cuda_graphs,
                planar_inputs=[None if of is None else _name(of) for of in planar],
            )
        self.repeats = self.core.replays is not None
        self.segments: int = self.core.segments
        self.saved_bytes: int = self.core.saved_bytes
        self.forward_workspace_bytes: int = self.core.forward_workspace_bytes
        if program.on_cuda:
            # The block that backward will take again: a smaller one would fit nothing
            # afterwards and stay reserved beside it. The peak is backward's either way.
            self.forward_workspace_bytes = max(
                self.forward_workspace_bytes, self.core.backward_workspace_bytes
            )
        # The launches of a part are repeated where all that it works on lies in the same
        # place; what the allocator gives after the loss may be elsewhere.
        small = KEPT_WORKSPACE * self.core.peak_bytes
        left = small - self.forward_workspace_bytes
        self.keeps_workspace = self.repeats and left >= 0
        self.most_copies = left if self.keeps_workspace else -1  # bytes kept beside it
        ends = self.core.param_segments()
        self.leaving = [  # by segment: the params whose gradients it completes
            [i for i, end in enumerate(ends) if end == segment]
            for segment in range(self.segments)
        ]
        self._flows: dict[tuple[bool, ...], list[bool]] = {}
        self.segment_stage: list[int] = self.core.segment_stages()
        self.stage_segments = [  # by stage, in forward order
            [k for k, of in enumerate(self.segment_stage) if of == stage]
            for stage in range(len(program.part.stages))
        ]
        self.stage_inputs = _ranges([len(s.sources) for s in program.part.stages])
        self.stage_outputs = _ranges([len(s.outputs) for s in program.part.stages])
        self.last_reads: list[int] = self.core.input_stages()  # by input: of forward
        self.recompute = [  # by output: what it takes, None: it can't be recomputed
            None
            if needs is None
            else RecomputeNeeds(needs[0], *map(_numbers, needs[1:]))
            for needs in self.core.recompute_needs()
        ]
        self._masks: dict[tuple[bool, ...], Mask] = {}
        self._lock = threading.Lock()
        # By input: does no stage of backward need it before its own, the one that the gap
        # before it follows? Else many would be made again at once.
        needed = self.mask((True,) * len(program.part.outputs)).needed
        early = {
            i
            for stage, places in enumerate(self.stage_inputs)
            for i in needed[stage]
            if i not in places
        }
        self.own = [i not in early for i in range(len(inputs))]

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

    def mask(self, given: tuple[bool, ...]) -> Mask:
        """What backward does when only some outputs have gradients."""
        with self._lock:
            if given not in self._masks:
                self.use_settings()
                with devices.current(self.program.device):
                    self._masks[given] = Mask(self, list(given))
            return self._masks[given]


class Mask:
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
        self.whole = self._written_once(plan.leaving)
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
