# SPDX-License-Identifier: MIT
"""pytest benchmarks: one epoch by two forked workers, the official chain and ours."""

import pytest

from benchmarks.bench_loader import CHAIN, OURS, epoch, loaders, made_files

pytest.importorskip("pytest_benchmark")


@pytest.fixture(scope="module")
def all_loaders(tmp_path_factory):
    return loaders(*made_files(tmp_path_factory.mktemp("images")), 640)


@pytest.mark.parametrize("implementation", [CHAIN, OURS])
@pytest.mark.parametrize("case", ["in memory", "JPEG files"])
def test_epoch(benchmark, all_loaders, case, implementation):
    benchmark.group = "epoch of 96 samples, " + case
    batches = all_loaders[case][implementation]
    benchmark.pedantic(epoch, args=(batches,), rounds=7, warmup_rounds=1)
