# SPDX-License-Identifier: MIT
"""Activations, products, means, bilinear upsampling, transposed convolutions and affine
calls on a GPU's tensors in three dtypes, against float64."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import PLANS, each_dtype, exact_float32, needs_gpu, rehearsal  # noqa: F401
from kernel_calls import ACTIVATIONS
from kernel_cases import Case
from kernel_run import (
    ADJOINTS,
    BILINEAR,
    PRODUCTS,
    check_a_case,
    check_an_activation,
)

pytestmark = needs_gpu


@pytest.mark.parametrize("backend", PLANS)
@each_dtype
@pytest.mark.parametrize(
    "case", PRODUCTS + ADJOINTS + BILINEAR, ids=lambda case: case.name
)
def test_plans_keep_the_error_rule(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    check_a_case(case, dtype, backend)


@each_dtype
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activation_keeps_the_error_rule(kind: str, dtype: torch.dtype) -> None:
    """With the GPU's own exponentials and quotients."""
    check_an_activation(kind, dtype, PLANS[1])
