# SPDX-License-Identifier: MIT
"""The torch adapter on a GPU: a module trains as in stock PyTorch, also in several graphs,
and where its work is repeated as CUDA graphs."""

from __future__ import annotations

import pytest
import recompute_run
from backend_training import (
    check_gaps_that_draw,
    check_one_graph,
    check_several_graphs,
    check_tensors_on_the_cpu,
    plans_of,
    trained_with_and_without_graphs,
)
from gpu_machine import (  # noqa: F401
    DEVICE,
    NAMES,
    REHEARSES,
    exact_float32,
    needs_gpu,
    on_a_gpu_only,
    rehearsal,
)

pytestmark = needs_gpu


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_module_trains_as_in_stock(name: str, keep: str) -> None:
    check_one_graph(DEVICE, name, keep)


@pytest.mark.parametrize("name", NAMES)
def test_several_graphs_with_stock_calls_between(name: str) -> None:
    check_several_graphs(DEVICE, name)


@on_a_gpu_only  # in a rehearsal the CPU's tensors are the GPU's
def test_tensors_on_the_cpu_run_in_stock_when_cuda_was_asked_for() -> None:
    check_tensors_on_the_cpu()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_cuda_graphs_give_the_bits_of_launches(keep: str, name: str) -> None:
    module = trained_with_and_without_graphs(keep, DEVICE, name)
    if not REHEARSES:  # torch's allocator on a GPU gives the same memory again
        assert sum(plan.core.replays[1] for plan in plans_of(module)) > 0
        assert not any(plan.core.replays[2] for plan in plans_of(module))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_that_stock_calls_read_are_recomputed(name: str) -> None:
    recompute_run.check(DEVICE, name)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_gaps_that_draw_are_made_again_with_the_same_numbers(
    name: str, mixed: bool
) -> None:
    check_gaps_that_draw(DEVICE, name, mixed)
