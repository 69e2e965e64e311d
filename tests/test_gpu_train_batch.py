# SPDX-License-Identifier: MIT
"""The largest batch: what a GPU measures, and a training that stays within it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from allocations import peak_of
from gpu_machine import (  # noqa: F401
    DEVICE,
    NAMES,
    REHEARSES,
    needs_gpu,
    on_a_gpu_only,
    rehearsal,
)
from models_for_tests import Elan

import yolov9mem.torch as ym
from yolov9 import batch, checkpoints, val
from yolov9.main import main
from yolov9.synthetic import make_shapes
from yolov9mem.torch.batches import CudaMeter

pytestmark = needs_gpu
MB = 10**6
SIDE, ROOM = (16, 3 * MB) if REHEARSES else (128, 600 * MB)


def measured(work: Callable[[], object]) -> tuple[int, int]:
    """Of memory that is ROOM in all."""
    if REHEARSES:
        return peak_of(work), ROOM
    return CudaMeter([torch.device("cuda")])(work)[0], ROOM


def prepare() -> Callable[[int], None]:
    model = ym.checkpoint(Elan(16, 24, 8).to(DEVICE).train(), backend=NAMES[0])
    optimizer = ym.AccumulatingSGD(model.parameters(), 0.01, 0.9)

    def step(count: int) -> None:
        x = torch.randn(count, 16, SIDE, SIDE, device=DEVICE)
        model(x).square().mean().backward()
        optimizer.step()

    return step


def test_the_largest_batch_of_a_module() -> None:
    """Another model's steps of that batch take as much; twice as many take too much."""
    # Allocations in another order may need a segment of 20 MB more.
    found = ym.largest_batch(prepare, meter=measured, share=0.95)
    assert found.batch > 3
    step = prepare()
    step(1)
    for count, fits in ((found.batch, True), (2 * found.batch, False)):
        peak, _ = measured(lambda count=count: (step(count), step(count)))
        assert (peak <= ROOM) == fits, (count, peak)


@on_a_gpu_only
@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_training_stays_within_what_was_measured(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a GPU that is made small for it: torch refuses what is more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch, "meter", lambda devices: measured)
    # Metrics take no memory of the GPU, and a lent machine has no pycocotools.
    monkeypatch.setattr(val, "evaluate", lambda *_: val.Metrics())
    data = make_shapes(tmp_path / "shapes", train=96, val=8, size=160)
    line = f"--cfg yolov9-t --img 320 --batch -1 --epochs 1 --workers 0 --ckpt {keep}"
    line += f" --noplots --hyp hyp.short.yaml --data {data}"
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(ROOM / total)
    try:
        assert main(line.split()) == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    saved = checkpoints.load(Path("runs/train/exp/weights/last.pt"))
    assert 1 < saved["opt"]["batch_size"] < 96
