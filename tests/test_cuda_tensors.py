# SPDX-License-Identifier: MIT
"""Plans on torch's tensors in float32, float16 and bfloat16, emulated, against float64
autograd; test_gpu_tensors.py is the same on a GPU."""

from __future__ import annotations

import pytest
import torch
from tensor_run import EMULATED, LIMIT, check_a_plan


@pytest.mark.parametrize("backend", EMULATED)
@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("dtype", LIMIT, ids=["f32", "f16", "bf16"])
def test_a_plan_on_tensors(dtype: torch.dtype, keep: str, backend: str) -> None:
    check_a_plan(dtype, keep, backend)
