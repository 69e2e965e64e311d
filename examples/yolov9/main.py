# SPDX-License-Identifier: MIT
"""From the command line to a training run, a resumed one or the demo."""

import argparse
import sys
from pathlib import Path

import yaml

from . import checkpoints, options
from .demo import picture_of_memory, run_demo
from .environment import Processes
from .labels import DataError
from .swap import NotInstalledError
from .synthetic import make_shapes
from .train import Trainer, TrainingError

FAILURES = (
    checkpoints.CheckpointError,
    options.OptionError,
    DataError,
    NotInstalledError,
    TrainingError,
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 after a message about what was wrong."""
    opt = options.parser().parse_args(arguments)
    try:
        if opt.demo:
            run_demo(opt)
        else:
            train(opt)
    except FAILURES as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 1
    return 0


def train(opt: argparse.Namespace) -> Path:
    """Runs one training; its folder."""
    if opt.resume:
        opt, folder = _resumed(opt)
        hyp = checkpoints.load(opt.weights)["hyp"]
    else:
        options.check(opt)
        hyp = options.read_hyp(opt.hyp, opt)
        folder = options.run_folder(opt)
    if not opt.data:
        opt.data = str(make_shapes(Path("runs/data/shapes")))
        print(f"no --data: training on drawn shapes, {opt.data}")
    if Processes.from_environment().is_main:
        print(", ".join(f"{k}={v}" for k, v in hyp.items()))
    trainer = Trainer(opt, hyp, folder)
    trainer.run()
    pictured = trainer.processes.is_main and not opt.noplots
    if pictured and trainer.device.type == "cpu":
        opt.imgsz = trainer.imgsz
        picture_of_memory(opt, trainer.name, folder)
    return folder


def _resumed(opt: argparse.Namespace) -> tuple[argparse.Namespace, Path]:
    """The options that the interrupted run was started with, and its folder."""
    last = checkpoints.newest() if opt.resume is True else Path(opt.resume)
    saved = checkpoints.load(last)
    folder = last.parent.parent
    settings = folder / "opt.yaml"
    content = yaml.safe_load(settings.read_text()) if settings.is_file() else None
    if not isinstance(content, dict):  # not there, or damaged
        content = saved["opt"]
    known = vars(opt) | content
    known.update(weights=str(last), resume=True, cfg="", device=opt.device)
    return argparse.Namespace(**known), folder
