# SPDX-License-Identifier: MIT
"""How many threads the core runs on beside PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CPUS = len(os.sched_getaffinity(0))
PROGRAM = """
import torch, yolov9mem
import yolov9mem.torch as ym

torch.set_num_threads({torch})
if {own}:
    yolov9mem.set_num_threads({own})
model = ym.checkpoint(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU()))
optimizer = ym.AccumulatingSGD(model.parameters(), lr=0.1)
{work}
print(yolov9mem.get_num_threads())
"""
FORWARD = "model(torch.rand(1, 3, 8, 8))"
STEP = "model[0].weight.grad = torch.ones(8, 3, 3, 3); optimizer.step()"


@pytest.mark.parametrize("work", [FORWARD, STEP], ids=["forward", "step"])
@pytest.mark.parametrize(
    "variables, own, threads",
    [
        ({"OMP_NUM_THREADS": "1"}, 0, min(2, CPUS)),
        ({"YOLOV9MEM_NUM_THREADS": "1"}, 0, 1),
        ({"OMP_NUM_THREADS": "1"}, 3, 3),
    ],
    ids=["as PyTorch", "variable", "set"],
)
def test_threads_are_those_of_pytorch(
    variables: dict[str, str], own: int, threads: int, work: str
) -> None:
    """ultralytics sets OMP_NUM_THREADS to 1 and tells PyTorch another number."""
    program = PROGRAM.format(torch=2, own=own, work=work)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == threads
