# SPDX-License-Identifier: MIT
"""pytest benchmarks: a training step of yolov9-t, small enough for a laptop.

The peak of the step is in the row's name, so that time and memory are in one table.
"""

import pytest

from benchmarks.bench_step import peak_bytes
from benchmarks.step import DTYPES, WAYS, Step

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_training_step(benchmark, way, dtype):
    case = "yolov9-t", 2, 160, dtype
    peak = peak_bytes(way, *case)
    step = Step(way, *case)
    benchmark.group = "training step of yolov9-t, batch 2, 160 px, " + dtype
    benchmark.name = f"{way}, peak {peak / 1e6:.0f} MB"
    benchmark.extra_info["peak_bytes"] = peak
    benchmark.pedantic(step, setup=step.clear, rounds=7, warmup_rounds=1)
