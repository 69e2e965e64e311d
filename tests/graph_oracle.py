# SPDX-License-Identifier: MIT
"""Graphs beside an oracle: each call adds a node and computes it with float64 torch.

The oracle is stock PyTorch in float64 with autograd; nothing of it comes from the plan.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from kernel_calls import ACTIVATIONS, HIGH, LOW, SLOPE, maximum

from yolov9mem import _core


class Tracer:
    """Builds a `_core.Graph` and, in step with it, the same computation in torch."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.graph = _core.Graph()
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.inputs: list[torch.Tensor] = []
        self.params: list[torch.Tensor] = []
        self.norms: list[dict] = []
        self.values: dict[int, torch.Tensor] = {}
        self.outputs: list[int] = []

    def draw(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        x = torch.randn(*shape, generator=self.random) * scale + shift
        return x.to(self.dtype).requires_grad_()

    def keep(self, number: int, value: torch.Tensor) -> int:
        self.values[number] = value
        return number

    def input(self, n: int, c: int, h: int, w: int) -> int:
        x = self.draw(n, c, h, w)
        self.inputs.append(x)
        return self.keep(self.graph.input(c), x)

    def param(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> int:
        value = self.draw(*shape, scale=scale, shift=shift)
        self.params.append(value)
        return self.graph.param(shape, f"p{len(self.params)}")

    def conv(
        self, x, k, kernel=1, stride=1, padding=0, dilation=1, groups=1, bias=False
    ) -> int:
        c = self.values[x].shape[1]
        scale = (c // groups * kernel * kernel) ** -0.5
        w = self.param(k, c // groups, kernel, kernel, scale=scale)
        b = self.param(k) if bias else -1
        y = self.graph.conv(
            x,
            w,
            bias=b,
            stride=(stride, stride),
            padding=(padding, padding),
            dilation=(dilation, dilation),
            groups=groups,
            name=f"conv{w}",
        )
        value = F.conv2d(
            self.values[x],
            self.params[w],
            self.params[b] if bias else None,
            stride,
            padding,
            dilation,
            groups,
        )
        return self.keep(y, value)

    def conv_transpose(
        self, x, k, kernel=2, stride=2, padding=0, more=0, groups=1
    ) -> int:
        c = self.values[x].shape[1]
        scale = (c // groups * kernel * kernel) ** -0.5 * stride
        w = self.param(c, k // groups, kernel, kernel, scale=scale)
        pairs = [(v, v) for v in (stride, padding, more)]
        made = self.graph.conv_transpose(x, w, *pairs, groups=groups, name=f"up{w}")
        value = F.conv_transpose2d(
            self.values[x], self.params[w], None, *pairs, groups=groups
        )
        return self.keep(made, value)

    def affine(self, x, scale=1.0, shift=0.0, bias=None, gamma=None) -> int:
        """bias, gamma: None, "each" channel its own, or "one" for all."""
        count = {"each": self.values[x].shape[1], "one": 1}
        b = -1 if bias is None else self.param(count[bias])
        g = -1 if gamma is None else self.param(count[gamma], shift=0.5)
        nothing = torch.zeros(0, dtype=self.dtype)
        self.norms.append({"mean": nothing, "var": nothing, "training": False})
        value = (self.values[x] + shift) * scale
        value = value if gamma is None else value * self.params[g].view(-1, 1, 1)
        value = value if bias is None else value + self.params[b].view(-1, 1, 1)
        return self.keep(self.graph.affine(x, scale, shift, b, gamma=g), value)

    def new_norm(
        self, channels: int, gamma: int | None = None, beta: int | None = None
    ) -> int:
        """gamma, beta: numbers of parameters that another norm has too."""
        if gamma is None:
            gamma = self.param(channels, scale=0.2, shift=1.0)
        beta = self.param(channels) if beta is None else beta
        self.norms.append(
            {
                "mean": torch.zeros(channels, dtype=self.dtype),
                "var": torch.ones(channels, dtype=self.dtype),
                "gamma": gamma,
                "beta": beta,
                "training": True,
            }
        )
        return self.graph.norm(channels, gamma=gamma, beta=beta)

    def batch_norm(self, x: int, norm: int | None = None) -> int:
        if norm is None:
            norm = self.new_norm(self.values[x].shape[1])
        n = self.norms[norm]
        value = F.batch_norm(
            self.values[x],
            n["mean"],
            n["var"],
            self.params[n["gamma"]].expand(len(n["mean"])),
            self.params[n["beta"]].expand(len(n["mean"])),
            n["training"],
            0.03,
            1e-3,
        )
        return self.keep(self.graph.batch_norm(x, norm), value)

    def act(self, x: int, kind: str = "silu") -> int:
        made = self.graph.activation(x, kind, slope=SLOPE, low=LOW, high=HIGH)
        return self.keep(made, ACTIVATIONS[kind](self.values[x]))

    def add(self, *xs: int) -> int:
        total = self.values[xs[0]]
        for x in xs[1:]:
            total = total + self.values[x]
        return self.keep(self.graph.add(list(xs)), total * 1.0)

    def concat(self, *xs: int) -> int:
        value = torch.cat([self.values[x] for x in xs], 1)
        return self.keep(self.graph.concat(list(xs)), value)

    def slice(self, x: int, first: int, count: int) -> int:
        value = self.values[x][:, first : first + count]
        return self.keep(self.graph.slice(x, first, count), value)

    def max_pool(self, x: int, k: int, s: int, p: int, ceil: bool = False) -> int:
        y = self.graph.max_pool(x, (k, k), (s, s), (p, p), ceil_mode=ceil)
        return self.keep(y, F.max_pool2d(self.values[x], k, s, p, 1, ceil))

    def avg_pool(
        self, x: int, k: int, s: int, p: int, ceil: bool = False, pad: bool = True
    ) -> int:
        y = self.graph.avg_pool(
            x, (k, k), (s, s), (p, p), ceil_mode=ceil, count_include_pad=pad
        )
        return self.keep(y, F.avg_pool2d(self.values[x], k, s, p, ceil, pad))

    def upsample(
        self, x: int, *, scale: int = 0, size: tuple = (), mode: str = "nearest"
    ) -> int:
        if size:
            y = self.graph.upsample(x, size=size, mode=mode)
            return self.keep(y, F.interpolate(self.values[x], size=size, mode=mode))
        y = self.graph.upsample(x, scale=(float(scale), float(scale)), mode=mode)
        value = F.interpolate(self.values[x], scale_factor=scale, mode=mode)
        return self.keep(y, value)

    def multiply(self, a: int, b: int) -> int:
        made = self.graph.multiply(a, b)
        return self.keep(made, self.values[a] * self.values[b])

    def mean(self, x: int, axes: str) -> int:
        sides = ["nchw".index(axis) for axis in axes]
        return self.keep(self.graph.mean(x, axes), self.values[x].mean(sides, True))

    def maximum(self, x: int, axes: str) -> int:
        made = self.graph.maximum(x, axes)
        return self.keep(made, maximum(self.values[x], axes))

    def fresh_norms(self) -> list[dict]:
        """The norms before their first call."""
        return [
            {**n, "mean": torch.zeros_like(n["mean"]), "var": torch.ones_like(n["var"])}
            for n in self.norms
        ]

    def output(self, x: int) -> None:
        self.graph.output(x)
        self.outputs.append(x)

    def brick(self, x: int, k: int, kernel=1, stride=1, groups=1, kind="silu") -> int:
        """conv -> batch norm -> activation."""
        y = self.conv(x, k, kernel, stride, kernel // 2, groups=groups)
        return self.act(self.batch_norm(y), kind)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().permute(0, 2, 3, 1).float().numpy())


def nchw(x: torch.Tensor) -> np.ndarray:
    """As an input that comes planar."""
    return np.ascontiguousarray(x.detach().float().numpy())


def arena(count: int) -> np.ndarray:
    """`count` bytes aligned to 64, with garbage in them."""
    raw = np.full(count + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


class Run:
    """One forward and backward of a tracer's graph through a plan, on NumPy arrays."""

    def __init__(self, tracer: Tracer, norms_before: list[dict], **request) -> None:
        t = self.tracer = tracer
        self.sum = None  # over the processes that share batch norms
        sizes = [(x.shape[0], x.shape[2], x.shape[3]) for x in t.inputs]
        request.setdefault("input_grads", [True] * len(sizes))
        request.setdefault("param_grads", [True] * len(t.params))
        self.request = request
        self.plan = _core.Plan(t.graph, sizes, **request)
        planar = request.get("planar_inputs") or [None] * len(sizes)
        self.inputs = [
            nhwc(x) if dtype is None else nchw(x)
            for x, dtype in zip(t.inputs, planar, strict=True)
        ]
        self.params = [p.detach().float().numpy().copy() for p in t.params]
        self.running = [
            (n["mean"].float().numpy().copy(), n["var"].float().numpy().copy())
            for n in norms_before
        ]
        self.norms = [
            (m, v, 1e-3, 0.03, n["training"], n["training"]) if len(m) else None
            for (m, v), n in zip(self.running, norms_before, strict=True)
        ]

    def forward(self) -> list[np.ndarray]:
        p = self.plan
        self.outputs = [np.full(s, np.nan, np.float32) for s in p.output_shapes]
        self.saved = arena(p.saved_bytes)
        work = arena(p.forward_workspace_bytes)
        p.forward(
            self.inputs,
            self.params,
            self.norms,
            self.outputs,
            self.saved,
            work,
            0,
            0,
            self.sum,
        )
        return self.outputs

    def backward(
        self,
        grads: list[np.ndarray | None],
        sums: list[np.ndarray | None] | None = None,
    ) -> None:
        """sums: by param, what its gradient is added to."""
        p, t = self.plan, self.tracer
        mask = [g is not None for g in grads]
        wanted = self.request["param_grads"]
        self.grad_params = [
            np.full_like(w, np.nan) if want else None
            for w, want in zip(self.params, wanted, strict=True)
        ]
        sums = sums or [None] * len(self.params)
        for i, start in enumerate(sums):
            if start is not None and wanted[i]:
                self.grad_params[i] = start.copy()
        self.grad_inputs = [
            np.full_like(nhwc(x), np.nan) if want else None
            for x, want in zip(t.inputs, self.request["input_grads"], strict=True)
        ]
        work = arena(p.backward_workspace(mask))
        for segment in reversed(range(p.segments)):
            p.backward(
                segment,
                self.inputs,
                self.params,
                self.norms,
                grads,
                self.grad_inputs,
                self.grad_params,
                self.saved,
                work,
                0,
                bytes(start is not None for start in sums),
                mask,
                self.sum,
            )
        self.reached_params = p.reached_params(mask)
        self.reached_inputs = p.reached_inputs(mask)


def relative_error(value: np.ndarray, exact: torch.Tensor) -> float:
    truth = exact.detach().double().numpy()
    norm = float(np.linalg.norm(truth))
    return float(np.linalg.norm(value.astype(np.float64) - truth)) / (norm + 1e-12)


def float32_error(t: Tracer) -> float:
    """The scale of float32's own error in a graph: amplification by its norms."""
    return 3e-4


def check(t: Tracer, before: list[dict], grads, **request) -> Run:
    """Runs a plan and compares what it makes with float64, and gradients with autograd."""
    run = Run(t, before, **request)
    outputs = run.forward()
    limit = float32_error(t)
    for made, value in zip(t.outputs, outputs, strict=True):
        exact = t.values[made].permute(0, 2, 3, 1)
        assert relative_error(value, exact) < limit, (request, made)
    for (mean, var), n in zip(run.running, t.norms, strict=True):
        assert relative_error(mean, n["mean"]) < limit
        assert relative_error(var, n["var"]) < limit
    run.backward([None if g is None else nhwc(g) for g in grads])
    leaves = t.inputs + t.params
    chosen = [
        (t.values[v], g) for v, g in zip(t.outputs, grads, strict=True) if g is not None
    ]
    exact = torch.autograd.grad(
        [v for v, _ in chosen],
        leaves,
        [g for _, g in chosen],
        retain_graph=True,
        allow_unused=True,
    )
    for i, x in enumerate(exact[: len(t.inputs)]):
        assert run.reached_inputs[i] == (x is not None and request_input(run, i))
        if run.reached_inputs[i]:
            error = relative_error(run.grad_inputs[i], x.permute(0, 2, 3, 1))
            assert error < limit, (request, "input", i, error)
    # One scale for all: a gradient that is nothing but rounding noise (a bias before a
    # batch norm) has no relative error of its own. Stock's noise is up to 9e-7 of it.
    scale = max(float(g.norm()) for g in exact if g is not None)
    for i, x in enumerate(exact[len(t.inputs) :]):
        if not run.request["param_grads"][i]:
            continue
        assert run.reached_params[i] == (x is not None), (request, i)
        if x is not None:
            value = torch.from_numpy(run.grad_params[i]).double()
            error = float((value - x).norm()) / max(float(x.norm()), 2e-3 * scale)
            assert error < limit * 3, (request, "param", i, error)
    return run


def request_input(run: Run, i: int) -> bool:
    return run.request["input_grads"][i]


def plan(t: Tracer, **request) -> _core.Plan:
    """A plan of the graph, for inputs of the tracer's sizes."""
    sizes = [(x.shape[0], x.shape[2], x.shape[3]) for x in t.inputs]
    return _core.Plan(t.graph, sizes, **request)
