# SPDX-License-Identifier: MIT
"""The calls of a graph and the same in torch, for kernel_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

EPS, MOMENTUM = 1e-3, 0.03
SLOPE, LOW, HIGH = 0.1, -0.75, 1.25
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda v: v * 1.0,
    "silu": F.silu,
    "relu": F.relu,
    "leaky_relu": lambda v: F.leaky_relu(v, SLOPE),
    "hardtanh": lambda v: F.hardtanh(v, LOW, HIGH),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
}


def maximum(x: torch.Tensor, axes: str) -> torch.Tensor:
    """The first, in row-major order: amax would divide the gradient among equals."""
    if axes == "hw":
        n, c = x.shape[:2]
        return x.flatten(2).max(2).values.view(n, c, 1, 1)
    return x.max("nchw".index(axes), keepdim=True).values


@dataclass
class Net:
    """A graph, or, with `values`, the same calls on torch tensors (N, C, H, W)."""

    graph: object | None = None
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    params: list[torch.Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    running: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    norms: list[int] = field(default_factory=list)  # channels; 0: an affine call
    frozen: bool = False

    def call(self, name: str, x, run: Callable, *args, **kwargs) -> int:
        if self.graph is not None:
            return getattr(self.graph, name)(x, *args, **kwargs)
        self.values[len(self.values)] = run()
        return len(self.values) - 1

    def param(self, *shape: int) -> int:
        self.shapes.append(shape)
        if self.graph is not None:
            return self.graph.param(shape, f"p{len(self.shapes)}")
        return len(self.shapes) - 1

    def cast(self, number: int, like: torch.Tensor) -> torch.Tensor:
        return self.params[number].to(like.dtype)

    def conv(self, x, k, c, kernel, stride=1, pad=0, dilation=1, groups=1, bias=False):
        pair = [(v, v) if isinstance(v, int) else v for v in (kernel, stride, pad)]
        dilation = (dilation, dilation) if isinstance(dilation, int) else dilation
        w = self.param(k, c // groups, *pair[0])
        b = self.param(k) if bias else -1

        def run() -> torch.Tensor:
            v = self.values[x]
            add = self.cast(b, v) if bias else None
            return F.conv2d(v, self.cast(w, v), add, *pair[1:], dilation, groups)

        options = {"stride": pair[1], "padding": pair[2], "dilation": dilation}
        return self.call("conv", x, run, w, b, groups=groups, **options)

    def conv_transpose(self, x, c, k, kernel, stride, pad, more, dilation, groups):
        pairs = [
            (v, v) if isinstance(v, int) else v
            for v in (kernel, stride, pad, more, dilation)
        ]
        w = self.param(c, k // groups, *pairs[0])

        def run() -> torch.Tensor:
            v = self.values[x]
            settings = *pairs[1:4], groups, pairs[4]
            return F.conv_transpose2d(v, self.cast(w, v), None, *settings)

        return self.call("conv_transpose", x, run, w, *pairs[1:], groups)

    def affine(
        self, x, scale: float = 1, shift: float = 0, bias: int = -1, gamma: int = -1
    ) -> int:
        self.norms.append(0)

        def run() -> torch.Tensor:
            v = (self.values[x] + shift if shift else self.values[x]) * scale
            v = v if gamma < 0 else v * self.cast(gamma, v).view(-1, 1, 1)
            return v if bias < 0 else v + self.cast(bias, v).view(-1, 1, 1)

        return self.call("affine", x, run, scale, shift, bias, gamma)

    def norm(self, x: int, c: int) -> int:
        gamma, beta = self.param(c), self.param(c)
        number = self.graph.norm(c, gamma, beta) if self.graph is not None else None
        self.norms.append(c)
        index = len(self.norms) - 1

        def run() -> torch.Tensor:
            mean, var = self.running[index]
            affine = self.params[gamma], self.params[beta]
            v = self.values[x]
            return F.batch_norm(v, mean, var, *affine, not self.frozen, MOMENTUM, EPS)

        return self.call("batch_norm", x, run, number)

    def act(self, x: int, kind: str) -> int:
        run = lambda: ACTIVATIONS[kind](self.values[x])  # noqa: E731
        numbers = {"slope": SLOPE, "low": LOW, "high": HIGH}
        return self.call("activation", x, run, kind, **numbers)

    def add(self, *xs: int) -> int:
        return self.call("add", list(xs), lambda: sum(self.values[x] for x in xs))

    def concat(self, *xs: int) -> int:
        run = lambda: torch.cat([self.values[x] for x in xs], 1)  # noqa: E731
        return self.call("concat", list(xs), run)

    def slice(self, x: int, first: int, count: int) -> int:
        run = lambda: self.values[x][:, first : first + count]  # noqa: E731
        return self.call("slice", x, run, first, count)

    def pool(self, kind: str, x: int, k: int, s: int, p: int, ceil=False, pad=True):
        def run() -> torch.Tensor:
            if kind == "max":
                return F.max_pool2d(self.values[x], k, s, p, 1, ceil)
            return F.avg_pool2d(self.values[x], k, s, p, ceil, pad)

        extra = {} if kind == "max" else {"count_include_pad": pad}
        windows = (k, k), (s, s), (p, p)
        return self.call(f"{kind}_pool", x, run, *windows, ceil_mode=ceil, **extra)

    def upsample(self, x: int, size: tuple, **how) -> int:
        """size: pixels, or floats to multiply the sides by; how: mode, align_corners."""
        by_scale = isinstance(size[0], float)
        ours, torchs = ("scale", "scale_factor") if by_scale else ("size", "size")
        run = lambda: F.interpolate(self.values[x], **{torchs: size}, **how)  # noqa: E731
        return self.call("upsample", x, run, **{ours: size}, **how)

    def multiply(self, a: int, b: int) -> int:
        return self.call("multiply", a, lambda: self.values[a] * self.values[b], b)

    def mean(self, x: int, axes: str) -> int:
        sides = ["nchw".index(axis) for axis in axes]
        return self.call("mean", x, lambda: self.values[x].mean(sides, True), axes)

    def maximum(self, x: int, axes: str) -> int:
        return self.call("maximum", x, lambda: maximum(self.values[x], axes), axes)
