# SPDX-License-Identifier: MIT
"""Peak memory of a piece of work, as the system counts it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Freed blocks of more than 64 KB go back to the system at once, so that the resident
# set is what is in use.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def _status(field: str, process: int | str = "self") -> int:
    """A field of /proc/PROCESS/status in bytes."""
    path = Path(f"/proc/{process}/status")
    for line in path.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} has no {field}: this needs Linux")


def resident_bytes() -> int:
    """The resident set, after what malloc holds free has gone back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def resident_bytes_of(process: int) -> int:
    """The resident set of another process, e.g. a DataLoader's worker."""
    return _status("VmRSS", process)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which the resident set rose above its level before `work`, at most."""
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present value
    work()
    return _status("VmHWM") - before


def in_fresh_process(module: str, request: dict[str, Any]) -> dict[str, Any]:
    """Runs `python -m MODULE REQUEST` and returns the JSON of its last line.

    Raises:
        RuntimeError: the process failed; ends with its own words.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(request)],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} {request} failed: {done.stderr[-800:]}")
    return json.loads(done.stdout.splitlines()[-1])
