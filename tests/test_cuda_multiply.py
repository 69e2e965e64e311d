# SPDX-License-Identifier: MIT
"""Products, repeated and summed, of the emulated CUDA kernels against the "ref" backend;
and the plans of such graphs against float64.

Tensors are slices of wider buffers filled with NaN, as in test_cuda_kernels.py.
"""

from __future__ import annotations

import ctypes as C
import itertools
from collections.abc import Callable, Iterator

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, Value
from emulated_kernels import DTYPES, LIMIT, close, exact_of, p
from kernel_cases import Case
from kernel_run import KINDS, PRODUCTS, ROUNDING, check_a_case
from tensor_run import EMULATED

Shape = tuple[int, int, int, int]  # N, H, W, C
NOTHING = ce.Tensor()  # data is NULL: ones


def values(seed: int, shape: Shape) -> np.ndarray:
    """Hardly a negative one, so that no sum cancels to nothing."""
    return ce.random_values(seed, shape, 0.5) + np.float32(1)


class Product:
    """y (+)= sums of a * b / count; the same for "ref" on packed float32."""

    def __init__(
        self,
        shapes: tuple[Shape, Shape | None, Shape],
        dtype: int,
        sides: tuple[int, int] = (0, 0),
        count: int = 1,
    ) -> None:
        a, b, y = shapes
        self.dtype, self.sides, self.scale = dtype, sides, 1 / count
        self.a = Value(values(1, a), dtype, *sides)
        self.b = Value(values(2, b), dtype, *sides) if b else None
        self.start = Value(values(3, y), dtype, *sides)

    def scratch(self) -> int:
        """As the planner asks: it has no memory yet."""
        a, b, y = (v.tensor() if v else NOTHING for v in (self.a, self.b, self.start))
        tensors = [ce.Tensor.from_buffer_copy(t) for t in (a, b, y)]
        for t in tensors:
            t.data = None
        return ce.scratch_bytes("cuda_multiply", *map(p, tensors))

    def run(
        self, backend: str, accumulate: bool = False, in_place: str = ""
    ) -> np.ndarray:
        """in_place: the name of the factor whose memory y is."""
        exact = backend == "ref"
        start = self.start.numpy()
        a, b = (
            v and Value(v.numpy(), self.dtype, *self.sides) for v in (self.a, self.b)
        )
        y = {"a": a, "b": b, "": Value(start, self.dtype, *self.sides)}[in_place]
        before = y.numpy()
        if exact:  # apart: the entry may be in place, but this is the truth
            a, b, y = (exact_of(a), b and exact_of(b), Value(before))
        given = [p(a.tensor()), p(b.tensor() if b else NOTHING)]
        given += [C.c_double(self.scale), p(y.tensor()), C.c_bool(accumulate)]
        scratch = 0 if exact else self.scratch()
        ce.call(f"{backend}_multiply", *given, scratch=scratch)
        return y.numpy()


def compare(made: Product, limit: float, what: str = "") -> None:
    for accumulate in (False, True):
        found = made.run("cuda", accumulate)
        close(found, made.run("ref", accumulate), limit, f"{what} {accumulate}")


# Stored type, channels, channels beside the slice: 16 bytes at a time and one by one.
ACCESSES = [(F32, 5, (1, 2)), (F16, 24, (8, 16)), (BF16, 16, (0, 8)), (F32, 4, (4, 0))]
EVERY_SIDE = list(itertools.product((1, 0), repeat=4))


def sides(full: Shape, kept: tuple[int, ...]) -> Shape:
    n, h, w, c = (s if k else 1 for s, k in zip(full, kept, strict=True))
    return n, h, w, c


@pytest.mark.parametrize("access", ACCESSES[:2], ids=["single", "wide"])
@pytest.mark.parametrize("of_y", EVERY_SIDE, ids=lambda k: "".join(map(str, k)))
def test_every_combination_of_sides(access: tuple, of_y: tuple[int, ...]) -> None:
    dtype, channels, beside = access
    full = (3, 5, 7, channels)
    pairs = itertools.combinations_with_replacement(EVERY_SIDE, 2)
    for i, pair in enumerate(pairs):
        of_a, of_b = pair if i % 2 else reversed(pair)
        shapes = sides(full, of_a), sides(full, of_b), sides(full, of_y)
        made, accumulate = Product(shapes, dtype, beside), i % 3 == 1
        found, truth = (made.run(b, accumulate) for b in ("cuda", "ref"))
        close(found, truth, LIMIT[dtype], f"{shapes} {accumulate}")


@pytest.mark.parametrize("access", ACCESSES, ids=str)
def test_ones(access: tuple) -> None:
    dtype, channels, beside = access
    full = (3, 5, 7, channels)
    for of_a, of_y in itertools.product(EVERY_SIDE, repeat=2):
        shapes = sides(full, of_a), None, sides(full, of_y)
        count = int(np.prod([f for f, k in zip(full, of_y, strict=True) if not k]))
        compare(Product(shapes, dtype, beside, count), LIMIT[dtype], f"{shapes}")


# Of many pixels and channels: chunks, several blocks of channels, all of a thread's
# loops and their tails.
LARGE = [
    ((2, 37, 41, 16), (2, 37, 41, 16), (2, 1, 1, 16)),
    ((2, 37, 41, 3), (2, 37, 41, 3), (2, 1, 1, 3)),
    ((1, 29, 31, 1064), (1, 29, 31, 1064), (1, 1, 1, 1064)),
    ((1, 29, 31, 257), (1, 29, 31, 257), (1, 1, 1, 257)),
    ((2, 40, 41, 8), (2, 1, 1, 8), (1, 1, 1, 8)),
    ((2, 40, 41, 8), (2, 40, 41, 1), (2, 1, 1, 8)),
    ((2, 1, 41, 16), (2, 40, 1, 16), (2, 1, 1, 16)),
    ((6, 13, 11, 8), (6, 13, 11, 8), (1, 13, 11, 8)),
    ((2, 9, 11, 1064), (2, 9, 11, 1064), (2, 9, 11, 1)),
    ((2, 9, 11, 263), (2, 9, 11, 263), (2, 9, 11, 1)),
    ((2, 37, 41, 64), (2, 37, 41, 64), (2, 1, 1, 1)),
    ((2, 37, 41, 7), (2, 37, 41, 1), (2, 1, 1, 1)),
    ((1, 37, 41, 64), (1, 37, 41, 64), (1, 1, 1, 1)),
    ((1, 1, 1, 20000), (1, 1, 1, 20000), (1, 1, 1, 1)),
    ((2, 37, 41, 48), (2, 1, 1, 48), (2, 37, 41, 48)),
    ((2, 21, 23, 1064), (2, 21, 23, 1), (2, 21, 23, 1064)),
    ((3, 1, 1, 17), (3, 50, 60, 1), (3, 50, 60, 17)),
    ((4096, 1, 2, 8), (4096, 1, 2, 8), (4096, 1, 1, 8)),
]


@DTYPES
@pytest.mark.parametrize("shapes", LARGE, ids=str)
def test_large(dtype: int, shapes: tuple[Shape, Shape, Shape]) -> None:
    a, b, y = map(np.array, shapes)
    count = int(np.prod(np.maximum(a, b) // y))  # a sum would be too large for float16
    compare(Product(shapes, dtype, (0, 8), count), LIMIT[dtype])


@DTYPES
@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize("in_place", ["a", "b"])
@pytest.mark.parametrize(
    "other", [(2, 1, 1, 1), (2, 1, 1, 0), (2, 9, 1, 0), (2, 9, 7, 0)]
)
def test_in_place(dtype: int, channels: int, in_place: str, other: tuple) -> None:
    """other: 0 stands for all channels."""
    full, second = (2, 9, 7, channels), (*other[:3], other[3] or channels)
    shapes = (full, second, full) if in_place == "a" else (second, full, full)
    made = Product(shapes, dtype, (8, 8))
    for accumulate in (False, True):
        found = made.run("cuda", accumulate, in_place)
        close(found, made.run("ref", accumulate, in_place), LIMIT[dtype])


def test_a_square_in_place() -> None:
    x = Value(ce.random_values(1, (2, 9, 7, 8)), F16, 8, 0)
    before, t = x.numpy(), x.tensor()
    ce.call("cuda_multiply", p(t), p(t), C.c_double(1), p(t), C.c_bool(False))
    close(x.numpy(), before * before, LIMIT[F16])


@pytest.mark.parametrize("count", [2, 3, 7 * 9, 49, 64, 6400, 80 * 90 * 3])
def test_a_mean_divides_as_torch_does(count: int) -> None:
    """A product by the inverse would be a bit off for some."""
    values = ce.random_values(1, (1, 64, 60, 1))
    for dtype, of_torch in ((F32, torch.float32), (F16, torch.float16)):
        a = Value(values, dtype)
        y = Value(np.zeros((1, 64, 60, 8), np.float32), dtype)
        given = p(a.tensor()), p(NOTHING), C.c_double(1 / count), p(y.tensor())
        ce.call("cuda_multiply", *given, C.c_bool(False))
        exact = torch.from_numpy(values).to(of_torch).expand(1, 64, 60, 8) / count
        np.testing.assert_array_equal(y.numpy(), exact.float().numpy())


@pytest.fixture
def multiprocessors() -> Iterator[Callable[[int], None]]:
    """Says how many the emulated GPU has."""
    yield ce.library().ym_emulation_multiprocessors
    ce.library().ym_emulation_multiprocessors(0)


@pytest.mark.parametrize("y", [(1, 1, 1, 512), (1, 1, 1, 1)])
def test_long_sums_lose_little(y: Shape, multiprocessors) -> None:
    """Hundreds of numbers for each thread, one after the other, would lose more."""
    multiprocessors(1)
    shape = (1, 70, 80, 512)
    made = Product((shape, None, y), F32)
    axes = tuple(i for i in range(4) if y[i] == 1)
    truth = made.a.numpy().astype(np.float64).sum(axes, keepdims=True)
    close(made.run("cuda"), truth, 1.5e-7)


@pytest.mark.parametrize("count", [1, 3, 20, 108, 500])
def test_gpus_of_every_size(count: int, multiprocessors) -> None:
    """Other chunks, in as much scratch."""
    multiprocessors(count)
    x = (20, 43, 47, 3)  # more pixels than chunks need
    others = [(x, x, (20, 1, 1, 3)), ((3, *x[1:3], 40), (1, 1, 1, 40), (3, 1, 1, 1))]
    for shapes in (LARGE[0], LARGE[3], LARGE[10], LARGE[13], LARGE[17], *others):
        made = Product(shapes, F32)
        close(made.run("cuda"), made.run("ref"), LIMIT[F32], f"{shapes}")


def test_it_does_not_depend_on_the_order_of_threads() -> None:
    for shapes in (LARGE[0], LARGE[10], LARGE[14]):
        runs, made = [], Product(shapes, BF16)
        for order in range(3):
            ce.library().ym_emulation_order(order)
            runs.append(made.run("cuda"))
        ce.library().ym_emulation_order(0)
        for other in runs[1:]:
            np.testing.assert_array_equal(runs[0], other)


def test_scratch_is_asked_for_and_never_too_small(monkeypatch) -> None:
    made = Product(LARGE[0], F32)
    needed = made.scratch()
    assert needed > 0
    with monkeypatch.context() as patch:
        patch.setattr(made, "scratch", lambda: needed - 1)
        with pytest.raises(ce.Failed, match=f"multiply: {needed - 1} bytes of scratch"):
            made.run("cuda")
    assert Product(LARGE[14], F32).scratch() == 0


def test_it_may_be_captured() -> None:
    """Kernels alone: nothing waits for the device, nothing is copied to it."""
    lib = ce.library()
    for shapes in (LARGE[0], LARGE[10], LARGE[14]):
        lib.ym_emulation_reset_counts()
        lib.ym_emulation_capture(1)
        try:
            Product(shapes, F16, count=3).run("cuda")
        finally:
            lib.ym_emulation_capture(0)
        launches, waits, uploads = map(lib.ym_emulation_count, range(3))
        assert (launches, waits, uploads) == (1 if shapes is LARGE[14] else 2, 0, 0)


def test_too_many_pixels_are_refused() -> None:
    a, b = (ce.Tensor(64, F32, 1, *hw, 1, 1) for hw in ((65536, 1), (1, 65536)))
    y = ce.Tensor(64, F32, 1, 1, 1, 1, 1)
    with pytest.raises(ce.Failed, match="multiply: 4294967296 pixels in a batch"):
        ce.call("cuda_multiply", p(a), p(b), C.c_double(1), p(y), C.c_bool(False))


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("dtype", ROUNDING, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.name)
def test_plans_keep_the_error_rule(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    check_a_case(case, dtype, backend)


def test_there_are_cases_of_each_kind() -> None:
    kinds = [case.name.split()[0] for case in PRODUCTS]
    assert {kind: kinds.count(kind) > 0 for kind in KINDS} == dict.fromkeys(KINDS, True)
