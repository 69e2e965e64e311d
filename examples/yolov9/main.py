# SPDX-License-Identifier: MIT
"""From the command line to a training run, a resumed one or the demo."""

import argparse
import os
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

# How PyTorch and OpenCV begin or say it when memory has run out.
LOST_WORKER = "DataLoader worker (pid"
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
NO_MEMORY += ("Insufficient memory", "Unable to allocate")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 after a message about what was wrong."""
    opt = options.parser().parse_args(arguments)
    try:
        if opt.demo:
            run_demo(opt)
        else:
            train(opt)
    except FAILURES as error:
        print(f"ERROR {_message(error)}", file=sys.stderr)
        return 1
    except Exception as error:
        advice = _advice(error)
        if not advice:
            raise
        said = _message(error).strip().partition("\n")[0].rstrip(" .")
        print(f"ERROR {said or type(error).__name__}. {advice}", file=sys.stderr)
        return 1
    return 0


def _advice(error: Exception) -> str:
    """What to do about an error of the machine, "" for one of the program."""
    text = str(error)
    if text.startswith(LOST_WORKER):
        return "Memory may have run out: fewer --workers take less."
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return "Memory has run out: a smaller --batch or --img, and --ckpt, take less."
    return ""


def _message(error: Exception) -> str:
    """A loader's worker sends its error as a traceback that ends with the message."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.rpartition(f"{type(error).__name__}: ")[2].strip()


def train(opt: argparse.Namespace) -> Path:
    """Runs one training; its folder."""
    if opt.resume:
        opt, hyp, folder = _resumed(opt)
    else:
        options.check(opt)
        hyp = options.read_hyp(opt.hyp, opt)
        folder = options.run_folder(opt)
    if not opt.data:
        opt.data = str(make_shapes(Path("runs/data/shapes")))
        print(f"no --data: training on drawn shapes, {opt.data}")
    if Path(opt.data).is_file():  # found again where the run is resumed elsewhere
        opt.data = os.path.abspath(opt.data)
    if Processes.from_environment().is_main:
        print(", ".join(f"{k}={v}" for k, v in hyp.items()))
    trainer = Trainer(opt, hyp, folder)
    trainer.run()
    pictured = trainer.processes.is_main and not opt.noplots
    if pictured and trainer.device.type == "cpu":
        opt.imgsz = trainer.imgsz
        picture_of_memory(opt, trainer.name, folder)
    return folder


def _resumed(opt: argparse.Namespace) -> tuple[argparse.Namespace, dict, Path]:
    """Options and hyper-parameters of the interrupted run, and its folder."""
    last = checkpoints.newest() if opt.resume is True else Path(opt.resume)
    saved = checkpoints.load(last)
    for key in ("opt", "hyp"):
        if not isinstance(saved.get(key), dict):
            raise checkpoints.CheckpointError(
                f"--resume {last}: it has no {key!r} entry; start another training "
                "from it with --weights"
            )
    # Absolute first: the parent of "last.pt" alone would be the working folder.
    weights = Path(os.path.abspath(last)).parent
    if weights.name != "weights":
        raise checkpoints.CheckpointError(
            f"--resume {last}: {weights} is not the folder 'weights' of a run, which "
            "would go on beside it; start another training from it with --weights"
        )
    folder = weights.parent
    # The checkpoint knows them all; the file may have been changed by hand.
    known = vars(opt) | saved["opt"] | _edited(folder / "opt.yaml", saved["opt"])
    known.update(weights=str(last), resume=True, cfg="", device=opt.device)
    resumed = argparse.Namespace(**known)
    options.check(resumed)
    return resumed, saved["hyp"], folder


def _edited(settings: Path, saved: dict) -> dict:
    """What opt.yaml says; nothing where it or a value in it can't be understood."""
    try:
        content = yaml.safe_load(settings.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    if isinstance(content, dict) and all(
        key in saved and options.is_value(key, value, saved[key])
        for key, value in content.items()
    ):
        return content
    print(f"WARNING {settings} is missing or damaged: the checkpoint's are used")
    return {}
