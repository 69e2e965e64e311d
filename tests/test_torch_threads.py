# SPDX-License-Identifier: MIT
"""Threads: how many the core runs on beside PyTorch, and recordings in several."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

from yolov9mem.torch.recording import isolation

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


class SeenLock:
    """Tells by ``asked`` when a second thread has come to it."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.asked.set()
            self.lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self.lock.release()


def test_a_recording_that_waits_for_another_takes_none_of_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, seeded = SeenLock(), list[bool]()
    monkeypatch.setattr(isolation, "_lock", lock)
    before = random.getstate(), torch.get_rng_state()

    def second() -> None:
        with isolation.undisturbed():
            seeded.append(isolation.is_seeded())

    thread = threading.Thread(target=second)
    with isolation.undisturbed():
        torch.manual_seed(5), random.seed(5)
        thread.start()
        assert lock.asked.wait(60)
    thread.join()
    assert seeded == [False]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
