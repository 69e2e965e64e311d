# SPDX-License-Identifier: MIT
"""--batch-size -1 of the example: what is chosen, from what, and that no trace is left."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from allocations import peak_of
from example_sets import arguments, small_set  # noqa: F401
from torch import nn

from yolov9 import batch, checkpoints, options
from yolov9.environment import Processes, autocast_options
from yolov9.labels import Record
from yolov9.main import main
from yolov9mem.torch import DetectionLoss
from yolov9mem.torch.running.arenas import drop_workspace

CPU = torch.device("cpu")


def a_run(*extra: str, objects: int = 2, images: int = 9, size: int = 64) -> batch.Run:
    line = ["--cfg", "gelan-t", "--device", "cpu", "--batch", "-1", *extra]
    opt = options.parser().parse_args(line)
    options.check(opt)
    labels = np.zeros((objects, 5), np.float32)
    return batch.Run(
        opt,
        options.read_hyp(opt.hyp, opt),
        "gelan-t",
        3,
        size,
        Processes(-1, -1, 1),
        [CPU],
        autocast_options(opt.amp, CPU),
        [Record("x.png", size, size, labels, [])] * images,
    )


class Meter:
    """Counts the host memory of steps, as if of a GPU with so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.peaks = room, []
        monkeypatch.setattr(batch, "meter", lambda devices: self)

    def __call__(self, work: Callable[[], object]) -> tuple[int, int]:
        if not self.peaks:
            work()  # makes the model, which is not counted
        drop_workspace()  # kept on the CPU alone
        self.peaks.append(peak_of(work))
        return self.peaks[-1], self.room


def test_without_a_gpu_it_is_sixteen(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch.choose(a_run()) == 16
    assert (
        capsys.readouterr().out == "--batch-size -1: 16, as there is no GPU to fill\n"
    )


def counted_peak(run: batch.Run, images: int) -> int:
    """Bytes of steps of that many images, of a model made for them."""
    step = batch._Trial(run)
    drop_workspace()
    return peak_of(lambda: (step(images), step(images)))


@pytest.mark.parametrize(
    "megabytes, line",
    [
        (20, "--stock"),
        (10, "--ckpt"),
        (6, "--ckpt min --amp"),
        (20, "--ckpt all --optimizer AdamW"),
        (10, "--ckpt 8MB --accumulate 1"),
    ],
)
def test_what_is_chosen_fits_and_one_more_does_not(
    megabytes: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(*line.split(), images=80)
    room = megabytes * 10**6
    Meter(monkeypatch, room)
    found = batch.choose(run)
    assert 2 < found < 80
    assert counted_peak(run, found) <= 0.9 * room < counted_peak(run, found + 1)


def test_no_more_than_there_are_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Meter(monkeypatch, 10**12)
    assert batch.choose(a_run("--ckpt", images=5)) == 5
    assert capsys.readouterr().out.endswith("; there are no more images\n")


def test_the_largest_size_and_the_densest_image_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides, objects = [], []
    step = batch.TrainingStep.__call__

    def noted(
        self: object, images: torch.Tensor, targets: torch.Tensor, *rest
    ) -> object:
        objects.append(torch.bincount(targets[:, 0].long()).tolist())
        return step(self, images, targets, *rest)

    def seen(module: nn.Module, inputs: tuple) -> None:
        sides.append((module.training, inputs[0].shape[-1]))

    monkeypatch.setattr(batch.TrainingStep, "__call__", noted)
    run = a_run("--stock", "--multi-scale", size=128)
    crowd = Record("y.png", 64, 64, np.zeros((11, 5), np.float32), [])
    run.images.append(crowd)  # 29 objects of 10 images
    trial = batch._Trial(run)
    for model in (trial.step.model, trial.ema.ema):
        model.register_forward_pre_hook(seen)
    trial(3)
    # --multi-scale goes up to half as much more, validation pads by half a stride.
    assert sides == [(True, 192), (False, 160)]
    assert objects[-1] == [12 + 11 - 3, 12, 12]


def state_after(name: str) -> dict:
    return checkpoints.load(Path(f"runs/train/{name}/weights/last.pt"))


@pytest.mark.parametrize("ours", [False, True])
def test_no_trace_is_left(
    ours: bool,
    small_set: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run is that of the number that it says, bit for bit: weights, statistics,
    average, momentum, and so the random numbers of loader and mosaic."""
    monkeypatch.setattr(checkpoints, "strip", lambda path: None)
    extra = ("--epochs", "1", "--accumulate", "1", "--multi-scale", "--img", "128")

    def line(name: str, size: str) -> list[str]:
        made = arguments(small_set, *extra, "--name", name)
        made[made.index("--batch") + 1] = size
        if ours:
            made[made.index("--stock") : made.index("--stock") + 1] = ["--ckpt"]
        return made

    assert main(line("told", "3")) == 0
    meter = Meter(monkeypatch, 10**12)
    assert main(line("all", "-1")) == 0  # four images
    _, two, four = meter.peaks
    Meter(monkeypatch, int((two + four) / 2 / 0.9 * 1.05))
    assert main(line("found", "-1")) == 0
    said = re.findall(r"^--batch-size -1: a batch of \d", capsys.readouterr().out, re.M)
    assert [line[-1] for line in said] == ["4", "3"]
    told, found = state_after("told"), state_after("found")
    assert found["opt"]["batch_size"] == 3  # what a resumed run goes on with
    assert (
        yaml.safe_load(Path("runs/train/found/opt.yaml").read_text())["batch_size"] == 3
    )
    for key in ("model", "ema"):
        for name, value in told[key].items():
            assert torch.equal(found[key][name], value), name
    states = told["optimizer"]["state"], found["optimizer"]["state"]
    assert states[0].keys() == states[1].keys() != set()
    for number, state in states[0].items():
        assert torch.equal(
            state["momentum_buffer"], states[1][number]["momentum_buffer"]
        )
    assert told["updates"] == found["updates"]


def test_what_cannot_be_is_a_message(
    small_set: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def error(*extra: str) -> str:
        assert main([*arguments(small_set), "--batch", "-1", *extra]) == 1
        return capsys.readouterr().err

    Meter(monkeypatch, 10**6)
    said = error()
    assert re.search(
        r"-1: a batch of 1 takes .* and there are 900 kB of 1 MB for", said
    )
    assert said.endswith("with a smaller --img or --ckpt min without --stock\n")
    line = [a for a in arguments(small_set) if a != "--stock"]
    line += ["--batch", "-1", "--ckpt", "1kB", "--multi-scale"]
    assert main(line) == 1
    said = capsys.readouterr().err
    assert "keep: a budget of 1000 bytes is too small" in said
    assert said.endswith("a smaller --img or no --multi-scale or --ckpt min\n")
    assert "--batch-size is -2: must be at least 1" in error("--batch", "-2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "-1 is for one process: without torchrun" in error()


def test_a_step_that_runs_out_of_memory_leads_to_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = DetectionLoss.__call__

    def refused(self: object, output: list, targets: torch.Tensor) -> object:
        if len(output[0]) > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return loss(self, output, targets)

    monkeypatch.setattr(DetectionLoss, "__call__", refused)
    Meter(monkeypatch, 10**12)
    assert batch.choose(a_run("--ckpt")) == 6
    assert "8: too much" in capsys.readouterr().out


def test_a_resumed_run_may_ask_for_it() -> None:
    saved = vars(options.parser().parse_args(["--cfg", "gelan-t"]))
    assert options.is_value("batch_size", -1, saved["batch_size"])
    options.check(argparse.Namespace(**saved | {"batch_size": -1}))
