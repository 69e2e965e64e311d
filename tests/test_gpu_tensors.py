# SPDX-License-Identifier: MIT
"""Plans on a GPU's tensors in three dtypes, with cuDNN and without, against float64."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import PLANS, each_dtype, exact_float32, needs_gpu  # noqa: F401
from tensor_run import check_a_plan, check_a_planar_plan

pytestmark = needs_gpu


@pytest.mark.parametrize("backend", PLANS)
@pytest.mark.parametrize("keep", ["conv", "min"])
@each_dtype
def test_a_plan_on_tensors(dtype: torch.dtype, keep: str, backend: str) -> None:
    check_a_plan(dtype, keep, backend)


@pytest.mark.parametrize("backend", PLANS)
@pytest.mark.parametrize("given", [torch.float32, None], ids=["float32", "same"])
@each_dtype
def test_planar_inputs(
    given: torch.dtype | None, dtype: torch.dtype, backend: str
) -> None:
    check_a_planar_plan(given or dtype, dtype, "conv", backend)
