# SPDX-License-Identifier: MIT
"""pytest benchmarks: 16 training samples at 640 px, the official chain and ours."""

import pytest

from benchmarks.bench_mosaic import CASES, CHAIN, OURS, cases, temporary_bytes

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("implementation", [CHAIN, OURS])
@pytest.mark.parametrize("name", CASES)
def test_mosaic(benchmark, name, implementation):
    case = cases(name)[implementation]
    temporary = temporary_bytes(case.run, 3 * 640 * 640)
    benchmark.group = "16 samples, " + name
    benchmark.name = f"{implementation}, temporaries {temporary / 1e6:.2f} MB"
    benchmark.extra_info["temporary_bytes"] = temporary
    benchmark.pedantic(case.run, setup=case.prepare, rounds=7, warmup_rounds=1)
