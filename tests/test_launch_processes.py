# SPDX-License-Identifier: MIT
"""Processes that a launched training starts are launched too."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lookalike_runs import FOLDER, python
from torch import nn

from yolov9mem.launch import codebases
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch
from yolov9mem.launch.patches import Patches


def test_those_of_ultralytics() -> None:
    patches = Patches()
    dist: Any = types.ModuleType("ultralytics.utils.dist")
    code = (
        "def generate_ddp_command(trainer):\n"
        "    words = ['python', '-m', 'torch.distributed.run', '--nproc_per_node', '2']\n"
        "    return [*words, 'made.py'], 'made.py'\n"
    )
    exec(code, dist.__dict__)
    settings = Settings("min", accumulate=2, mosaic=0.5)
    for change in codebases.CHANGES:
        change(dist, settings, patches)
    words, file = dist.generate_ddp_command(None)
    assert file == "made.py"
    ours = ["-m", "yolov9mem", "--ckpt", "min", "--accumulate", "2", "made.py"]
    assert words[:5] == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
    ]
    assert words[5:] == ours
    patches.undo()
    assert dist.generate_ddp_command(None)[0][5:] == ["made.py"]


LIGHTNING = """
import sys

def _basic_subprocess_cmd():
    return [sys.executable, *WORDS, "a", "--b"]

def _hydra_subprocess_cmd(local_rank):
    return [sys.executable, *WORDS, "hydra.rank=" + str(local_rank)], "folder"
"""


@pytest.mark.parametrize("name", ["lightning.fabric.launchers", "lightning_fabric"])
def test_those_of_lightning(name: str) -> None:
    patches = Patches()
    module: Any = types.ModuleType(name)
    exec(LIGHTNING, module.__dict__)
    settings = Settings("min", accumulate=2, mosaic=0.5)
    flags = ["--ckpt", "min", "--accumulate", "2"]
    for change in codebases.CHANGES:
        change(module, settings, patches)
    for words, told in (
        (["/x/train.py"], [*flags, "--mosaic", "0.5"]),
        (["-m", "pack.train"], [*flags, "--mosaic", "0.5"]),
        (["-m", "yolo.lazy"], flags),  # which has it among its own words
    ):
        module.WORDS = words
        start = [sys.executable, "-m", "yolov9mem", *told, *words]
        assert module._basic_subprocess_cmd() == [*start, "a", "--b"]
        made = module._hydra_subprocess_cmd(local_rank=1)
        assert made == ([*start, "hydra.rank=1"], "folder")
    patches.undo()
    assert module._basic_subprocess_cmd()[1] == "-m"


def step_of(model: nn.Module) -> Callable[[Any, int], Any]:
    """As Lightning calls a training step through DDP: in the place of the forward."""

    def wrapped_forward(*args: Any) -> Any:
        del model.forward
        return model.training_step(*args)

    wrapped_forward.__module__ = "lightning.pytorch.strategies.strategy"
    return wrapped_forward


class Task(nn.Module):
    """A LightningModule's way: the batch is not what its forward gets."""

    def __init__(self) -> None:
        super().__init__()
        brick = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.net = nn.Sequential(*brick, nn.Conv2d(8, 4, 3))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        return self.net(batch[number]).square().mean()


def test_a_step_in_the_place_of_a_forward_is_passed_through() -> None:
    launch = Launch(Settings())
    launch.start()
    try:
        task = Task()
        optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
        task.forward = step_of(task)
        task([torch.randn(2, 3, 16, 16)], 0).backward()
        assert launch.session is not None
        assert launch.session.optimizer() is optimizer
        assert launch.session.model() is task.net
        assert launch.session.swapped[-1] == "model"
    finally:
        launch.stop()


SCRIPT = FOLDER / "train_in_processes.py"


def test_those_of_torch_multiprocessing(tmp_path: Path) -> None:
    made = {}
    for name, launcher in (("stock", []), ("ours", ["-m", "yolov9mem", "--strict"])):
        folder = tmp_path / name
        folder.mkdir()
        report = ["--report", tmp_path / "report.json"] if launcher else []
        done = python(*launcher, *report, SCRIPT, folder, "spawn")
        assert done.returncode == 0, done.stderr
        made[name] = [
            json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)
        ]
    assert done.stderr.count("yolov9mem: training starts") == 1
    assert "model              swapped: Sequential" in done.stderr
    for ours, stock in zip(made["ours"], made["stock"], strict=True):
        assert (ours["states"], stock["states"]) == (["swapped"], [])
        for name, expected in stock["weights"].items():
            np.testing.assert_allclose(ours["weights"][name], expected, rtol=1e-4)
    figures = json.loads((tmp_path / "report.json").read_text())
    assert figures["target"] == str(SCRIPT)
    assert ["model", "swapped: Sequential; keep=conv"] in figures["start"]


def test_forked_ones_have_what_is_replaced_here(tmp_path: Path) -> None:
    done = python("-m", "yolov9mem", SCRIPT, tmp_path, "fork")
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        made = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert made["states"] == ["swapped"]
