# SPDX-License-Identifier: MIT
"""What the batch norm kernels move each second, beside a copy on the device.

Every kernel is run by a plan of two nodes, batch norm and SiLU, on a tensor of 240 MB or
more. Bytes are those that a kernel must move: each operand once. Single kernels are told
apart by PyTorch's profiler; where that sees none, by events around the plan's passes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, device_times

SHAPE = (64, 160, 160, 80)  # N, H, W, C: 262 MB in fp16
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# Kernel's name in csrc/cuda -> tensors that it must move (reads and writes).
MOVED = {
    "statistics_kernel": 1,  # x
    "brick_forward_kernel": 2,  # x, y
    "brick_sums_kernel": 2,  # x, dy
    "brick_backward_kernel": 3,  # x, dy, dx
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
    """Batch norm and SiLU of one tensor, as a plan with memory of its own."""

    def __init__(self, dtype: str, shape: tuple[int, ...], device: str, backend: Any):
        from yolov9mem import _core

        n, h, w, c = shape
        graph = _core.Graph()
        x = graph.input(c)
        gamma, beta = graph.param((c,), "gamma"), graph.param((c,), "beta")
        y = graph.batch_norm(x, graph.norm(c, gamma, beta, "bn"), "bn")
        graph.output(graph.activation(y, "silu", name="act"))
        self.plan = _core.Plan(
            graph,
            [(n, h, w)],
            dtype=dtype,
            backend=backend,
            input_grads=[True],
            param_grads=[True, True],
        )
        made = {"device": device, "dtype": DTYPES[dtype]}
        self.x = torch.randn(shape, device=device).to(DTYPES[dtype])
        self.dy = torch.randn(shape, device=device).to(DTYPES[dtype])
        self.y, self.dx = torch.empty(shape, **made), torch.empty(shape, **made)
        self.params = [torch.rand(c, device=device) + 0.5 for _ in range(2)]
        self.grads = [torch.empty(c, device=device) for _ in range(2)]
        self.running = [torch.zeros(c, device=device), torch.ones(c, device=device)]
        work = max(
            self.plan.forward_workspace_bytes, self.plan.backward_workspace(None)
        )
        arena = {"dtype": torch.uint8, "device": device}
        self.saved = torch.empty(max(self.plan.saved_bytes, 64), **arena)
        self.work = torch.empty(max(work, 64), **arena)
        self.on_gpu = device == "cuda"
        self.bytes = self.x.numel() * self.x.element_size()

    def _arenas(self) -> tuple[Any, ...]:
        stream = torch.cuda.current_stream().cuda_stream if self.on_gpu else 0
        return (as_tuple(self.saved), as_tuple(self.work), stream)

    def _given(self, by_batch: bool) -> tuple[Any, ...]:
        mean, var = (as_tuple(r) for r in self.running)
        norms = [(mean, var, 1e-3, 0.03, by_batch, by_batch)]
        return [as_tuple(self.x)], [as_tuple(p) for p in self.params], norms

    def forward(self, by_batch: bool = True) -> None:
        self.plan.forward(*self._given(by_batch), [as_tuple(self.y)], *self._arenas())

    def backward(self) -> None:
        self.plan.backward(
            0,
            *self._given(True),
            [as_tuple(self.dy)],
            [as_tuple(self.dx)],
            [as_tuple(g) for g in self.grads],
            *self._arenas(),
        )


def kernel_times(work: Callable[[], None]) -> dict[str, list[float]]:
    """Kernel -> milliseconds of each launch, as PyTorch's profiler sees them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPETITIONS):
            work()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if "_kernel" in event.name and event.device_type.name == "CUDA":
            found[event.name].append(event.time_range.elapsed_us() / 1e3)
    return found


def by_kernel(bench: Bench) -> list[dict[str, Any]]:
    """A row for every kernel; empty where the profiler sees none."""

    def work() -> None:
        bench.forward()
        bench.backward()

    rows = []
    for name, times in sorted(kernel_times(work).items()):
        count = next((n for key, n in MOVED.items() if key in name), None)
        if count is None:
            continue  # merges what the blocks found: no bytes to speak of
        milliseconds = statistics.median(times)
        moved = count * bench.bytes
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


def by_pass(bench: Bench, clock: Clock) -> list[dict[str, Any]]:
    """A row for every pass of the plan, by events."""
    passes = {
        "normalise, activate": (lambda: bench.forward(False), 2),
        "statistics, normalise, activate": (bench.forward, 3),
        "backward: sums, then gradients": (bench.backward, 5),
    }
    rows = []
    for name, (work, count) in passes.items():
        work()
        if name.startswith("normalise"):
            bench.forward()  # backward needs the batch's statistics
        times = device_times(clock, work, repetitions=REPETITIONS)
        milliseconds, moved = statistics.median(times), count * bench.bytes
        row = {"kernel": name, "milliseconds": milliseconds, "moved_bytes": moved}
        rows.append(row | {"gb_s": moved / milliseconds / 1e6})
    return rows


def run(request: dict[str, Any]) -> dict[str, Any]:
    device, quick = request["device"], request["quick"]
    shape = (2, 8, 8, 16) if quick else SHAPE
    backend = request.get("backend", "cuda:0" if device == "cuda" else "cpu")
    dtypes = ["float32"] if device == "cpu" else list(DTYPES)
    found: dict[str, Any] = {"rows": [], "bytes": {}}
    for dtype in dtypes:
        bench = Bench(dtype, shape, device, backend)
        copied = copy_bandwidth(device, bench.bytes)
        found["bytes"][dtype] = bench.bytes
        made = by_pass(bench, Clock(device))
        if device == "cuda":
            try:
                made += by_kernel(bench)
            except RuntimeError as error:
                found["profiler"] = f"{error}"[:300]
        for row in made:
            share = row["gb_s"] / copied
            case = {"dtype": dtype, "tensor_mb": bench.bytes / 1e6, "copy_gb_s": copied}
            found["rows"].append(case | row | {"of_copy": share})
        del bench
    return found
