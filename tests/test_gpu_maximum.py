# SPDX-License-Identifier: MIT
"""Maxima on a GPU's tensors in three dtypes, beside NumPy."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import PLANS, REHEARSES, each_dtype, needs_gpu, rehearsal  # noqa: F401
from kernel_cases import Case, maximum_case
from maximum_run import MAXIMA, check_maxima

pytestmark = needs_gpu

# As a model has them: windows in chunks, as whole blocks and several to a block.
LARGE = [
    maximum_case((4, 128, 80, 80), "hw"),
    maximum_case((64, 256, 20, 20), "hw"),
    maximum_case((16, 128, 80, 80), "h"),
    maximum_case((16, 128, 80, 80), "w"),
    maximum_case((4, 512, 40, 40), "c"),
]


@pytest.mark.parametrize("backend", PLANS)
@pytest.mark.parametrize("ties", [False, True], ids=["plain", "ties"])
@each_dtype
@pytest.mark.parametrize("case", MAXIMA, ids=lambda case: case.name)
def test_plans_choose_what_numpy_does(
    case: Case, dtype: torch.dtype, ties: bool, backend: str
) -> None:
    check_maxima(case, dtype, backend, ties)


@pytest.mark.skipif(REHEARSES, reason="a rehearsal takes long over many pixels")
@each_dtype
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_maxima_of_the_size_of_a_model(case: Case, dtype: torch.dtype) -> None:
    for ties in (False, True):
        check_maxima(case, dtype, PLANS[0], ties)
