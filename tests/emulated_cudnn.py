# SPDX-License-Identifier: MIT
"""Scripts in a process of their own, where the emulation's library stands for cuDNN."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cuda_emulation as ce
import pytest

TESTS = Path(__file__).resolve().parent
PREPARED = """
    import torch
    from emulated_gpu import autocast, emulated_gpu
    from models_for_tests import Elan
    import yolov9mem.torch as ym

    def step(module, dtype=torch.float32):
        with autocast(dtype):
            y = module(torch.randn(2, 8, 8, 8))
        y.float().square().sum().backward()

    def attempt(call):
        try:
            call()
            print("fine")
        except Exception as error:
            print(type(error).__name__, error)

    torch.manual_seed(0)
    module = ym.checkpoint(Elan(8, 8, 8).train())
    gpu_context = emulated_gpu(cudnn=True)
    gpu = gpu_context.__enter__()
"""


@pytest.fixture(scope="module")
def fake_cudnn() -> Path:
    return ce.build()


def run(script: str, **environment: str) -> list[str]:
    """Lines that the script prints in a process of its own: a process has one cuDNN."""
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            textwrap.dedent(PREPARED) + textwrap.dedent(script),
        ],
        cwd=TESTS,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "YOLOV9MEM_CUDNN": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()
