# SPDX-License-Identifier: MIT
"""pytest benchmarks: 16 training samples at 640 px, the official chain and ours."""

import pytest

from benchmarks.bench_mosaic import CASES, CHAIN, OURS, cases

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("implementation", [CHAIN, OURS])
@pytest.mark.parametrize("name", CASES)
def test_mosaic(benchmark, name, implementation):
    case = cases(name)[implementation]
    benchmark.pedantic(case.run, setup=case.prepare, rounds=7, warmup_rounds=1)
