# SPDX-License-Identifier: MIT
"""Whole plans on the emulated CUDA backend against float64 autograd.

"plain" takes tensors of any pitch; with cuDNN the planner packs what a convolution reads
or writes.
"""

from __future__ import annotations

import ctypes as C
import threading
import time

import cuda_emulation as ce
import numpy as np
import pytest
from graph_oracle import Run, check
from random_graphs import draw_gradients, random_case, small_elan

from yolov9mem import _core

TABLES = {"plain": "ym_cuda_plain_backend", "cudnn": "ym_cuda_backend"}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("seed", range(4))
def test_random_graphs(seed: int, keep: str, table: str) -> None:
    t, before = random_case(100 + seed)
    backend = ce.capsule(TABLES[table])
    check(t, before, draw_gradients(t, seed), keep=keep, backend=backend, segments=2)


@pytest.mark.parametrize("table", TABLES)
def test_rebuilding_gives_the_bits_of_keeping(table: str) -> None:
    """A rebuilt value is made by the same kernel from the same operands."""
    t, before = small_elan()
    grads = [
        g.permute(0, 2, 3, 1).float().contiguous().numpy() for g in draw_gradients(t, 1)
    ]
    runs = []
    for keep in ("all", "min"):
        run = Run(t, before, keep=keep, backend=ce.capsule(TABLES[table]))
        run.forward()
        run.backward(grads)
        runs.append([*run.outputs, *run.grad_inputs, *run.grad_params])
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_plan_refuses_memory_of_another_device() -> None:
    t, before = small_elan()
    run = Run(t, before, backend=ce.capsule())
    shape = run.inputs[0].shape
    strides = tuple(s // 4 for s in run.inputs[0].strides)
    run.inputs[0] = (64, "float32", shape, strides, 1)
    with pytest.raises(
        ValueError, match=r"inputs\[0\]: is on CUDA device 1, the plan is"
    ):
        run.forward()


def test_other_threads_run_while_a_plan_is_made() -> None:
    """cuDNN is opened and asked for seconds; the graph is nobody's else meanwhile."""
    lib, backend = ce.library(), ce.capsule("ym_cuda_backend")
    graph = _core.Graph()
    weight = graph.param((3, 2, 1, 1), "w")
    graph.output(graph.conv(graph.input(2), weight))
    made: list[_core.Plan] = []
    thread = threading.Thread(
        target=lambda: made.append(_core.Plan(graph, [(1, 5, 3)], backend=backend))
    )
    lib.ym_emulation_hold(1)
    try:
        thread.start()
        while thread.is_alive() and not lib.ym_emulation_held():
            time.sleep(0.001)
        assert lib.ym_emulation_held(), "nobody else ran before the plan was made"
        with pytest.raises(ValueError, match="a plan is being made from it"):
            graph.input(3)
    finally:
        lib.ym_emulation_hold(0)
        thread.join()
    assert made[0].output_shapes == [(1, 5, 3, 3)]
    with pytest.raises(ValueError, match="a plan was made from it"):
        graph.input(3)


def test_a_failing_launch_is_an_exception_and_the_next_run_works() -> None:
    t, before = small_elan()
    run = Run(t, before, backend=ce.capsule())
    ce.library().ym_emulation_fail_next(2)
    with pytest.raises(MemoryError, match="cuda: .*_kernel.*smaller batch"):
        run.forward()
    assert np.isfinite(run.forward()[0]).all()


def test_a_struct_of_another_size_than_in_c_is_refused(monkeypatch) -> None:
    class Pool(C.Structure):
        _fields_ = [("kernel", C.c_int32)]

    ce.check_sizes(ce.library())
    monkeypatch.setitem(ce._mirrored, "ym_pool", Pool)
    with pytest.raises(AssertionError, match="Pool has 4 bytes, ym_pool has 28"):
        ce.check_sizes(ce.library())
