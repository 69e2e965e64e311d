# SPDX-License-Identifier: MIT
"""pytest benchmarks: a training step of yolov9-t, small enough for a laptop."""

import pytest

from benchmarks.step import DTYPES, WAYS, Step

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_training_step(benchmark, way, dtype):
    step = Step(way, "yolov9-t", 2, 160, dtype)
    benchmark.pedantic(step, setup=step.clear, rounds=7, warmup_rounds=1)
