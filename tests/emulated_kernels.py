# SPDX-License-Identifier: MIT
"""Values of one CUDA kernel, emulated, and how far from "ref" they may be."""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest
from cuda_emulation import BF16, F16, F32, Value, Weight

# One rounding to the stored type, relative to the largest value.
LIMIT = {F32: 4e-6, BF16: 2**-8, F16: 2**-11}
DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])


def close(made: np.ndarray, exact: np.ndarray, limit: float, what: str = "") -> None:
    assert not np.isnan(made).any(), f"{what}: NaN"
    error = float(np.abs(made - exact).max() / (np.abs(exact).max() + 1e-30))
    assert error <= limit, f"{what}: {error} > {limit}"


def exact_of(value: Value) -> Value:
    """The same values as packed float32."""
    return Value(value.numpy(), F32)


def p(structure: C.Structure) -> object:
    return C.byref(structure)


def weight_of(array: np.ndarray) -> Weight:
    """array: (K, C / groups, R, S) float32 with any strides."""
    return Weight(ce.address(array), *array.shape, *(s // 4 for s in array.strides))
