# SPDX-License-Identifier: MIT
"""Batch norms that two processes share, which have one GPU and gloo."""

from __future__ import annotations

from gpu_machine import DEVICE, NAMES, needs_gpu
from shared_run import check_two_processes

pytestmark = needs_gpu


def test_two_processes_share_batch_norms() -> None:
    check_two_processes(DEVICE, NAMES)
