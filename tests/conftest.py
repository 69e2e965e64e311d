# SPDX-License-Identifier: MIT
"""What all tests share: few threads, a look at the build under test, and no skips where
there must be a GPU."""

import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_report_header() -> str:
    import yolov9mem

    facts = yolov9mem.info()
    place = os.path.dirname(yolov9mem.__file__)
    kinds = [kind for kind in ("debug", "sanitize") if facts[kind]]
    return f"yolov9mem: {place} ({facts['isa']}{''.join(', ' + k for k in kinds)})"


def pytest_sessionstart(session: pytest.Session) -> None:
    """YOLOV9MEM_EXPECT_SANITIZE=1: a plain build under test would prove nothing."""
    import yolov9mem

    wanted = os.environ.get("YOLOV9MEM_EXPECT_SANITIZE") == "1"
    if wanted and not yolov9mem.info()["sanitize"]:
        pytest.exit(f"{yolov9mem.__file__} is not a sanitized build", returncode=3)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator:
    """YOLOV9MEM_REQUIRE_CUDA=1: a skip of a CUDA test is a failure.

    Only a test that is about machines without a GPU may be skipped.
    """
    report = yield
    about_cuda = item.path.name.startswith(("test_cuda_", "test_gpu_"))
    required = os.environ.get("YOLOV9MEM_REQUIRE_CUDA") == "1" and about_cuda
    if report.skipped and required and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr)
        if "there is a GPU" not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped, but YOLOV9MEM_REQUIRE_CUDA=1: {reason}"
    return report


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """Every test that has torch begins with the same random numbers. The trainer sets
    determinism for the whole process: not for the next test."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def launch() -> Iterator[Any]:
    """A yolov9mem.launch.launch.Launch that is on, as of a script without flags."""
    from yolov9mem.launch.cli import Settings
    from yolov9mem.launch.launch import Launch

    made = Launch(Settings())
    made.start()
    yield made
    made.stop()
