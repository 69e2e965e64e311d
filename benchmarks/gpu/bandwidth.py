# SPDX-License-Identifier: MIT
"""What the batch norm kernels and those of gates move each second, beside a copy on the
device.

Every kernel is run by a plan of a brick, SiLU of one batch norm or of the sum of two, or
of a product with one number for each image and channel, on tensors of 240 MB or more.
Bytes are those that a kernel must move: each operand once. Single kernels are told apart
by PyTorch's profiler; where that sees none, by events around the plan's passes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, device_times, kernels

FEW, MANY = (64, 160, 160, 80), (64, 80, 80, 320)  # N, H, W, C: 262 MB in fp16
# dtype, shape, terms.
CASES = (
    ("float16", FEW, 1),
    ("float16", MANY, 1),
    ("float16", MANY, 2),
    ("bfloat16", FEW, 1),
    ("float32", FEW, 1),
)
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# Kernel's name in csrc/cuda -> tensors that it must move (reads and writes): as many for
# each term, and as many besides.
MOVED = {
    "statistics_kernel": (0, 1),  # x, in a launch of its own
    "brick_forward_kernel": (1, 1),  # x; y
    "brick_sums_kernel": (1, 1),  # x; dy
    "brick_backward_kernel": (2, 1),  # x, dx; dy
    "multiply_kernel": (0, 2),  # x, y; the gate is small
    "pixel_sums_kernel": (0, 2),  # x, dy
}
REPETITIONS = 15


def copy_bandwidth(device: str, size: int) -> float:
    """GB/s of a copy of `size` bytes, reads and writes counted."""
    source = torch.zeros(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    target.copy_(source)
    times = device_times(Clock(device), lambda: target.copy_(source), repetitions=15)
    return 2 * size / statistics.median(times) / 1e6


def as_tuple(x: Tensor) -> tuple[Any, ...]:
    kind = str(x.dtype).removeprefix("torch.")
    return (x.data_ptr(), kind, tuple(x.shape), x.stride(), x.get_device())


class Bench:
    """SiLU of the sum of the terms' batch norms, as a plan with memory of its own."""

    def __init__(
        self, dtype: str, shape: tuple[int, ...], terms: int, device: str, backend: Any
    ) -> None:
        from yolov9mem import _core

        n, h, w, c = shape
        graph = _core.Graph()
        norms = []
        for t in range(terms):
            x = graph.input(c)
            gamma, beta = graph.param((c,), f"gamma{t}"), graph.param((c,), f"beta{t}")
            norm = graph.norm(c, gamma, beta, f"bn{t}")
            norms.append(graph.batch_norm(x, norm, f"bn{t}"))
        z = norms[0] if terms == 1 else graph.add(norms, "add")
        graph.output(graph.activation(z, "silu", name="act"))
        self.plan = _core.Plan(
            graph,
            [(n, h, w)] * terms,
            dtype=dtype,
            backend=backend,
            input_grads=[True] * terms,
            param_grads=[True] * 2 * terms,
        )
        self.terms = terms
        made = {"device": device, "dtype": DTYPES[dtype]}
        self.x = [torch.randn(shape, device=device).to(DTYPES[dtype]) for _ in norms]
        self.dy = torch.randn(shape, device=device).to(DTYPES[dtype])
        self.y = torch.empty(shape, **made)
        self.dx = [torch.empty(shape, **made) for _ in norms]
        self.params = [torch.rand(c, device=device) + 0.5 for _ in 2 * norms]
        self.grads = [torch.empty(c, device=device) for _ in 2 * norms]
        self.running = [torch.zeros(c, device=device), torch.ones(c, device=device)]
        work = max(
            self.plan.forward_workspace_bytes, self.plan.backward_workspace(None)
        )
        arena = {"dtype": torch.uint8, "device": device}
        self.saved = torch.empty(max(self.plan.saved_bytes, 64), **arena)
        self.work = torch.empty(max(work, 64), **arena)
        self.on_gpu = device == "cuda"
        self.bytes = self.y.numel() * self.y.element_size()

    def _arenas(self) -> tuple[Any, ...]:
        stream = torch.cuda.current_stream().cuda_stream if self.on_gpu else 0
        return (as_tuple(self.saved), as_tuple(self.work), stream)

    def _given(self, by_batch: bool) -> tuple[Any, ...]:
        mean, var = (as_tuple(r) for r in self.running)
        norms = [(mean, var, 1e-3, 0.03, by_batch, by_batch)] * self.terms
        return [as_tuple(x) for x in self.x], [as_tuple(p) for p in self.params], norms

    def forward(self, by_batch: bool = True) -> None:
        self.plan.forward(*self._given(by_batch), [as_tuple(self.y)], *self._arenas())

    def backward(self) -> None:
        self.plan.backward(
            0,
            *self._given(True),
            [as_tuple(self.dy)],
            [as_tuple(dx) for dx in self.dx],
            [as_tuple(g) for g in self.grads],
            *self._arenas(),
        )

    def passes(self) -> dict[str, tuple[Callable[[], None], int]]:
        """The work, and how many tensors it must move."""
        terms = self.terms
        return {
            "normalise, activate": (lambda: self.forward(False), terms + 1),
            "statistics, normalise, activate": (self.forward, 2 * terms + 1),
            "backward: sums, then gradients": (self.backward, 3 * terms + 2),
        }


class Gate:
    """x times a gate, (N, 1, 1, C), as a plan with memory of its own; its backward is the
    gate's gradient."""

    terms = 1

    def __init__(
        self, dtype: str, shape: tuple[int, ...], device: str, backend: Any
    ) -> None:
        from yolov9mem import _core

        n, h, w, c = shape
        graph = _core.Graph()
        graph.output(graph.multiply(graph.input(c), graph.input(c), "gate"))
        self.plan = _core.Plan(
            graph,
            [(n, h, w), (n, 1, 1)],
            dtype=dtype,
            backend=backend,
            input_grads=[False, True],
            param_grads=[],
        )
        made = {"device": device, "dtype": DTYPES[dtype]}
        self.x, self.dy = (torch.randn(shape, device=device).to(**made) for _ in "xy")
        self.gate = torch.rand((n, 1, 1, c), device=device).to(**made)
        self.y, self.dgate = torch.empty_like(self.x), torch.empty_like(self.gate)
        work = max(
            self.plan.forward_workspace_bytes, self.plan.backward_workspace(None)
        )
        arena = {"dtype": torch.uint8, "device": device}
        self.saved = torch.empty(max(self.plan.saved_bytes, 64), **arena)
        self.work = torch.empty(max(work, 64), **arena)
        self.on_gpu = device == "cuda"
        self.bytes = self.y.numel() * self.y.element_size()

    def _common(self) -> tuple[Any, ...]:
        given = [as_tuple(self.x), as_tuple(self.gate)], [], []
        stream = torch.cuda.current_stream().cuda_stream if self.on_gpu else 0
        return given, (as_tuple(self.saved), as_tuple(self.work), stream)

    def forward(self) -> None:
        given, arenas = self._common()
        self.plan.forward(*given, [as_tuple(self.y)], *arenas)

    def backward(self) -> None:
        given, arenas = self._common()
        wanted = [None, as_tuple(self.dgate)], []
        self.plan.backward(0, *given, [as_tuple(self.dy)], *wanted, *arenas)

    def passes(self) -> dict[str, tuple[Callable[[], None], int]]:
        return {"gate": (self.forward, 2), "gate gradient": (self.backward, 2)}


def kernel_times(clock: Clock, work: Callable[[], None]) -> dict[str, list[float]]:
    """Kernel -> milliseconds of each launch."""
    found: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels(clock, work, REPETITIONS):
        if "_kernel" in kernel.name:
            found[kernel.name].append((kernel.end_us - kernel.start_us) / 1e3)
    return found


def by_kernel(bench: Bench | Gate, clock: Clock) -> list[dict[str, Any]]:
    """A row for every kernel; empty where the profiler sees none."""

    def work() -> None:
        bench.forward()
        bench.backward()

    rows = []
    for name, times in sorted(kernel_times(clock, work).items()):
        found = next((n for key, n in MOVED.items() if key in name), None)
        if found is None:
            continue  # merges what the blocks found: no bytes to speak of
        milliseconds = statistics.median(times)
        of_term, besides = found
        moved = (of_term * bench.terms + besides) * bench.bytes
        rows.append(
            {
                "kernel": name.split("<")[0].split("::")[-1].split("(")[0],
                "signature": name[:200],
                "milliseconds": milliseconds,
                "moved_bytes": moved,
                "gb_s": moved / milliseconds / 1e6,
                "launches": len(times),
            }
        )
    return rows


def by_pass(bench: Bench | Gate, clock: Clock) -> list[dict[str, Any]]:
    """A row for every pass of the plan, by events."""
    rows = []
    for name, (work, count) in bench.passes().items():
        work()
        if name.startswith("normalise"):
            bench.forward()  # backward needs the batch's statistics
        times = device_times(clock, work, repetitions=REPETITIONS)
        milliseconds, moved = statistics.median(times), count * bench.bytes
        row = {"kernel": name, "milliseconds": milliseconds, "moved_bytes": moved}
        rows.append(row | {"gb_s": moved / milliseconds / 1e6})
    return rows


def measure(bench: Bench | Gate, name: str, found: dict[str, Any]) -> None:
    """Adds rows to those that were found."""
    device = "cuda" if bench.on_gpu else "cpu"
    copied = copy_bandwidth(device, bench.bytes)
    clock = Clock(device)
    made = by_pass(bench, clock)
    if bench.on_gpu:
        try:
            made += by_kernel(bench, clock)
        except RuntimeError as error:
            found["profiler"] = f"{error}"[:300]
    case = {"dtype": name, "tensor_mb": bench.bytes / 1e6, "copy_gb_s": copied}
    found["rows"] += [case | row | {"of_copy": row["gb_s"] / copied} for row in made]


def run(request: dict[str, Any]) -> dict[str, Any]:
    device, quick = request["device"], request["quick"]
    backend = request.get("backend", "cuda:0" if device == "cuda" else "cpu")
    found: dict[str, Any] = {"rows": []}
    cases = CASES if device == "cuda" else (("float32", FEW, 1), ("float32", MANY, 2))
    for dtype, shape, terms in cases:
        channels = shape[-1]
        small = (2, 8, 8, channels) if quick else shape
        name = f"{dtype}, {channels} channels"
        bench = Bench(dtype, small, terms, device, backend)
        measure(bench, name + (", two terms" if terms == 2 else ""), found)
        del bench
        if terms == 1:
            measure(Gate(dtype, small, device, backend), name, found)
    return found
