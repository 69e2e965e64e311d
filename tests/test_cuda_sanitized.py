# SPDX-License-Identifier: MIT
"""The emulated CUDA tests once more with AddressSanitizer in the kernels.

NumPy's memory is then the sanitizer's, so an access beside an array ends the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
FILES = [
    ("kernels", "bilinear", "multiply", "planes"),
    ("maximum",),
    ("conv", "sgd", "mosaic", "plan"),
]


def runtime(name: str) -> str:
    """The path of a library of the compiler; the bare name if it has none."""
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(
    os.environ.get("YOLOV9MEM_EXPECT_SANITIZE") == "1",
    reason="all is sanitized already",
)
@pytest.mark.skipif(
    not os.path.isabs(runtime("libasan.so")), reason="this compiler has no libasan"
)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("files", FILES, ids=" ".join)
def test_no_access_beside_an_array(files: tuple[str, ...]) -> None:
    preload = " ".join(runtime(name) for name in ("libasan.so", "libstdc++.so"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            # The same kernels by way of plans; values of the size of float16's.
            *("-k", "not test_plans_ and not bf16"),
            *(str(TESTS / f"test_cuda_{name}.py") for name in files),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",
            "YOLOV9MEM_EMULATION_ASAN": "1",
        },
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
