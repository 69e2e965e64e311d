# SPDX-License-Identifier: MIT
"""Bilinear resizing by the emulated CUDA kernels against the "ref" backend, and by plans
against float64.

Tensors are slices of wider buffers filled with NaN, as in test_cuda_kernels.py.
"""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import F32, Resize, Value
from emulated_kernels import DTYPES, LIMIT, close, exact_of, p
from kernel_cases import Case
from kernel_run import BILINEAR, ROUNDING, check_a_case
from tensor_run import EMULATED

# Sides of the source and of the result.
SIZES = [
    ((3, 5), (6, 10)),
    ((4, 3), (7, 11)),
    ((9, 12), (4, 5)),
    ((21, 30), (2, 9)),
    ((1, 1), (5, 3)),
    ((6, 7), (1, 1)),
    ((5, 4), (5, 9)),
    ((2, 3), (40, 61)),
]


def resize(size: tuple, out: tuple, align: bool) -> Resize:
    pairs = list(zip(size, out, strict=True))
    scales = [i / o for i, o in pairs]
    if align:
        scales = [(i - 1) / (o - 1) if o > 1 else 0 for i, o in pairs]
    return Resize(True, align, *scales)


def run(
    backend: str, how: Resize, given: list[Value], dtype: int, accumulate: bool
) -> list[np.ndarray]:
    """y and dx of x, dy and what dx is before."""
    x, dy, start = (exact_of(v) if backend == "ref" else v for v in given)
    kept = [] if backend == "ref" else [1, 8]  # channels beside
    y = Value(np.zeros(dy.shape, np.float32), F32 if backend == "ref" else dtype, *kept)
    dx = Value(start.numpy(), F32 if backend == "ref" else dtype, *kept[::-1])
    ce.call(f"{backend}_bilinear_forward", p(how), p(x.tensor()), p(y.tensor()))
    backward = f"{backend}_bilinear_backward"
    ce.call(backward, p(how), p(dy.tensor()), p(dx.tensor()), C.c_bool(accumulate))
    return [y.numpy(), dx.numpy()]


@DTYPES
@pytest.mark.parametrize("align", [False, True], ids=["", "corners"])
@pytest.mark.parametrize("size, out", SIZES)
def test_kernels(size: tuple, out: tuple, align: bool, dtype: int) -> None:
    c = 8 if size[0] % 2 else 3
    shapes = (2, *size, c), (2, *out, c), (2, *size, c)
    given = [
        Value(ce.random_values(k, shape), dtype, 8, 0) for k, shape in enumerate(shapes)
    ]
    how = resize(size, out, align)
    for accumulate in (False, True):
        made = run("cuda", how, given, dtype, accumulate)
        truth = run("ref", how, given, dtype, accumulate)
        for a, b, what in zip(made, truth, ("y", "dx"), strict=True):
            close(a, b, LIMIT[dtype], what)


@pytest.mark.parametrize("align", [False, True])
def test_every_output_gives_all_of_its_gradient(align: bool) -> None:
    """Where the backward looks for outputs is what the forward read, to the last pixel of
    sides whose places are rounded: the sum of the gradients stays."""
    for size, out in [(799, 1601), (1601, 799), (641, 20), (3, 2999), (2999, 2998)]:
        how = resize((1, size), (1, out), align)
        dy = Value(np.ones((1, 1, out, 1), np.float32))
        dx = Value(np.zeros((1, 1, size, 1), np.float32))
        ce.call("cuda_bilinear_backward", p(how), p(dy.tensor()), p(dx.tensor()), False)
        assert abs(float(dx.numpy().sum(dtype=np.float64)) - out) < 1e-3, (size, out)


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("dtype", ROUNDING, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", BILINEAR, ids=lambda case: case.name)
def test_plans_keep_the_error_rule(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    check_a_case(case, dtype, backend)
