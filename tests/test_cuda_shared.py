# SPDX-License-Identifier: MIT
"""Batch norms that two processes share, on the CUDA backend, emulated. test_gpu_shared.py
is the same on a GPU."""

from __future__ import annotations

import cuda_emulation as ce
from shared_run import check_two_processes


def test_two_processes_share_batch_norms() -> None:
    ce.build()  # once, not in each of them
    check_two_processes("cpu", ("cuda",))
