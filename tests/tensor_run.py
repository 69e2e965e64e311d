# SPDX-License-Identifier: MIT
"""Plans on torch's tensors, emulated or on a GPU: memory from torch's allocator, its
current stream, arrays as tuples; and their results beside float64 autograd.
"""

from __future__ import annotations

import math

import cuda_emulation as ce
import torch
from graph_oracle import Tracer
from random_graphs import elan

from yolov9mem import _core

# Relative L2 error of a value after a chain of a dozen roundings of its type.
LIMIT = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
EMULATED = {
    "emulated": "ym_cuda_plain_backend",
    "emulated cuDNN": "ym_cuda_backend",
}


class TensorRun:
    """Forward and backward of a tracer's graph on tensors of one device."""

    def __init__(
        self,
        t: Tracer,
        backend: str,
        dtype: torch.dtype,
        keep: str,
        planar: torch.dtype | None = None,
    ) -> None:
        """planar: in which dtype all inputs come as (N, C, H, W)."""
        emulated = backend in EMULATED
        self.device = torch.device("cpu" if emulated else "cuda:0")
        self.t, self.dtype = t, dtype
        self.plan = _core.Plan(
            t.graph,
            [(x.shape[0], *x.shape[2:]) for x in t.inputs],
            dtype=str(dtype).removeprefix("torch."),
            keep=keep,
            backend=ce.capsule(EMULATED[backend]) if emulated else backend,
            input_grads=[True] * len(t.inputs),
            param_grads=[True] * len(t.params),
            planar_inputs=[planar and str(planar).removeprefix("torch.")]
            * len(t.inputs),
        )
        packed = [self.put(x.permute(0, 2, 3, 1), dtype) for x in t.inputs]
        self.inputs = (
            packed if planar is None else [self.put(x, planar) for x in t.inputs]
        )
        self.grad_inputs = [torch.full_like(x, math.nan) for x in packed]
        self.params = [self.put(p, torch.float32) for p in t.params]
        self.running = [
            [torch.zeros(len(n["mean"])), torch.ones(len(n["mean"]))] for n in t.norms
        ]
        self.running = [[self.put(x, x.dtype) for x in pair] for pair in self.running]
        self.norms = [
            (self.tuple(m), self.tuple(v), 1e-3, 0.03, True, True) if len(m) else None
            for m, v in self.running
        ]

    def put(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.detach().to(self.device, dtype).contiguous().clone()

    def tuple(self, x: torch.Tensor) -> tuple:
        kind = str(x.dtype).removeprefix("torch.")
        index = -1 if self.device.type == "cpu" else 0
        return (x.data_ptr(), kind, tuple(x.shape), x.stride(), index)

    def arena(self, size: int) -> torch.Tensor:
        whole = torch.full((size + 64,), 0xFF, dtype=torch.uint8, device=self.device)
        skip = -whole.data_ptr() % 64
        return whole[skip : skip + size]

    def stream(self) -> int:
        return (
            0 if self.device.type == "cpu" else torch.cuda.current_stream().cuda_stream
        )

    def forward(self) -> list[torch.Tensor]:
        p = self.plan
        outputs = [
            torch.empty(s, dtype=self.dtype, device=self.device)
            for s in p.output_shapes
        ]
        self.saved = self.arena(p.saved_bytes)
        work = self.arena(p.forward_workspace_bytes)
        common = [[self.tuple(x) for x in part] for part in (self.inputs, self.params)]
        arenas = (self.tuple(self.saved), self.tuple(work), self.stream())
        p.forward(*common, self.norms, [self.tuple(y) for y in outputs], *arenas)
        return outputs

    def backward(self, grads: list[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of inputs and parameters; of what no output reads they are zeros."""
        p = self.plan
        work = self.arena(p.backward_workspace(None))
        common = [[self.tuple(x) for x in part] for part in (self.inputs, self.params)]
        arenas = (self.tuple(self.saved), self.tuple(work), self.stream())
        given = [self.put(g.permute(0, 2, 3, 1), self.dtype) for g in grads]
        grad_inputs, grad_params = (
            [torch.full_like(x, math.nan if read else 0) for x, read in zip(*pair)]
            for pair in (
                (self.grad_inputs, p.reached_inputs(None)),
                (self.params, p.reached_params(None)),
            )
        )
        parts = [[self.tuple(g) for g in x] for x in (given, grad_inputs, grad_params)]
        p.backward(0, *common, self.norms, *parts, *arenas)
        return [*grad_inputs, *grad_params]

    def run(self, grads: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs, input gradients, parameter gradients."""
        return [*self.forward(), *self.backward(grads)]


def traced(seed: int, dtype: torch.dtype) -> Tracer:
    t = Tracer(seed)
    x = t.conv(t.input(2, 8, 10, 6), 16, 3, 1, 1, bias=True)
    made = elan(t, x, 8)
    if dtype is torch.float32:  # rounded values have other maxima
        made = t.max_pool(made, 5, 1, 2)
    t.output(t.upsample(t.avg_pool(made, 2, 1, 0), scale=2))
    return t


def exact(t: Tracer, grads: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs and gradients; those of what no output reads are zeros."""
    values = [t.values[v] for v in t.outputs]
    found = torch.autograd.grad(
        values, t.inputs + t.params, grads, retain_graph=True, materialize_grads=True
    )
    count = len(t.inputs)
    made = [x.permute(0, 2, 3, 1) for x in [*values, *found[:count]]]
    return [*made, *found[count:]]


def check_a_plan(dtype: torch.dtype, keep: str, backend: str) -> None:
    """Its results, and their bits when it runs again."""
    t = traced(3, dtype)
    random = torch.Generator().manual_seed(4)
    grads = [
        torch.randn(t.values[v].shape, generator=random, dtype=torch.float64)
        for v in t.outputs
    ]
    run = TensorRun(t, backend, dtype, keep)
    made, truth = run.run(grads), exact(t, grads)
    scale = max(float(x.detach().norm()) for x in truth[-len(t.params) :])
    for i, (a, b) in enumerate(zip(made, truth, strict=True)):
        # Gradients that cancel to nothing are as exact as the largest one allows.
        norm = max(float(b.detach().norm()), 0.05 * scale if i > 1 else 0.0)
        error = float((a.cpu().double() - b.detach()).norm()) / norm
        assert error < LIMIT[dtype], (i, tuple(b.shape), error)
    again = TensorRun(t, backend, dtype, keep).run(grads)
    for a, b in zip(made, again, strict=True):
        assert torch.equal(a, b), "two runs differ"


def check_a_planar_plan(
    given: torch.dtype, dtype: torch.dtype, keep: str, backend: str
) -> None:
    """Its results have the bits of those of packed inputs. An input is read by two
    convolutions, in part and as a member of a concat."""
    t = Tracer(5)
    x, y = t.input(2, 3, 9, 7), t.input(2, 4, 9, 7)
    left = t.brick(t.concat(x, t.brick(y, 5, 3), x), 6, 3)
    right = t.add(t.conv(x, 6, 3, 1, 1), t.conv(t.slice(y, 1, 2), 6))
    t.output(t.multiply(t.conv(t.concat(left, right), 4), y))
    with torch.no_grad():
        for value in t.inputs:  # what comes in 32 bits is rounded by the plan
            value.copy_(value.to(torch.float32))
    grads = [torch.ones_like(t.values[v]) for v in t.outputs]
    both = [
        TensorRun(t, backend, dtype, keep, planar).run(grads)
        for planar in (given, None)
    ]
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)
