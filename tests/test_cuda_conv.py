# SPDX-License-Identifier: MIT
"""The plain CUDA convolution, emulated on the CPU, against the "ref" backend; and plans of
transposed convolutions and affine calls against float64."""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import kernel_cases
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, Conv, Value, Weight
from emulated_kernels import LIMIT, weight_of
from kernel_run import ADJOINTS, ROUNDING, check_a_case
from tensor_run import EMULATED

# n, h, w, c, k, kernel, stride, padding, dilation, groups
CASES = {
    "3x3": (2, 7, 9, 5, 6, 3, 1, 1, 1, 1),
    "1x1 of many channels": (1, 5, 5, 70, 68, 1, 1, 0, 1, 1),
    "stride 2, odd size": (1, 9, 8, 4, 3, 3, 2, 1, 1, 1),
    "stride 2, no padding": (1, 8, 8, 3, 4, 3, 2, 0, 1, 1),
    "stride beyond the image": (2, 2, 5, 3, 4, 3, 6, 1, 1, 1),
    "dilated": (1, 9, 9, 2, 3, 3, 1, 2, 2, 1),
    "groups": (1, 6, 5, 6, 4, 3, 1, 1, 1, 2),
    "depthwise": (1, 6, 5, 4, 4, 3, 2, 1, 1, 4),
    "parts of the pixels": (2, 20, 17, 3, 4, 3, 1, 1, 1, 1),
}


class Case:
    def __init__(self, numbers: tuple, dtype: int) -> None:
        n, h, w, c, k, kernel, stride, pad, dilation, groups = numbers
        oh, ow = (
            (s + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for s in (h, w)
        )
        self.conv = Conv(
            k, c, kernel, kernel, stride, stride, pad, pad, dilation, dilation, groups
        )
        self.dtype, self.x_shape, self.y_shape = dtype, (n, h, w, c), (n, oh, ow, k)
        self.x = Value(ce.random_values(1, self.x_shape), dtype, 3, 2)
        self.dy = Value(ce.random_values(2, self.y_shape), dtype, 1, 4)
        krsc = ce.random_values(3, (k, kernel, kernel, c // groups))
        self.w = krsc.transpose(0, 3, 1, 2)
        self.bias = ce.random_values(4, (k,))

    def run(self, backend: str, prefix: str, accumulate: bool) -> list[np.ndarray]:
        exact = backend == "ref"
        dtype = F32 if exact else self.dtype
        x, dy = (Value(v.numpy(), F32) if exact else v for v in (self.x, self.dy))
        start = Value(ce.random_values(5, self.x_shape), self.dtype, 2, 2)
        dx = Value(start.numpy(), F32) if exact else start
        y = Value(np.zeros(self.y_shape, np.float32), dtype, 0, 3)
        dw = ce.random_values(6, self.w.shape)
        dbias = ce.random_values(7, self.bias.shape)
        conv, flag = C.byref(self.conv), C.c_bool(accumulate)
        tensors = [C.byref(v.tensor()) for v in (x, y, dy, dx)]
        weights = [C.byref(weight_of(a)) for a in (self.w, dw)]
        bias, dbias_at = (C.c_void_p(ce.address(a)) for a in (self.bias, dbias))
        ce.call(f"{prefix}_forward", conv, tensors[0], weights[0], bias, tensors[1])
        ce.call(
            f"{prefix}_backward_data", conv, tensors[2], weights[0], tensors[3], flag
        )
        scratch = ce.scratch_bytes(
            "cuda_plain_conv", ce.BACKWARD_WEIGHT, conv, tensors[0], tensors[2]
        )
        ce.call(
            f"{prefix}_backward_weight",
            *(conv, tensors[0], tensors[2], weights[1], flag, dbias_at, flag),
            scratch=scratch,
        )
        return [y.numpy(), dx.numpy(), dw, dbias]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("name", CASES)
def test_plain_convolution(dtype: int, name: str) -> None:
    case = Case(CASES[name], dtype)
    for accumulate in (False, True):
        made = case.run("cuda", "cuda_plain_conv", accumulate)
        truth = case.run("ref", "ref_conv", accumulate)
        for i, (a, b) in enumerate(zip(made, truth, strict=True)):
            error = np.abs(a - b).max() / np.abs(b).max()
            assert error <= (LIMIT[dtype] if i < 2 else 1e-5), (accumulate, i, error)


def test_only_what_is_wanted_is_written() -> None:
    case = Case(CASES["3x3"], F32)
    dw, dbias = np.full(case.w.shape, 7, np.float32), np.full(6, 7, np.float32)
    x, dy = C.byref(case.x.tensor()), C.byref(case.dy.tensor())
    no = C.c_bool(False)
    scratch = ce.scratch_bytes(
        "cuda_plain_conv", ce.BACKWARD_WEIGHT, C.byref(case.conv), x, dy
    )
    absent = Weight(None, *dw.shape)
    for weight, bias in ((weight_of(dw), None), (absent, dbias)):
        ce.call(
            "cuda_plain_conv_backward_weight",
            *(C.byref(case.conv), x, dy, C.byref(weight), no),
            *(C.c_void_p(ce.address(bias)), no),
            scratch=scratch,
        )
    assert not (dw == 7).any()
    assert not (dbias == 7).any()


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("dtype", ROUNDING, ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", ADJOINTS, ids=lambda case: case.name)
def test_plans_of_adjoints_keep_the_error_rule(
    case: kernel_cases.Case, dtype: torch.dtype, backend: str
) -> None:
    check_a_case(case, dtype, backend)
