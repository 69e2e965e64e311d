# SPDX-License-Identifier: MIT
"""Maxima of the emulated CUDA kernels, beside the "ref" backend and NumPy: the same bits,
also where equal values, infinities and NaNs are many.

Tensors are slices of wider buffers filled with NaN, as in test_cuda_kernels.py.
"""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, Value
from emulated_kernels import DTYPES, exact_of, p
from kernel_cases import Case
from maximum_run import DTYPES as TORCH_DTYPES
from maximum_run import MAXIMA, assert_same, by_numpy, check_maxima, with_ties
from tensor_run import EMULATED

Shape = tuple[int, int, int, int]  # N, H, W, C
WAVE = 4 * 132  # blocks that the emulated GPU takes at once


class Maximum:
    """Values with many ties and their gradients; every run starts afresh."""

    def __init__(
        self, shape: Shape, axes: str, dtype: int, sides: tuple[int, int] = (8, 8)
    ) -> None:
        self.axes, self.dtype, self.sides = axes, dtype, sides
        self.small = tuple(
            1 if axis in axes else s for axis, s in zip("nhwc", shape, strict=True)
        )
        self.x = Value(with_ties(ce.random_values(1, shape), 2), dtype, *sides)
        self.dy = Value(ce.random_values(3, self.small), dtype, *sides)
        self.start = Value(ce.random_values(4, shape), dtype, *sides)

    def scratch(self) -> int:
        """As the planner asks: there is no memory yet."""
        tensors = [ce.Tensor.from_buffer_copy(v.tensor()) for v in (self.x, self.dy)]
        for t in tensors:
            t.data = None
        return ce.scratch_bytes("cuda_maximum", *map(p, tensors))

    def run(self, backend: str, accumulate: bool = False) -> list[np.ndarray]:
        """y and dx; of "ref" on packed float32."""
        blank = Value(np.full(self.small, np.nan, np.float32), self.dtype, *self.sides)
        dx = Value(self.start.numpy(), self.dtype, *self.sides)
        values, scratch = [self.x, blank, self.dy, dx], self.scratch()
        if backend == "ref":
            values, scratch = [exact_of(v) for v in values], 0
        x, y, dy, dx = values
        ce.call(
            f"{backend}_maximum_forward", p(x.tensor()), p(y.tensor()), scratch=scratch
        )
        given = p(x.tensor()), p(dy.tensor()), p(dx.tensor()), C.c_bool(accumulate)
        ce.call(f"{backend}_maximum_backward", *given, scratch=scratch)
        return [y.numpy(), dx.numpy()]

    def check(self, *, by_ref: bool) -> None:
        for accumulate in (False, True):
            if by_ref:
                y, dx = self.run("ref", accumulate)
            else:
                y, dx = by_numpy(self.x.numpy(), self.dy.numpy(), self.axes)
                dx = dx + (self.start.numpy() if accumulate else 0)
            rounded = ce.decode(ce.encode(dx, self.dtype), self.dtype)
            made = self.run("cuda", accumulate)
            assert_same(made[0], y, "y")
            assert_same(made[1], rounded, f"dx {accumulate}")


@DTYPES
@pytest.mark.parametrize("axes", ["hw", "h", "w", "c"])
@pytest.mark.parametrize(
    "shape, sides",
    [
        ((2, 9, 11, 16), (8, 8)),  # wide accesses
        ((2, 9, 11, 5), (1, 2)),  # one channel at a time
        ((3, 7, 1, 24), (0, 0)),
        ((1, 1, 13, 40), (0, 8)),
        ((2, 3, 5, 264), (8, 0)),
        ((1, 1, 1, 8), (8, 8)),
        ((1, 1, 1, 1), (0, 1)),
    ],
    ids=str,
)
def test_it_is_ref(dtype: int, axes: str, shape: Shape, sides: tuple) -> None:
    Maximum(shape, axes, dtype, sides).check(by_ref=True)


# Where a window is cut into chunks, has a block, and shares one with others.
LARGE = [
    ((2, 37, 41, 16), "hw"),
    ((2, 37, 41, 3), "hw"),
    ((1, 29, 31, 1064), "hw"),  # several blocks of channels
    ((1, 29, 31, 257), "hw"),
    ((WAVE // 2 + 1, 5, 7, 8), "hw"),
    ((3, 300, 2, 8), "h"),
    ((3, 2, 300, 3), "w"),
    ((6, 40, 41, 64), "h"),
    ((40, 37, 33, 8), "h"),
    ((40, 37, 5, 1), "w"),
    ((2 * WAVE, 3, 3, 40), "hw"),
    ((3 * WAVE, 2, 2, 16), "hw"),  # by single threads
    ((2, 9, 11, 1064), "c"),
    ((2, 9, 11, 263), "c"),
    ((3, 40, 41, 8), "c"),
]


@DTYPES
@pytest.mark.parametrize("shape, axes", LARGE, ids=str)
def test_large(dtype: int, shape: Shape, axes: str) -> None:
    Maximum(shape, axes, dtype, (0, 8)).check(by_ref=False)


def test_numpy_and_ref_choose_the_same() -> None:
    for axes in ("hw", "h", "w", "c"):
        made = Maximum((3, 9, 14, 17), axes, F32)
        assert np.isnan(made.x.numpy()).sum() > 1
        truth = by_numpy(made.x.numpy(), made.dy.numpy(), axes)
        for a, b in zip(made.run("ref"), truth, strict=True):
            assert_same(a, b, axes)


# Launches forward and backward.
WAYS = {
    "chunks": (((2, 37, 41, 16), "hw"), 5),
    "a block for each window": (((WAVE, 3, 7, 8), "hw"), 2),
    "a block for several windows": (((40, 37, 33, 8), "h"), 2),
    "channels": (((3, 40, 41, 8), "c"), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_may_be_captured(way: str) -> None:
    """Kernels alone: nothing waits for the device, nothing is copied to it."""
    lib, (case, expected) = ce.library(), WAYS[way]
    made = Maximum(*case, F16)
    lib.ym_emulation_reset_counts()
    lib.ym_emulation_capture(1)
    try:
        made.run("cuda")
    finally:
        lib.ym_emulation_capture(0)
    launches, waits, uploads = map(lib.ym_emulation_count, range(3))
    assert (launches, waits, uploads) == (expected, 0, 0)


@pytest.mark.parametrize("way", WAYS)
def test_it_does_not_depend_on_the_order_of_threads(way: str) -> None:
    runs, made = [], Maximum(*WAYS[way][0], BF16)
    for order in range(3):
        ce.library().ym_emulation_order(order)
        runs.append(made.run("cuda"))
    ce.library().ym_emulation_order(0)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert_same(a, b)


def test_scratch_is_for_chunks_alone_and_asked_for(monkeypatch) -> None:
    for (shape, axes), launches in WAYS.values():
        assert (Maximum(shape, axes, F32).scratch() > 0) == (launches > 2), shape
    made = Maximum(*WAYS["chunks"][0], F32)
    needed = made.scratch()
    monkeypatch.setattr(made, "scratch", lambda: needed - 1)
    with pytest.raises(ce.Failed, match=f"maximum: {needed - 1} bytes of scratch"):
        made.run("cuda")


def test_too_many_pixels_are_refused() -> None:
    x = ce.Tensor(64, F32, 1, 65536, 65536, 2, 2)
    y = ce.Tensor(64, F32, 1, 1, 1, 2, 2)
    with pytest.raises(ce.Failed, match="maximum: 4294967296 pixels in a batch"):
        ce.call("cuda_maximum_forward", p(x), p(y))


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("ties", [False, True], ids=["plain", "ties"])
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", MAXIMA, ids=lambda case: case.name)
def test_plans_choose_what_numpy_does(
    case: Case, dtype: torch.dtype, ties: bool, backend: str
) -> None:
    check_maxima(case, dtype, backend, ties)


def test_there_are_cases_of_pixels_and_of_channels() -> None:
    assert {case.name.split()[-1] for case in MAXIMA} == {"hw", "h", "w", "c"}
