# SPDX-License-Identifier: MIT
"""The torch adapter on the CUDA backend, emulated: a module trains as in stock PyTorch.
test_gpu_torch.py is the same on a GPU."""

from __future__ import annotations

import cuda_emulation as ce
import pytest
from backend_training import (
    check_one_graph,
    check_several_graphs,
    check_tensors_on_the_cpu,
)


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_module_trains_as_in_stock(keep: str) -> None:
    check_one_graph("cpu", ce.capsule(), keep)


def test_several_graphs_with_stock_calls_between() -> None:
    check_several_graphs("cpu", ce.capsule())


def test_tensors_on_the_cpu_run_in_stock_when_cuda_was_asked_for() -> None:
    check_tensors_on_the_cpu()
