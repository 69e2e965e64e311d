# SPDX-License-Identifier: MIT
"""pytest benchmarks: the optimizer step of yolov9-s."""

import pytest

from benchmarks.bench_sgd import IMPLEMENTATIONS, cases

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def all_cases():
    return cases("yolov9-s")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_optimizer_step(benchmark, all_cases, implementation):
    case = all_cases[implementation]
    benchmark.pedantic(case.run, setup=case.prepare, rounds=7, warmup_rounds=2)
