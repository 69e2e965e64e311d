# SPDX-License-Identifier: MIT
"""Lowering: from a part of a recording to a graph of the C core, and its plans."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from typing import Any, ClassVar

import torch

from yolov9mem import _core
from yolov9mem._keep import Keep

from .. import devices
from ..processes import Sharing
from ..recording.fakes import join, own_tensors
from ..recording.ir import CannotLower, Node, NormCall, Part, Recording
from ..recording.parts import kinds_of

# Gradients of a large graph leave backward in parts of about this many bytes.
SEGMENT_BYTES = 8 << 20
MOST_SEGMENTS = 6


class Program:
    """A lowered part: the graph, and by which paths its tensors are found."""

    def __init__(
        self,
        part: Part,
        tensors: dict[str, torch.Tensor],
        device: torch.device | None = None,
    ) -> None:
        """``tensors``: of the recorded module, by path; ``device``: of the arguments.

        Raises CannotLower where those that the part reads are on several devices.
        """
        self.shapes = {path: tuple(t.shape) for path, t in tensors.items()}
        self.dtypes = {path: t.dtype for path, t in tensors.items()}
        self.part = part
        self.graph = _core.Graph()
        self.params: list[str] = []  # paths, by param number
        self.norms: list[NormCall] = []  # by norm number
        self.groups: list[Any] = []  # of processes that share norms
        self._param_number: dict[str, int] = {}
        self._norm_number: dict[int, int] = {}
        self._values: list[int] = []  # of the graph, by value of the part
        for number, stage in enumerate(part.stages):
            if number > 0:
                self.graph.stage()
            for node in part.nodes[stage.nodes]:
                self._values.append(self._build[node.op](self, node))
            for value in stage.outputs:
                self.graph.output(self._values[value])
        read = [tensors[path].device for path in self.reads()]
        places = sorted({str(place) for place in read})
        if len(places) > 1:
            reason = f"its tensors are on {' and '.join(places)}, must be on one device"
            raise CannotLower("forward", "", reason)
        self.device = device or (read[0] if read else torch.device("cpu"))
        self.on_cuda = devices.kind(self.device) == "cuda"
        self.cudnn = devices.cudnn_settings()
        self.dtype = compute_dtype(part, self.device)
        self.outputs = [
            (part.nodes[value].shape, part.nodes[value].dtype) for value in part.outputs
        ]
        self.input_sizes = [
            (node.shape[0], node.shape[2], node.shape[3])
            for node in part.nodes
            if node.op == "input"
        ]

    def reads(self) -> list[str]:
        """Paths of all tensors that the graph reads; a detector has others, such as the
        strides of its levels, which stay on the CPU."""
        running = [path for n in self.norms for path in (n.mean, n.variance) if path]
        return [*self.params, *running]

    def _param(self, path: str | None) -> int:
        if path is None:
            return -1
        if path not in self._param_number:
            shape = self.shapes[path]
            if len(shape) == 2:  # of a linear layer
                shape = (*shape, 1, 1)
            self._param_number[path] = self.graph.param(shape, path)
            self.params.append(path)
        return self._param_number[path]

    def _input(self, node: Node) -> int:
        return self.graph.input(node.shape[1])

    def _conv(self, node: Node) -> int:
        weight, bias, stride, padding, dilation, groups = node.attributes
        return self.graph.conv(
            self._values[node.operands[0]],
            self._param(weight),
            self._param(bias),
            stride,
            padding,
            dilation,
            groups,
            node.path,
        )

    def _norm(self, node: Node) -> int:
        number = node.attributes[0]
        if number not in self._norm_number:
            call = self.part.norms[number]
            self._norm_number[number] = self.graph.norm(
                node.shape[1],
                self._param(call.gamma),
                self._param(call.beta),
                call.path,
            )
            self.norms.append(call)
            self._share(self._norm_number[number], call.sharing)
        x = self._values[node.operands[0]]
        return self.graph.batch_norm(x, self._norm_number[number], node.path)

    def _share(self, norm: int, sharing: Sharing | None) -> None:
        if sharing is not None:
            group, processes, rank = sharing
            if group not in self.groups:
                self.groups.append(group)
            number = self.groups.index(group) + 1
            self.graph.share(norm, number, processes, rank)

    def _activation(self, node: Node) -> int:
        kind, slope, low, high = node.attributes
        x = self._values[node.operands[0]]
        return self.graph.activation(x, kind, slope, low, high, node.path)

    def _add(self, node: Node) -> int:
        return self.graph.add([self._values[v] for v in node.operands], node.path)

    def _concat(self, node: Node) -> int:
        return self.graph.concat([self._values[v] for v in node.operands], node.path)

    def _slice(self, node: Node) -> int:
        first, count = node.attributes
        return self.graph.slice(self._values[node.operands[0]], first, count, node.path)

    def _max_pool(self, node: Node) -> int:
        kernel, stride, padding, ceil = node.attributes
        x = self._values[node.operands[0]]
        return self.graph.max_pool(x, kernel, stride, padding, ceil, name=node.path)

    def _avg_pool(self, node: Node) -> int:
        kernel, stride, padding, ceil, pad_counts = node.attributes
        x = self._values[node.operands[0]]
        name = node.path
        return self.graph.avg_pool(
            x, kernel, stride, padding, ceil, pad_counts, name=name
        )

    def _upsample(self, node: Node) -> int:
        scale, size = node.attributes
        x = self._values[node.operands[0]]
        if scale is None:
            return self.graph.upsample(x, size=size, name=node.path)
        return self.graph.upsample(x, scale=scale, name=node.path)

    def _multiply(self, node: Node) -> int:
        a, b = (self._values[v] for v in node.operands)
        return self.graph.multiply(a, b, node.path)

    def _mean(self, node: Node) -> int:
        (axes,) = node.attributes
        return self.graph.mean(self._values[node.operands[0]], axes, node.path)

    def _maximum(self, node: Node) -> int:
        (axes,) = node.attributes
        return self.graph.maximum(self._values[node.operands[0]], axes, node.path)

    _build: ClassVar[dict[str, Callable[[Program, Node], int]]] = {
        "input": _input,
        "conv": _conv,
        "norm": _norm,
        "activation": _activation,
        "add": _add,
        "concat": _concat,
        "slice": _slice,
        "max_pool": _max_pool,
        "avg_pool": _avg_pool,
        "upsample": _upsample,
        "multiply": _multiply,
        "mean": _mean,
        "maximum": _maximum,
    }


def compute_dtype(part: Part, device: torch.device) -> torch.dtype:
    """The dtype of every value: that of the convolutions; fp16 in fp32 on the CPU."""
    kinds = kinds_of(part.nodes)
    on_cuda = devices.kind(device) == "cuda"
    half = {torch.bfloat16, *([torch.float16] if on_cuda else [])}
    return kinds.pop() if len(kinds) == 1 and kinds <= half else torch.float32


def core_backend(backend: str, device: torch.device) -> str:
    """The core's name for it: "cuda" and "cuda:plain" with the number of the device."""
    if backend == "auto":
        backend = devices.kind(device)
    if not str(backend).startswith("cuda"):
        return backend
    plain = ":plain" if backend.endswith(":plain") else ""
    return f"cuda:{devices.index(device)}{plain}"


class TorchPlan:
    """A plan of the core and what the adapter asks of it at every call."""

    def __init__(
        self,
        program: Program,
        keep: Keep,
        inputs: tuple[bool, ...],
        params: tuple[bool, ...],
        segments: int | None,
        backend: str,
        cuda_graphs: bool = False,
    ) -> None:
        """``inputs`` and ``params`` say whose gradients are wanted."""
        wanted = sum(
            4 * _numel(program.shapes[path])
            for path, w in zip(program.params, params)
            if w
        )
        if segments is None:
            segments = max(1, min(MOST_SEGMENTS, wanted // SEGMENT_BYTES))
        self.program, self.input_grads, self.param_grads = program, inputs, params
        self.backend = core_backend(backend, program.device)
        self.use_settings()
        with devices.current(program.device):
            self.core = _core.Plan(
                program.graph,
                program.input_sizes,
                dtype=str(program.dtype).removeprefix("torch."),
                keep=keep.rule,
                budget=keep.budget,
                backend=self.backend,
                input_grads=list(inputs),
                param_grads=list(params),
                segments=segments,
                replays=cuda_graphs,
            )
        # The launches of a part are repeated where all that it works on lies in the same
        # place; what the allocator gives during the loss does not.
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
        self._masks: dict[tuple[bool, ...], Mask] = {}
        self._lock = threading.Lock()

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


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def flows(
    program: Program, inputs: tuple[bool, ...], params: tuple[bool, ...]
) -> list[bool]:
    """By value of the part: does a wanted gradient flow through it?"""
    wanted = {path for path, grad in zip(program.params, params) if grad}
    grads = iter(inputs)
    flowing: list[bool] = []
    for node in program.part.nodes:
        if node.op == "input":
            flowing.append(next(grads))
            continue
        own: tuple[str | None, ...] = ()
        if node.op == "conv":
            own = node.attributes[:2]
        elif node.op == "norm":
            call = program.part.norms[node.attributes[0]]
            own = (call.gamma, call.beta)
        flowing.append(
            any(flowing[v] for v in node.operands) or bool(wanted & set(own))
        )
    return flowing


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers and tensor attributes by path, tied ones under each path."""
    return {
        join(path, name): tensor
        for path, part in module.named_modules()
        for name, tensor in own_tensors(part)
    }


def lower(
    recording: Recording, module: torch.nn.Module, device: torch.device | None = None
) -> list[Program]:
    """Lowers the parts of a recording of ``module`` whose arguments are on ``device``.

    Raises CannotLower where the tensors of one part are on several devices.
    """
    tensors = tensors_of(module)
    return [Program(part, tensors, device) for part in recording.parts]
