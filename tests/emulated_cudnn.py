# SPDX-License-Identifier: MIT
"""Scripts in a process of their own, where the emulation's library stands for cuDNN."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import cuda_emulation as ce
import pytest

# Forks of a process that has imported what takes seconds, and done nothing else.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch._dynamo", "yolov9mem.torch"])
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
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        variables = {"YOLOV9MEM_CUDNN": "", **environment}
        process = FORKED.Process(
            target=_execute, args=(_whole(script), variables, out, err)
        )
        process.start()
        process.join(timeout=200)
        process.kill()  # nothing, where it has ended
        assert process.exitcode == 0, err.read_text()[-2000:]
        return out.read_text().splitlines()


def run_anew(script: str, **environment: str) -> list[str]:
    """The same by a new Python, for what is read when a process starts."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", _whole(script)],
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


def _whole(script: str) -> str:
    return textwrap.dedent(PREPARED) + textwrap.dedent(script)


def _execute(script: str, variables: dict[str, str], out: Path, err: Path) -> None:
    os.environ.update(variables)
    for path, stream in ((out, sys.__stdout__), (err, sys.__stderr__)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    exec(script, {"__name__": "script"})
