# SPDX-License-Identifier: MIT
"""Every CUDA kernel, emulated on the CPU, against the "ref" backend.

The reference is float32 with sums in double on the same stored values. Tensors are
slices of wider buffers filled with NaN, so reading or writing beside them is seen.
"""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, Brick, Norm, Pool, TermGradient, Value
from emulated_kernels import DTYPES, LIMIT, close, exact_of, p
from kernel_calls import ACTIVATIONS, HIGH, LOW, SLOPE
from kernel_oracle import check_activation_of


def statistics(backend: str, x: Value, norm: Norm, scratch: int) -> list[np.ndarray]:
    c = x.shape[3]
    mean, rstd = np.full(c, np.nan, np.float32), np.full(c, np.nan, np.float32)
    where = [C.c_void_p(ce.address(a)) for a in (mean, rstd)]
    ce.call(
        f"{backend}_norm_statistics", p(x.tensor()), p(norm), *where, scratch=scratch
    )
    return [mean, rstd]


@DTYPES
@pytest.mark.parametrize(
    "shape, left, right",
    [
        ((2, 37, 41, 16), 8, 8),  # wide accesses, many chunks
        ((1, 5, 7, 3), 1, 2),  # one channel at a time
        ((3, 1, 1, 40), 0, 0),  # fewer pixels than rows of a block
        ((1, 3, 11, 520), 8, 0),
        ((1, 9, 13, 1064), 8, 0),  # several blocks of channels, many pixels a thread
        ((1, 1, 2, 1), 0, 1),
    ],
)
def test_statistics(dtype: int, shape: tuple, left: int, right: int) -> None:
    c = shape[3]
    values = ce.random_values(1, shape) + np.linspace(-30, 300, c, dtype=np.float32)
    x = Value(values, dtype, left, right)
    made, truth = [], []
    for backend, value in (("cuda", x), ("ref", exact_of(x))):
        running = [np.linspace(-1, 1, c, dtype=np.float32), np.ones(c, np.float32)]
        norm = Norm(eps=1e-3, momentum=0.03, batch_statistics=True, update_running=True)
        norm.running_mean, norm.running_var = map(ce.address, running)
        scratch = ce.scratch_bytes("cuda_norm", p(value.tensor()))
        found = statistics(backend, value, norm, scratch) + running
        (made if backend == "cuda" else truth).extend(found)
    for a, b, what in zip(made, truth, ("mean", "rstd", "running", "var"), strict=True):
        # The sum of squares loses what the values' own size hides from float32.
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=what)


def test_statistics_of_a_far_mean_do_not_cancel() -> None:
    x = Value(ce.random_values(2, (2, 40, 40, 8), 1e-2) + np.float32(1000), F32)
    norm = Norm(eps=0, batch_statistics=True)
    scratch = ce.scratch_bytes("cuda_norm", p(x.tensor()))
    _, rstd = statistics("cuda", x, norm, scratch)
    exact = 1 / x.numpy().astype(np.float64).std(axis=(0, 1, 2))
    np.testing.assert_allclose(rstd, exact, rtol=2e-6)


def test_running_statistics_are_used_as_they_are() -> None:
    x = Value(ce.random_values(3, (1, 2, 2, 5)), F32)
    mean, var = ce.random_values(4, (5,)), np.abs(ce.random_values(5, (5,)))
    norm = Norm(eps=1e-3)
    norm.running_mean, norm.running_var = ce.address(mean), ce.address(var)
    made = statistics("cuda", x, norm, 0)
    truth = statistics("ref", x, norm, 0)
    for a, b in zip(made, truth, strict=True):
        np.testing.assert_array_equal(a, b)


class BrickCase:
    """A brick with its terms; `ref` is the same on packed float32."""

    def __init__(
        self,
        terms: int,
        norms: str,
        activation: int,
        dtype: int,
        seed: int,
        shape: tuple[int, ...] | None = None,
    ):
        """norms: for each term "n" batch statistics, "r" running ones, "-" no norm."""
        self.shape = shape or (2, 9, 13, 16 if seed % 2 else 5)
        sides = (8, 16) if seed % 2 else (1, 3)
        self.dtype, self.norms, self.activation, self.seed = (
            dtype,
            norms,
            activation,
            seed,
        )
        self.values = [
            Value(ce.random_values(seed + t, self.shape), dtype, *sides)
            for t in range(terms)
        ]
        self.residual = Value(ce.random_values(seed + 7, self.shape), dtype, *sides)
        self.dout = Value(ce.random_values(seed + 8, self.shape), dtype, *sides)
        c = self.shape[3]
        self.vectors = [
            [ce.random_values(seed + 10 + 4 * t + i, (c,), 0.4) for i in range(4)]
            for t in range(terms)
        ]
        for vector in self.vectors:
            vector[1] = np.abs(vector[1]) + np.float32(0.7)  # rstd
        self.gradients = [
            [np.ones(c, np.float32) for _ in range(2)] for _ in range(terms)
        ]

    def brick(self, exact: bool, gradients: list, residual: bool = True) -> Brick:
        activation = ce.Activation(self.activation, SLOPE, LOW, HIGH)
        made = Brick(term_count=len(self.values), activation=activation)
        self.alive = [
            exact_of(v) if exact else v for v in (*self.values, self.residual)
        ]
        for t, value in enumerate(self.alive[:-1]):
            term = made.term[t]
            term.value, term.has_norm = value.tensor(), self.norms[t] != "-"
            term.mean, term.rstd = map(ce.address, self.vectors[t][:2])
            term.norm.gamma, term.norm.beta = map(ce.address, self.vectors[t][2:])
            term.norm.dgamma, term.norm.dbeta = map(ce.address, gradients[t])
            term.norm.batch_statistics = self.norms[t] == "n"
        made.has_residual = residual
        made.residual = self.alive[-1].tensor()
        return made

    def forward(self, backend: str) -> np.ndarray:
        exact = backend == "ref"
        blank = np.full(self.shape, np.nan, np.float32)
        out = Value(blank, F32) if exact else Value(blank, self.dtype, 8, 8)
        tensor = out.tensor()
        ce.call(
            f"{backend}_brick_forward", p(self.brick(exact, self.gradients)), p(tensor)
        )
        return out.numpy()

    def backward(
        self, backend: str, accumulate: bool, in_place: bool
    ) -> list[np.ndarray]:
        exact = backend == "ref"
        gradients = [[g.copy() for g in pair] for pair in self.gradients]
        brick = self.brick(exact, gradients, residual=False)
        dout = Value(self.dout.numpy(), F32 if exact else self.dtype, 8, 8)
        targets = (TermGradient * 2)()
        made = []
        for t in range(len(self.values)):
            start = ce.random_values(self.seed + 20 + t, self.shape)
            value = Value(start, self.dtype, 0, 8)
            value = exact_of(value) if exact else value
            if in_place and t == 0:
                value = dout
            made.append(value)
            targets[t].dvalue = value.tensor()
            targets[t].accumulate = accumulate and not (in_place and t == 0)
            targets[t].accumulate_gamma = accumulate
            targets[t].accumulate_beta = accumulate
        scratch = ce.scratch_bytes("cuda_brick", p(dout.tensor()))
        name = f"{backend}_brick_backward"
        ce.call(name, p(brick), p(dout.tensor()), targets, scratch=scratch)
        vectors = [
            g for t, pair in enumerate(gradients) if self.norms[t] != "-" for g in pair
        ]
        return [m.numpy() for m in made] + vectors


PIECEWISE = [ce.RELU, ce.LEAKY_RELU, ce.HARDTANH, ce.HARDSWISH, ce.HARDSIGMOID]
BRICKS = [
    (1, "n", ce.SILU),
    (1, "r", ce.RELU),
    (1, "-", ce.SILU),
    (2, "nn", ce.SILU),
    (2, "n-", ce.LEAKY_RELU),
    (2, "--", ce.IDENTITY),
    (2, "rn", ce.IDENTITY),
    *((1, "n", kind) for kind in ce.ACTIVATIONS[ce.HARDTANH :]),
    (2, "nn", ce.HARDTANH),
    (2, "-n", ce.HARDSWISH),
    (2, "rn", ce.MISH),
    (2, "nr", ce.SIGMOID),
    (2, "n-", ce.HARDSIGMOID),
    (2, "nn", ce.GELU),
    (2, "-r", ce.GELU_TANH),
]


@DTYPES
@pytest.mark.parametrize("terms, norms, activation", BRICKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_brick(dtype: int, terms: int, norms: str, activation: int, seed: int) -> None:
    case = BrickCase(terms, norms, activation, dtype, seed)
    close(case.forward("cuda"), case.forward("ref"), LIMIT[dtype])
    for accumulate, in_place in ((False, True), (True, False)):
        made = case.backward("cuda", accumulate, in_place)
        truth = case.backward("ref", accumulate, in_place)
        for i, (a, b) in enumerate(zip(made, truth, strict=True)):
            close(a, b, LIMIT[dtype] if i < terms else 1e-5, f"gradient {i}")


@DTYPES
@pytest.mark.parametrize("activation", ce.ACTIVATIONS)
def test_activation_at_corners_and_extremes(dtype: int, activation: int) -> None:
    case = BrickCase(1, "-", activation, dtype, 1, (1, 2, 8, 3))
    corners = [0.0, LOW, HIGH, -3.0, 3.0, 200.0, -200.0, 6e4, -6e4, 20.0, -20.0, np.nan]
    corners += [np.inf, -np.inf, 1e38, -1e38]
    values = ce.random_values(1, case.shape)
    values.reshape(-1)[:32] = corners * 2
    gradients = case.dout.numpy()
    if activation in PIECEWISE:  # whose derivatives are chosen
        gradients.reshape(-1)[16:32] = np.inf
    case.values, case.dout = [Value(values, dtype)], Value(gradients, dtype)
    near = {"rtol": LIMIT[dtype], "atol": LIMIT[dtype]}
    made, exact = (case.forward(backend) for backend in ("cuda", "ref"))
    np.testing.assert_allclose(made, exact, **near)
    known = ~np.isnan(values)
    made, exact = (case.backward(b, False, False)[0] for b in ("cuda", "ref"))
    np.testing.assert_allclose(made[known], exact[known], **near)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_keeps_the_error_rule(kind: str, dtype: str) -> None:
    check_activation_of(ce.capsule(), kind, getattr(torch, dtype))


@DTYPES
@pytest.mark.parametrize("terms, norms", [(1, "n"), (2, "nn"), (2, "-n")])
@pytest.mark.parametrize("channels", [1024, 1064])
def test_brick_with_many_pixels_a_thread(
    dtype: int, terms: int, norms: str, channels: int
) -> None:
    """Few rows to a block: chunks are walked through several pixels at a time, the next
    ones fetched meanwhile, and the last one by one."""
    case = BrickCase(terms, norms, ce.SILU, dtype, 1, (1, 7, 11, channels))
    made = case.backward("cuda", True, False)
    truth = case.backward("ref", True, False)
    for i, (a, b) in enumerate(zip(made, truth, strict=True)):
        close(a, b, LIMIT[dtype] if i < terms else 1e-5, f"gradient {i}")


def test_brick_does_not_depend_on_the_order_of_threads() -> None:
    case = BrickCase(2, "nn", ce.SILU, BF16, 1)
    runs = []
    for order in range(3):
        ce.library().ym_emulation_order(order)
        runs.append([case.forward("cuda"), *case.backward("cuda", False, True)])
    ce.library().ym_emulation_order(0)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


# The last two: more windows over a pixel than a block remembers; pixels in none.
POOLS = [(3, 2, 1), (5, 1, 2), (2, 2, 0), (2, 1, 0), (3, 3, 1), (13, 1, 6), (1, 3, 0)]


@DTYPES
@pytest.mark.parametrize("kernel, stride, pad", POOLS)
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("size", [(2, 9, 7), (1, 17, 21)])
def test_pools(
    dtype: int, kernel: int, stride: int, pad: int, kind: str, size: tuple[int, ...]
) -> None:
    n, h, w = size
    c = (8 if n == 2 else 40) if kernel % 2 else 3
    oh, ow = ((s + 2 * pad - kernel) // stride + 1 for s in (h, w))
    x = Value(np.round(ce.random_values(1, (n, h, w, c)) * 3), dtype, 8, 8)  # with ties
    dy = Value(ce.random_values(2, (n, oh, ow, c)), dtype, 8, 8)
    pool = Pool(kernel, kernel, stride, stride, pad, pad, kind == "avg" and kernel != 2)
    found = {}
    for backend in ("cuda", "ref"):
        exact = backend == "ref"
        y, dx = (
            Value(ce.random_values(3, shape), F32 if exact else dtype)
            for shape in ((n, oh, ow, c), (n, h, w, c))
        )
        start = Value(ce.random_values(3, (n, h, w, c)), dtype)
        dx = exact_of(start) if exact else start
        a, b = (exact_of(v) if exact else v for v in (x, dy))
        ce.call(f"{backend}_{kind}_pool_forward", p(pool), p(a.tensor()), p(y.tensor()))
        inputs = (a, b) if kind == "max" else (b,)
        ce.call(
            f"{backend}_{kind}_pool_backward",
            p(pool),
            *(p(v.tensor()) for v in inputs),
            p(dx.tensor()),
            C.c_bool(True),
        )
        found[backend] = (y.numpy(), dx.numpy())
    for made, truth in zip(found["cuda"], found["ref"], strict=True):
        close(made, truth, LIMIT[dtype])


def test_max_pool_lets_a_nan_win() -> None:
    values = ce.random_values(4, (1, 4, 4, 8))
    values[0, 1, 2, 3] = np.nan
    x, y = Value(values), Value(np.zeros((1, 2, 2, 8), np.float32))
    pool = Pool(2, 2, 2, 2, 0, 0)
    ce.call("cuda_max_pool_forward", p(pool), p(x.tensor()), p(y.tensor()))
    assert np.isnan(y.buffer).sum() == 1
    assert np.isnan(y.buffer[0, 0, 1, 3])


@DTYPES
@pytest.mark.parametrize(
    "size, out", [((3, 5), (6, 10)), ((4, 3), (7, 11)), ((5, 4), (2, 9))]
)
def test_upsample(dtype: int, size: tuple, out: tuple) -> None:
    c = 8 if size[0] % 2 else 3
    x = Value(ce.random_values(1, (2, *size, c)), dtype, 8, 0)
    dy = Value(ce.random_values(2, (2, *out, c)), dtype, 0, 8)
    how = ce.Resize(False, False, *(i / o for i, o in zip(size, out, strict=True)))
    found = {}
    for backend in ("cuda", "ref"):
        exact = backend == "ref"
        a, b = (exact_of(v) if exact else v for v in (x, dy))
        y = Value(np.zeros((2, *out, c), np.float32), F32 if exact else dtype)
        start = Value(ce.random_values(3, (2, *size, c)), dtype)
        dx = exact_of(start) if exact else start
        ce.call(f"{backend}_nearest_forward", p(how), p(a.tensor()), p(y.tensor()))
        backward = f"{backend}_nearest_backward"
        ce.call(backward, p(how), p(b.tensor()), p(dx.tensor()), C.c_bool(True))
        found[backend] = (y.numpy(), dx.numpy())
    np.testing.assert_array_equal(found["cuda"][0], found["ref"][0])
    close(found["cuda"][1], found["ref"][1], LIMIT[dtype])


@DTYPES
@pytest.mark.parametrize("other", [F32, BF16, F16])
@pytest.mark.parametrize("c, left", [(16, 8), (5, 1)])
def test_copy_and_cast(dtype: int, other: int, c: int, left: int) -> None:
    x = Value(ce.random_values(1, (2, 3, 5, c)), dtype, left, 3)
    y = Value(ce.random_values(2, (2, 3, 5, c)), other, 8, left)
    before = y.numpy()
    more = Value(before)
    ce.call("cuda_copy", p(x.tensor()), p(y.tensor()), C.c_bool(False))
    exact = ce.decode(ce.encode(x.numpy(), other), other)
    np.testing.assert_array_equal(y.numpy(), exact)
    ce.call("cuda_copy", p(more.tensor()), p(y.tensor()), C.c_bool(True))
    close(y.numpy(), exact + before, LIMIT[other])


def test_casts_round_as_ieee() -> None:
    """Every float16, its neighbours, halves of the last place, infinities and zeros."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    up = np.nextafter(every, np.float32(np.inf))
    middle = ((every.astype(np.float64) + np.roll(every, 1)) / 2).astype(np.float32)
    values = np.concatenate([every, up, middle, [65519, 65520, 1e30, 1e-30, np.inf]])
    x = Value(values.astype(np.float32).reshape(1, 1, -1, 1))
    for dtype in (F16, BF16):
        y = Value(np.zeros_like(x.buffer), dtype)
        ce.call("cuda_copy", p(x.tensor()), p(y.tensor()), C.c_bool(False))
        np.testing.assert_array_equal(y.buffer, ce.encode(x.buffer, dtype))


@DTYPES
@pytest.mark.parametrize("c, side", [(8, 8), (3, 1), (8, 0)])
def test_fill_zero(dtype: int, c: int, side: int) -> None:
    y = Value(ce.random_values(1, (2, 3, 5, c)), dtype, side, side)
    ce.call("cuda_fill_zero", p(y.tensor()))
    assert (y.numpy() == 0).all()


def test_errors_name_the_call_and_leave_the_next_one_working() -> None:
    y = Value(ce.random_values(1, (1, 2, 2, 3)), F32, 1, 1)
    ce.library().ym_emulation_fail_next(719)
    with pytest.raises(ce.Failed, match="zero_kernel: .*compute-sanitizer"):
        ce.call("cuda_fill_zero", p(y.tensor()))
    ce.call("cuda_fill_zero", p(y.tensor()))
    norm = Norm(batch_statistics=True)
    with pytest.raises(ce.Failed, match="0 bytes of scratch given, it needs 36"):
        statistics("cuda", y, norm, 0)
