# SPDX-License-Identifier: MIT
"""Each kernel of the backends "ref" and "cpu", by way of graphs of one or few nodes.

What is compared with what: forward, input gradients, parameter gradients and running
statistics of `_core.Plan` with stock PyTorch in float64. The relative L2 error may be at
most twice that of stock PyTorch in the same dtype (bfloat16: float32 parameters cast at
the call, as under autocast), or the rounding of one operation where stock is exact. The
sizes are adversarial: primes, tails of vectors, one pixel, one channel, strides larger
than kernels, padding larger than images, slices of wider buffers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yolov9mem import _core

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-9}  # of one product and its sum
EPS, MOMENTUM = 1e-3, 0.03


@dataclass
class Net:
    """A graph, or, with `values`, the same calls on torch tensors (N, C, H, W)."""

    graph: object | None = None
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    params: list[torch.Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    running: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    norms: list[int] = field(default_factory=list)  # channels of each
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
        runs = {"silu": F.silu, "relu": F.relu, "identity": lambda v: v * 1.0}
        runs["leaky_relu"] = lambda v: F.leaky_relu(v, 0.1)
        run = runs[kind]
        return self.call("activation", x, lambda: run(self.values[x]), kind, slope=0.1)

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

    def upsample(self, x: int, scale: float = 0, size: tuple[int, int] | None = None):
        given = {"size": size} if size else {"scale": (float(scale), float(scale))}
        given_torch = {"size": size} if size else {"scale_factor": scale}
        run = lambda: F.interpolate(self.values[x], **given_torch)  # noqa: E731
        return self.call("upsample", x, run, **given)


@dataclass
class Case:
    name: str
    shape: tuple[int, int, int, int]  # N, C, H, W of each input
    build: Callable[[Net, list[int]], int]
    inputs: int = 1
    frozen: bool = False


def conv_case(n, h, w, c, k, kernel, stride=1, pad=0, dilation=1, groups=1) -> Case:
    def build(net: Net, xs: list[int]) -> int:
        bias = (h + k) % 2 == 1
        return net.conv(xs[0], k, c, kernel, stride, pad, dilation, groups, bias)

    name = f"conv {n}x{h}x{w}x{c}-{k} k{kernel} s{stride} p{pad} d{dilation} g{groups}"
    return Case(name, (n, c, h, w), build)


def brick_case(shape, kind, terms=1, norms=1, residual=False, frozen=False) -> Case:
    """activation(norm(x0) [+ norm(x1) or x1]) [+ x2]"""
    c = shape[1]

    def build(net: Net, xs: list[int]) -> int:
        parts = [net.norm(xs[t], c) if t < norms else xs[t] for t in range(terms)]
        z = net.act(net.add(*parts) if terms > 1 else parts[0], kind)
        return net.add(z, xs[terms]) if residual else z

    name = f"brick {shape} {kind} terms {terms} norms {norms}"
    name += (" residual" if residual else "") + (" frozen" if frozen else "")
    return Case(name, shape, build, terms + residual, frozen)


def pool_case(shape, kind, k, s, p, ceil=False, pad=True) -> Case:
    name = f"{kind} pool {shape} k{k} s{s} p{p} ceil {ceil} pad {pad}"
    return Case(name, shape, lambda net, xs: net.pool(kind, xs[0], k, s, p, ceil, pad))


def upsample_case(shape, scale=0, size=None) -> Case:
    name = f"upsample {shape} {scale} {size}"
    return Case(name, shape, lambda net, xs: net.upsample(xs[0], scale, size))


def slices(net: Net, xs: list[int]) -> int:
    """Convolutions, bricks and pools that read and write parts of wider pixels; the
    middle slice is read three times, so that gradients are added up in place."""
    left, middle = net.slice(xs[0], 0, 5), net.slice(xs[0], 3, 6)
    a = net.conv(middle, 7, 6, 3, 1, 1)
    b = net.act(net.norm(net.conv(left, 3, 5, 1), 3), "silu")
    c = net.pool("max", middle, 3, 1, 1)
    d = net.pool("avg", middle, 3, 1, 1)
    return net.conv(net.concat(b, a, left, c, d, b), 4, 30, 3, 2, 1)


CASES = [
    conv_case(1, 1, 1, 1, 1, 1),
    conv_case(2, 5, 7, 3, 5, 3, 1, 1),
    conv_case(1, 13, 17, 3, 32, 3, 2, 1),
    conv_case(2, 11, 9, 64, 33, 3, 1, 1),
    conv_case(1, 12, 10, 8, 16, (5, 3), (1, 2), (2, 1)),
    conv_case(1, 15, 15, 4, 6, 7, 3, 3, 1, 2),
    conv_case(2, 9, 9, 16, 16, 3, 1, 1, 1, 4),
    conv_case(1, 10, 13, 12, 12, 3, 1, 1, 1, 12),
    conv_case(1, 10, 13, 6, 12, 3, 2, 1, 1, 6),
    conv_case(1, 14, 14, 5, 7, 3, 1, 2, 2),
    conv_case(1, 17, 13, 7, 9, (3, 2), (3, 2), (0, 1), (2, 3)),
    conv_case(2, 20, 20, 40, 48, 1),
    conv_case(1, 9, 9, 16, 24, 1, 2),
    conv_case(1, 6, 6, 8, 8, 1, 1, 1),
    conv_case(1, 8, 8, 4, 4, 4, 1, 3),
    conv_case(1, 9, 8, 6, 4, 1, (3, 2), 0, 1, 2),
    conv_case(1, 12, 12, 4, 8, 3, 2, 1, 3),
    conv_case(1, 3, 90, 300, 20, 3, 1, 1),
    conv_case(8, 1, 1, 40, 40, 3, 1, 1),
    conv_case(1, 7, 7, 6, 5, 3, 4, 1),
    *(
        brick_case(shape, kind)
        for shape in [(2, 3, 5, 7), (1, 64, 20, 20), (2, 700, 3, 3), (1, 5, 90, 80)]
        for kind in ("silu", "leaky_relu")
    ),
    brick_case((2, 33, 13, 7), "silu", terms=2, norms=2),
    brick_case((2, 48, 9, 9), "silu", terms=2, norms=2, residual=True),
    brick_case((2, 16, 9, 9), "relu", terms=2, norms=1, residual=True),
    brick_case((2, 16, 9, 9), "silu", terms=2, norms=0),
    brick_case((2, 17, 9, 9), "identity", norms=1),
    brick_case((2, 600, 3, 5), "silu", frozen=True),
    brick_case((2, 20, 9, 9), "silu", terms=2, norms=2, frozen=True),
    pool_case((1, 5, 7, 9), "max", 5, 1, 2),
    pool_case((2, 16, 8, 8), "max", 2, 2, 0),
    pool_case((1, 70, 11, 13), "max", 3, 2, 1, ceil=True),
    pool_case((1, 1, 1, 1), "max", 5, 1, 2),
    pool_case((2, 130, 9, 8), "avg", 3, 2, 1),
    pool_case((1, 6, 11, 13), "avg", 3, 2, 1, ceil=True, pad=False),
    pool_case((1, 6, 11, 13), "avg", 3, 2, 1, ceil=True),
    pool_case((1, 16, 9, 9), "avg", 2, 1, 0),
    upsample_case((2, 3, 4, 5), 2),
    upsample_case((1, 64, 3, 3), 3.5),
    upsample_case((1, 600, 2, 3), size=(5, 4)),
    upsample_case((1, 8, 7, 7), size=(10, 12)),
    upsample_case((1, 8, 5, 5), size=(3, 4)),
    Case("slices", (2, 9, 11, 7), slices),
]


@dataclass
class Arrays:
    """The numbers of a case: float32, activations already rounded to its dtype."""

    inputs: list[torch.Tensor]
    params: list[torch.Tensor]
    running: list[tuple[torch.Tensor, torch.Tensor]]
    grad: torch.Tensor


def draw(case: Case, dtype: torch.dtype) -> tuple[object, Arrays]:
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    graph = _core.Graph()
    net = Net(graph)
    c = case.shape[1]
    xs = [graph.input(c) for _ in range(case.inputs)]
    graph.output(case.build(net, xs))
    spread, offset = 1 + normal(1, c, 1, 1).abs(), 5 * normal(1, c, 1, 1)
    inputs = [normal(*case.shape) for _ in xs]
    inputs = [x * spread + offset for x in inputs] if net.norms else inputs
    params = [normal(*s) / max(1, np.prod(s[1:])) ** 0.5 for s in net.shapes]
    running = [(normal(c), 0.5 + normal(c).abs()) for c in net.norms]
    inputs = [x.to(dtype).float() for x in inputs]
    arrays = Arrays(inputs, params, running, torch.empty(0))
    shape = stock(case, arrays, torch.float64)[0].shape
    arrays.grad = normal(*shape).to(dtype).float()
    return graph, arrays


def stock(case: Case, arrays: Arrays, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, then (if there is a gradient) gradients and running statistics."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [x.to(dtype).requires_grad_() for x in arrays.inputs]
    params = [p.to(wide).requires_grad_() for p in arrays.params]
    running = [(m.to(wide, copy=True), v.to(wide, copy=True)) for m, v in arrays.running]
    values = dict(enumerate(inputs))
    net = Net(None, values, params, running=running, frozen=case.frozen)
    y = net.values[case.build(net, list(range(len(inputs))))]
    if arrays.grad.numel() == 0:
        return [y]
    y.backward(arrays.grad.to(dtype))
    grads = [x.grad for x in inputs + params]
    return [y.detach(), *grads, *(t for pair in running for t in pair)]


def packed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, C, H, W) -> packed (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()


def argument(x: torch.Tensor) -> tuple:
    name = str(x.dtype).removeprefix("torch.")
    return x.data_ptr(), name, tuple(x.shape), x.stride(), -1


def arena(count: int) -> np.ndarray:
    raw = np.full(count + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count]


def ours(
    case: Case, graph: object, arrays: Arrays, backend: str, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The same list as `stock`, from a plan."""
    n, _, h, w = case.shape
    name = str(dtype).removeprefix("torch.")
    inputs = [packed(x, dtype) for x in arrays.inputs]
    params = [p.clone() for p in arrays.params]
    running = [(m.clone(), v.clone()) for m, v in arrays.running]
    plan = _core.Plan(
        graph,
        [(n, h, w)] * len(inputs),
        dtype=name,
        keep="all",
        backend=backend,
        input_grads=[True] * len(inputs),
        param_grads=[True] * len(params),
    )
    norms = [
        (argument(m), argument(v), EPS, MOMENTUM, not case.frozen, not case.frozen)
        for m, v in running
    ]
    output = torch.full(plan.output_shapes[0], float("nan"), dtype=dtype)
    grad = packed(arrays.grad, dtype)
    grad_inputs = [torch.full_like(x, float("nan")) for x in inputs]
    grad_params = [torch.full_like(p, float("nan")) for p in params]
    saved, work = arena(plan.saved_bytes), arena(plan.forward_workspace_bytes)
    given = [argument(x) for x in inputs], [argument(p) for p in params], norms
    plan.forward(*given, [argument(output)], saved, work)
    wanted = [argument(g) for g in grad_inputs], [argument(g) for g in grad_params]
    work = arena(plan.backward_workspace(None))
    plan.backward(0, *given, [argument(grad)], *wanted, saved, work)
    images = [t.permute(0, 3, 1, 2) for t in [output, *grad_inputs]]
    return [*images, *grad_params, *(t for pair in running for t in pair)]


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(value.double() - exact)
    return float(difference / (torch.linalg.vector_norm(exact) + 1e-30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_keeps_the_error_rule(case: Case, dtype: str) -> None:
    graph, arrays = draw(case, DTYPES[dtype])
    exact = stock(case, arrays, torch.float64)
    usual = stock(case, arrays, DTYPES[dtype])
    for backend in ("ref", "cpu"):
        mine = ours(case, graph, arrays, backend, DTYPES[dtype])
        assert len(mine) == len(exact)
        for i, (a, b, truth) in enumerate(zip(mine, usual, exact, strict=True)):
            allowed = 2 * max(error(b, truth), ROUNDING[dtype])
            assert error(a, truth) <= allowed, (backend, i, error(b, truth))


def test_result_does_not_depend_on_the_threads() -> None:
    before = _core.get_num_threads()
    chosen = [CASES[3], CASES[6], CASES[12], CASES[24], CASES[-1]]
    try:
        for case in chosen:
            graph, arrays = draw(case, torch.float32)
            results = []
            for count in (1, 2, 5):
                _core.set_num_threads(count)
                results.append(ours(case, graph, arrays, "cpu", torch.float32))
            for other in results[1:]:
                assert all(map(torch.equal, results[0], other)), case.name
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_max_pool_takes_the_first_maximum_and_nan_wins(backend: str) -> None:
    case = pool_case((2, 19, 9, 8), "max", 5, 1, 2)
    graph, arrays = draw(case, torch.float32)
    arrays.inputs[0].round_()
    arrays.inputs[0][0, 3, 4, 4] = float("nan")
    arrays.inputs[0][1, 2] = float("-inf")
    arrays.grad.round_()
    exact = stock(case, arrays, torch.float32)
    mine = ours(case, graph, arrays, backend, torch.float32)
    for a, b in zip(mine, exact, strict=True):
        assert torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0))


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_statistics_survive_a_mean_far_from_zero(backend: str) -> None:
    case = brick_case((4, 24, 16, 16), "identity")
    graph, arrays = draw(case, torch.float32)
    arrays.inputs[0] += 3000.0
    exact = stock(case, arrays, torch.float64)
    mine = ours(case, graph, arrays, backend, torch.float32)
    usual = stock(case, arrays, torch.float32)
    for i in (0, -1):  # the output, the running variance
        allowed = 2 * max(error(usual[i], exact[i]), ROUNDING["float32"])
        assert error(mine[i], exact[i]) <= allowed


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_activation_of_extreme_values(backend: str) -> None:
    """No overflow on the way, NaN stays NaN."""
    case = brick_case((1, 4, 3, 3), "silu", norms=0)
    graph, arrays = draw(case, torch.float32)
    flat = arrays.inputs[0].view(-1)
    flat[:7] = torch.tensor([1e30, -1e30, 88.8, -88.8, 200.0, -104.0, float("nan")])
    exact = stock(case, arrays, torch.float64)
    mine = ours(case, graph, arrays, backend, torch.float32)
    for a, b in zip(mine, exact, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-5, atol=1e-34, equal_nan=True)


def test_child_of_a_fork_has_its_own_threads() -> None:
    case = CASES[3]
    graph, arrays = draw(case, torch.float32)
    expected = ours(case, graph, arrays, "cpu", torch.float32)
    child = os.fork()
    if child == 0:
        again = ours(case, graph, arrays, "cpu", torch.float32)
        os._exit(0 if all(map(torch.equal, expected, again)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(
    "YOLOV9MEM_ISA" in os.environ, reason="is itself one of these processes"
)
@pytest.mark.parametrize("isa", ["avx2", "plain"])
def test_other_instruction_sets(isa: str) -> None:
    """The same cases in a process that is told to do with less (elsewhere than on x86-64
    there is only "plain")."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [__file__, "-k", "error_rule or first_maximum or extreme"]
    environment = {**os.environ, "YOLOV9MEM_ISA": isa}
    done = subprocess.run(
        command,
        env=environment,
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
