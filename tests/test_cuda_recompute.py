# SPDX-License-Identifier: MIT
"""Outputs of stages that the CUDA backend, emulated, recomputes in backward."""

from __future__ import annotations

import cuda_emulation as ce
import pytest
from emulated_gpu import emulated_gpu
from models_for_tests import TELLS_OF_HOOKS
from recompute_run import check

pytestmark = TELLS_OF_HOOKS


@pytest.mark.parametrize("table", ["ym_cuda_plain_backend", "ym_cuda_backend"])
def test_a_backend(table: str) -> None:
    check("cpu", ce.capsule(table))


def test_a_gpu() -> None:
    with emulated_gpu():
        check("cpu", "auto")
