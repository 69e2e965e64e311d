# SPDX-License-Identifier: MIT
"""pytest benchmarks: the optimizer step of yolov9-s."""

import pytest

from benchmarks.bench_sgd import cases


@pytest.fixture(scope="module")
def all_cases():
    return cases("yolov9-s")


@pytest.mark.parametrize("number", range(5))
def test_optimizer_step(benchmark, all_cases, number):
    name, case = list(all_cases.items())[number]
    benchmark.extra_info["implementation"] = name
    benchmark.pedantic(case.run, setup=case.prepare, rounds=7, warmup_rounds=2)
