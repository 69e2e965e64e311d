# SPDX-License-Identifier: MIT
"""Inputs that come planar, on the CUDA backend, emulated: the kernel against NumPy's
transposition, and plans against the same plans whose inputs come packed."""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, Tensor, Value
from tensor_run import EMULATED, LIMIT, check_a_planar_plan

SHAPES = [
    (2, 3, 37, 41),
    (1, 3, 90, 200),  # more tiles than blocks
    (3, 1, 5, 7),
    (2, 4, 1, 1),
    (2, 17, 9, 13),
    (1, 32, 8, 9),
    (2, 33, 6, 7),  # a tile of one channel
    (1, 70, 3, 100),
]


@pytest.mark.parametrize(
    "given, kept",
    [(F32, F32), (F32, F16), (F32, BF16), (F16, F16), (BF16, BF16)],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_planes(shape: tuple[int, ...], given: int, kept: int) -> None:
    """Into a slice of wider pixels, from an odd address."""
    n, c, h, w = shape
    values = ce.random_values(3, shape) * 100
    flat = values.reshape(-1)
    flat[: min(4, flat.size)] = [np.inf, 1 + 2**-8, 1 + 3 * 2**-11, -0.0][: flat.size]
    flat[-1] = np.nan
    room = np.zeros(flat.size + 1, ce.STORED[given])
    room[1:] = ce.encode(flat, given)
    x = Tensor(room.ctypes.data + room.itemsize, given, n, h, w, c, 0)
    y = Value(np.zeros((n, h, w, c), np.float32), kept, 3, 2)
    ce.call("cuda_pack_planes", C.byref(x), C.byref(y.tensor()))
    stored = ce.decode(room[1:], given).reshape(shape).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(y.numpy(), ce.decode(ce.encode(stored, kept), kept))


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("dtype", LIMIT, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("given", ["float32", "same"])
def test_plans_have_the_bits_of_packed_inputs(
    given: str, dtype: torch.dtype, keep: str, backend: str
) -> None:
    check_a_planar_plan(
        torch.float32 if given == "float32" else dtype, dtype, keep, backend
    )
