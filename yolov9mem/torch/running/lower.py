# SPDX-License-Identifier: MIT
"""Lowering: from a part of a recording to a graph of the C core."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from yolov9mem import _core

from .. import devices
from ..processes import Sharing
from ..recording.fakes import join, own_tensors
from ..recording.ir import CannotLower, Node, NormCall, Part, Recording
from ..recording.parts import kinds_of


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
        self.norms: list[NormCall | None] = []  # by norm number; None: an affine call
        self.groups: list[Any] = []  # of processes that share norms
        self._param_number: dict[str, int] = {}
        self._param_shape: dict[str, tuple[int, ...]] = {}
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
        shapes = [node.shape for node in part.nodes if node.op == "input"]
        self.input_shapes = [(n, h, w, c) for n, c, h, w in shapes]  # packed
        self.input_sizes = [shape[:3] for shape in self.input_shapes]

    def reads(self) -> list[str]:
        """Paths of all tensors that the graph reads; a detector has others, such as the
        strides of its levels, which stay on the CPU."""
        norms = (norm for norm in self.norms if norm is not None)
        return [*self.params, *(path for norm in norms for path in norm.running)]

    def _param(self, path: str | None, shape: tuple[int, ...] | None = None) -> int:
        if path is None:
            return -1
        if shape is None:
            shape = self.shapes[path]
            if len(shape) == 2:  # of a linear layer
                shape = (*shape, 1, 1)
        if path not in self._param_number:
            self._param_number[path] = self.graph.param(shape, path)
            self._param_shape[path] = shape
            self.params.append(path)
        if shape != self._param_shape[path]:
            reason = "it is a weight in one call and numbers of channels in another"
            raise CannotLower("forward", path, reason)
        return self._param_number[path]

    def _numbers(self, path: str | None) -> int:
        """A parameter of any shape with one number for each channel, or for all."""
        count = 0 if path is None else math.prod(self.shapes[path])
        return self._param(path, (count,))

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

    def _conv_transpose(self, node: Node) -> int:
        weight, stride, padding, output_padding, dilation, groups = node.attributes
        return self.graph.conv_transpose(
            self._values[node.operands[0]],
            self._param(weight),
            stride,
            padding,
            output_padding,
            dilation,
            groups,
            node.path,
        )

    def _affine(self, node: Node) -> int:
        scale, shift, *paths = node.attributes
        gamma, bias = map(self._numbers, paths)
        x = self._values[node.operands[0]]
        self.norms.append(None)
        return self.graph.affine(x, scale, shift, bias, gamma, node.path)

    def _prelu(self, node: Node) -> int:
        """relu(x) + slope * min(x, 0). The bound is above 0, where the gradient of the
        second term is PyTorch's then, and too small to be seen in the sum."""
        x, name = self._values[node.operands[0]], node.path
        positive = self.graph.activation(x, "relu", name=name)
        tiny = torch.finfo(torch.float32).tiny
        negative = self.graph.activation(x, "hardtanh", 0.0, -math.inf, tiny, name)
        slope = self._numbers(node.attributes[0])
        scaled = self.graph.affine(negative, gamma=slope, name=name)
        self.norms.append(None)
        return self.graph.add([positive, scaled], name)

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
        scale, size, mode, corners = node.attributes
        return self.graph.upsample(
            self._values[node.operands[0]],
            scale,
            size if scale is None else None,
            node.path,
            mode,
            corners,
        )

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
        "conv_transpose": _conv_transpose,
        "affine": _affine,
        "prelu": _prelu,
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
