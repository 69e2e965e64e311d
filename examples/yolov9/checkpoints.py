# SPDX-License-Identifier: MIT
"""Checkpoints of plain tensors and numbers, replaced only by complete new ones.

A file holds the model's name, classes and state_dicts, no pickled classes: it opens
with torch.load(weights_only=True) where neither yolov9mem nor this example exists.
"""

import pickle
import zipfile
from pathlib import Path

import torch

from .files import replacing


class CheckpointError(Exception):
    """A checkpoint can't be written or read; the message names file and reason."""


def save(content: dict, path: Path) -> None:
    """Replaces `path` by a complete new one: on any error the old file stays."""
    try:
        with replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        there = path.is_file()
        kept = "the previous one is untouched" if there else "there is none yet"
        raise CheckpointError(f"{path} was not written ({error}); {kept}") from error


def load(path: str | Path) -> dict:
    """Content of a checkpoint of this example, tensors on the CPU."""
    if not Path(path).is_file():
        why = "is a folder" if Path(path).is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {str(path)!r} {why}")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a checkpoint of this example: no archive")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's text names its own arguments, which nobody can pass here.
        raise CheckpointError(
            f"{path} is not a checkpoint of this example: it holds pickled objects, "
            "not only tensors and numbers; those of the official script go on with it: "
            "python -m yolov9mem train_dual.py"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of this example: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict) or not {"model", "name", "nc"} <= content.keys():
        raise CheckpointError(f"{path} has no 'model', 'name' and 'nc' entries")
    return content


def strip(path: Path) -> None:
    """Leaves only what prediction needs: the averaged weights as the model."""
    content = load(path)
    if content.get("ema"):
        content["model"] = content["ema"]
    content.update(ema=None, optimizer=None, updates=None, epoch=-1)
    save(content, path)


def newest(root: Path = Path("runs")) -> Path:
    """The last.pt written latest below `root`."""
    found = sorted(root.rglob("last.pt"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise CheckpointError(f"--resume: no last.pt below {root.resolve()}")
    return found[-1]
