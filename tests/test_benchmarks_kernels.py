# SPDX-License-Identifier: MIT
"""Where the GPU's time goes in a step: kernels by kind. Those here are invented."""

from __future__ import annotations

import pytest

from benchmarks import render
from benchmarks.gpu import rest, step_kernels, suites, table
from benchmarks.gpu.clock import Kernel
from benchmarks.gpu.names import COMPILED, GRAPHS, LAST
from benchmarks.gpu.step_kernels import busy_us, by_kind, kind_of, longest


@pytest.mark.parametrize(
    "name, kind",
    [
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f32_nhwckrsc", "convolutions"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_wgrad_grouped>", "convolutions"),
        ("void cudnn::bn_fw_tr_1C11_kernel_NHWC<__half>", "batch norm in cuDNN"),
        (
            "void at::native::vectorized_elementwise_kernel<4, CUDAFunctor>",
            "PyTorch's kernels",
        ),
        ("triton_poi_fused_cat_convolution_3", "torch.compile's kernels"),
        ("void sgd_step_kernel(pass, bool)", "yolov9mem's optimizer"),
        ("void brick_forward_kernel<__half, 2>(job)", "yolov9mem's kernels"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and fills by the driver"),
        ("spin", "others"),
    ],
)
def test_a_kernel_s_name_tells_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_time_in_which_two_kernels_run_counts_once() -> None:
    kernels = [Kernel("a", 10, 14), Kernel("b", 0, 4), Kernel("c", 2, 6)]
    kernels.append(Kernel("within", 3, 5))
    assert busy_us(kernels) == 6 + 4
    assert busy_us([]) == 0


def test_kinds_are_of_one_step() -> None:
    kernels = [Kernel("conv", 0, 1000), Kernel("conv", 4000, 6000)]
    kernels.append(Kernel("sgd_norm_kernel", 7000, 8000))
    whole, *kinds = by_kind(kernels, steps=2)
    assert whole == {"kind": "all", "launches": 1.5, "ms": 2.0, "waits_ms": 2.0}
    assert kinds == [
        {"kind": "convolutions", "launches": 1.0, "ms": 1.5},
        {"kind": "yolov9mem's optimizer", "launches": 0.5, "ms": 0.5},
    ]
    first, second = longest(kernels, steps=2)
    assert first == {"name": "conv", "launches": 1.0, "ms": 1.5}
    assert second["name"] == "sgd_norm_kernel"


def test_kernels_of_a_step_are_rehearsed_on_the_cpu(monkeypatch) -> None:
    """With PyTorch's operations in the place of kernels."""
    monkeypatch.setattr(step_kernels, "STEPS", 1)
    (task,) = rest.step_kernels(quick=True)
    assert task.request is not None
    found = step_kernels.run(task.request | {"device": "cpu"})
    whole, *kinds = found["rows"]
    assert whole["implementation"] == GRAPHS and whole["ms"] > 0
    assert "PyTorch's kernels" in [row["kind"] for row in kinds]
    assert 0 < len(found["longest"]) <= step_kernels.LONGEST
    times = [took for _, _, took in found["costly"]]
    assert times == sorted(times, reverse=True) and times[0] > 0
    tasks = {task.key: {"outcome": "done", "stage": "rest", "result": found}}
    tasks[task.key]["request"] = task.request
    shown = render.table(suites.from_tasks(tasks)["step_kernels"])
    assert f"| {GRAPHS} | all |" in shown and "batch 2" in shown


def test_kernels_are_of_the_rows_that_are_compared() -> None:
    """Beside torch.compile's row and in PyTorch's own settings."""
    requests = [task.request for task in rest.step_kernels(quick=False)]
    assert requests == [table.free(way) for way in (GRAPHS, COMPILED, LAST)]
