# SPDX-License-Identifier: MIT
"""Random graphs of every kind of node on a GPU, in three dtypes, against float64."""

from __future__ import annotations

import pytest
import torch
from gpu_machine import PLANS, each_dtype, exact_float32, needs_gpu  # noqa: F401
from random_graphs import draw_gradients, random_case
from tensor_run import LIMIT, TensorRun, exact

pytestmark = needs_gpu
# Graphs of a few pixels amplify: what one rounding in a value may become.
SLACK = 10.0


def error(made: torch.Tensor, truth: torch.Tensor, scale: float) -> float:
    norm = max(float(truth.detach().norm()), 0.05 * scale, 1e-6)
    return float((made.cpu().double() - truth.detach()).norm()) / norm


@pytest.mark.parametrize("backend", PLANS)
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int, keep: str, backend: str) -> None:
    t, _ = random_case(200 + seed)
    grads = draw_gradients(t, seed)
    run = TensorRun(t, backend, torch.float32, keep)
    made, truth = run.run(grads), exact(t, grads)
    scale = max(float(x.detach().norm()) for x in truth)
    for i, (a, b) in enumerate(zip(made, truth, strict=True)):
        assert error(a, b, scale) < SLACK * LIMIT[torch.float32], (i, tuple(b.shape))


@pytest.mark.parametrize("backend", PLANS)
@each_dtype
def test_two_runs_have_the_same_bits(dtype: torch.dtype, backend: str) -> None:
    t, _ = random_case(217)
    grads = draw_gradients(t, 1)
    one = TensorRun(t, backend, dtype, "min").run(grads)
    other = TensorRun(t, backend, dtype, "min").run(grads)
    kept = TensorRun(t, backend, dtype, "all").run(grads)
    for a, b, c in zip(one, other, kept, strict=True):
        assert torch.equal(a, b), "two runs differ"
        assert torch.equal(a, c), "what is rebuilt differs from what is kept"
