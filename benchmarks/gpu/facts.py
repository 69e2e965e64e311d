# SPDX-License-Identifier: MIT
"""Which GPU this is and what drives it. Imports nothing of yolov9mem."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import torch


def output(*words: str) -> str:
    """What a command prints; "" where it is not there or fails."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def from_the_driver() -> dict[str, Any]:
    """By nvidia-smi, the first GPU; empty without it."""
    names = ("driver_version", "memory.used", "clocks.sm", "clocks.mem", "power.limit")
    query = f"--query-gpu={','.join(names)}"
    lines = output("nvidia-smi", query, "--format=csv,noheader").splitlines()
    if not lines:
        return {}
    return dict(zip(names, (cell.strip() for cell in lines[0].split(","))))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Raises RuntimeError where PyTorch sees no GPU."""
    found: dict[str, Any] = {"threads": {"torch": torch.get_num_threads()}}
    if request["device"] == "cpu":
        return found | {"name": "none (rehearsal on the CPU)", "capability": [0, 0]}
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA at all"
        raise RuntimeError(
            f"PyTorch {torch.__version__} (built for {built}) sees no GPU"
        )
    before = from_the_driver()
    properties = torch.cuda.get_device_properties(0)
    nvcc = re.search(r"release ([\d.]+)", output("nvcc", "--version"))
    return found | {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": before.get("driver_version"),
        "before": before,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": nvcc[1] if nvcc else None,
    }
