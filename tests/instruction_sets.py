# SPDX-License-Identifier: MIT
"""Tests once more in a process that is told to do with fewer instructions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import yolov9mem

FROM_LEAST = ("plain", "neon", "avx2", "avx512", "avx512_bf16")
HERE = yolov9mem.info()["isa"]


def _case(isa: str) -> object:
    """Skipped where there is nothing to run that this process does not run itself."""
    has_none = FROM_LEAST.index(isa) >= FROM_LEAST.index(HERE)
    reason = f"{isa} is no less than {HERE}, with which all tests run here"
    return pytest.param(isa, marks=pytest.mark.skipif(has_none, reason=reason))


each_lesser_isa = pytest.mark.parametrize(
    "isa", [_case(isa) for isa in ("avx512", "avx2", "plain")]
)


def run_again(file: str, which: str, isa: str) -> None:
    """Runs the tests of the file that `which` selects, as pytest -k does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, file, "-k", which],
        env={**os.environ, "YOLOV9MEM_ISA": isa},
        cwd=os.path.dirname(file),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
