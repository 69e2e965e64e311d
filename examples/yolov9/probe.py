# SPDX-License-Identifier: MIT
"""Memory of one training step, measured in a process of its own.

`python -m yolov9.probe '{"name": ..., "keep": ...}'` prints JSON; `measure` runs it.
A fresh process with a low malloc threshold gives freed memory back to the system at
once, so that the resident set is what is in use.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from . import swap
from .memory import Timeline, held_by_autograd, resident_bytes
from .model import DetectionModel

LOW_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STEPS = 3
OBJECTS = 8  # objects an image in the made-up batch
CLASSES = 3
WARM_UP_SIZE = 64  # pixels of the stock step that loads code and makes gradients


def measure(name: str, size: int, batch: int, keep: str | None) -> dict:
    """Samples, marks, idle, peak and held bytes of the third step; keep None: stock.

    Raises RuntimeError with the end of the process's output if it fails.
    """
    wanted = {"name": name, "size": size, "batch": batch, "keep": keep}
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "yolov9.probe", json.dumps(wanted)],
        env={**os.environ, **LOW_THRESHOLD, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the memory probe failed: {done.stderr[-600:]}")
    return json.loads(done.stdout.splitlines()[-1])


def probe(name: str, size: int, batch: int, keep: str | None) -> dict:
    """What `measure` returns, in this process on the CPU.

    Idle is the level with model, gradients and code in memory but no step under way,
    so that a workspace kept between steps counts as part of the step.
    """
    step = _Step(name)
    step.run(WARM_UP_SIZE, 1)
    idle = resident_bytes()
    if keep is not None:
        swap.checkpoint(step.model, keep)
    for _ in range(STEPS - 1):
        step.run(size, batch)
    with Timeline() as timeline:
        step.run(size, batch, timeline)
    with held_by_autograd(step.model) as held:
        output = step.model(torch.rand(batch, 3, size, size))
    held_bytes = held.total if keep is None else swap.held_bytes(step.model)
    del output
    return {
        "samples": timeline.samples,
        "marks": timeline.marks,
        "idle_bytes": idle,
        "peak_bytes": max(b for _, b in timeline.samples) - idle,
        "held_bytes": held_bytes,
    }


class _Step:
    """Forward, loss and backward of a model on made-up batches."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.model = DetectionModel(name, CLASSES).train()
        gains = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
        self.loss = swap.detection_loss(self.model.model[-1], gains)

    def run(self, size: int, batch: int, timeline: Timeline | None = None) -> None:
        targets = torch.rand(batch * OBJECTS, 6)
        targets[:, 0] = torch.arange(batch).repeat_interleave(OBJECTS)
        targets[:, 1] = torch.arange(len(targets)) % CLASSES
        targets[:, 2:] = targets[:, 2:] * 0.3 + 0.3
        output = self.model(torch.rand(batch, 3, size, size))
        if timeline:
            timeline.mark("forward")
        loss = self.loss(output, targets)[0]
        del output
        loss.backward()
        if timeline:
            timeline.mark("backward")


if __name__ == "__main__":
    print(json.dumps(probe(**json.loads(sys.argv[1]))))
