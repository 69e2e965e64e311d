# SPDX-License-Identifier: MIT
"""Weights in the values' type on the CUDA backend: cast once a step, all in a few launches.

What a training step under autocast of stock PyTorch does too: forward and backward see
the same cast weights.
"""

from __future__ import annotations

import ctypes as C
from pathlib import Path

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from cuda_emulation import BF16, F16, F32, STORED
from emulated_cudnn import fake_cudnn, run  # noqa: F401
from emulated_kernels import weight_of
from graph_oracle import Tracer
from random_graphs import draw_gradients
from tensor_run import TensorRun, traced

from yolov9mem.plan_table import plan_table, readable_bytes

AT_ONCE = 60  # YM_WEIGHTS_AT_ONCE
GUARD = 7
LAUNCHES = 0


def weights(count: int) -> list[np.ndarray]:
    """(K, C, R, S) of many sizes: strides of both layouts, of a slice, one element, some
    larger than what a block packs."""
    made = []
    for i in range(count):
        k, c, r, s = [(1, 1, 1, 1), (5, 3, 3, 3), (67, 33, 1, 1), (6, 40, 3, 5)][i % 4]
        w = ce.random_values(i, (k, c, r, s))
        if i % 3 == 1:
            w = w.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
        elif i % 3 == 2:
            w = ce.random_values(i, (k, c + 2, r, s))[:, 1 : c + 1]
        made.append(w)
    return made


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("count", [1, AT_ONCE])
def test_weights_are_packed_in_one_launch(count: int, dtype: int, order: int) -> None:
    given = weights(count)
    packed = [np.full(w.size + GUARD, 99, STORED[dtype]) for w in given]
    listed = (ce.Weight * count)(*map(weight_of, given))
    for entry, place in zip(listed, packed, strict=True):
        entry.packed = ce.address(place)
    lib = ce.library()
    lib.ym_emulation_order(order)
    lib.ym_emulation_reset_counts()
    ce.call("cuda_pack_weights", listed, C.c_int32(count), C.c_int(dtype))
    lib.ym_emulation_order(0)
    assert lib.ym_emulation_count(LAUNCHES) == 1
    for w, place in zip(given, packed, strict=True):
        truth = ce.encode(w.transpose(0, 2, 3, 1).ravel(), dtype)
        np.testing.assert_array_equal(place[: w.size], truth)
        assert (place[w.size :] == 99).all()


def aligned(count: int) -> int:
    return -(-count // 64) * 64


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_the_plan_counts_them_to_the_byte(dtype: torch.dtype, keep: str) -> None:
    t = traced(3, dtype)
    plan = TensorRun(t, "emulated cuDNN", dtype, keep).plan
    expected = sum(aligned(2 * p.numel()) for p in t.params if p.ndim == 4)
    assert plan.weight_bytes == expected > 0
    kept = sum(r["bytes"] for r in plan.table() if r["state"] == "kept")
    statistics = aligned(sum(8 * len(n["mean"]) for n in t.norms))
    assert plan.saved_bytes == statistics + expected + kept
    assert plan.peak_bytes == plan.saved_bytes + plan.workspace_bytes
    assert f"weights in 16 bits {readable_bytes(expected):>14}" in plan_table(plan)
    for other in (
        TensorRun(t, "emulated cuDNN", torch.float32, keep).plan,
        TensorRun(t, "emulated", dtype, keep).plan,
    ):
        assert other.weight_bytes == 0, "it takes the float32 weights as they are"


def test_a_weight_of_two_convolutions_is_packed_once() -> None:
    t = Tracer(2)
    x = t.conv(t.input(1, 8, 6, 5), 8, 3, 1, 1)
    y = t.graph.conv(x, 0, padding=(1, 1))
    value = torch.nn.functional.conv2d(t.values[x], t.params[0], padding=1)
    t.output(t.keep(y, value))
    run = TensorRun(t, "emulated cuDNN", torch.float16, "conv")
    assert run.plan.weight_bytes == 2 * 8 * 8 * 9
    made = run.run(draw_gradients(t, 1))
    assert all(torch.isfinite(x.float()).all() for x in made)


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
def test_backward_sees_the_weights_that_forward_saw(keep: str) -> None:
    """Also where it runs a convolution again."""
    t = traced(3, torch.float16)
    grads = draw_gradients(t, 1)
    truth = TensorRun(t, "emulated cuDNN", torch.float16, keep).run(grads)
    run = TensorRun(t, "emulated cuDNN", torch.float16, keep)
    made = run.forward()
    for p in run.params:
        if p.ndim == 4:
            p.fill_(float("nan"))
    made += run.backward(grads)
    for a, b in zip(made, truth, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_step_packs_them_in_one_launch(fake_cudnn: Path, keep: str) -> None:  # noqa: F811
    """cuDNN's own table; of float32 each call packs its own, into its scratch."""
    script = f"""
        ym.checkpoint(module, {keep!r}, cuda_graphs=False)
        gpu.watch("pack_weights_kernel")
        for dtype in (torch.float16, torch.float32):
            step(module, dtype)
            gpu.reset()
            step(module, dtype)
            print(gpu.count(3))
        print(sum(isinstance(m, torch.nn.Conv2d) for m in module.modules()))
    """
    mixed, exact, convolutions = map(int, run(script, YOLOV9MEM_CUDNN=str(fake_cudnn)))
    assert mixed == 1
    assert exact >= 2 * convolutions - 1 > 4, "forward, data gradients, what runs again"
