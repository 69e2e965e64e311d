# SPDX-License-Identifier: MIT
"""Checkpoints: written whole or not at all, and a note of the flags beside them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cli import Settings

NOTE = "yolov9mem.json"


def run_folder(checkpoint: Path) -> Path:
    """The folder of a run whose checkpoint lies there or in weights/."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "weights" else folder


def is_checkpoint(value: Any) -> bool:
    """Is it what a trainer saves to go on from?"""
    return isinstance(value, dict) and {"model", "optimizer"} <= value.keys()


def whole(
    save: Callable[..., Any], noted: Callable[[Path], None]
) -> Callable[..., Any]:
    """torch.save that replaces a file only when the new one is complete.

    A run that is killed, or a disk that is full, leaves the old checkpoint as it was.
    """

    @functools.wraps(save)
    def save_whole(obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **kwargs)
        path = Path(os.path.realpath(f))
        if path.exists() and not path.is_file():
            return save(obj, f, *args, **kwargs)
        # The same name in a folder of its own: the name gets into the file.
        try:
            folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=path.parent))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return save(obj, f, *args, **kwargs)  # works, or says itself what is wrong
        try:
            result = save(obj, folder / path.name, *args, **kwargs)
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if is_checkpoint(obj):
            noted(path)
        return result

    return save_whole


def write_note(checkpoint: Path, settings: Settings) -> None:
    """Writes down which flags the run had, for --resume; training goes on without."""
    note = run_folder(checkpoint) / NOTE
    text = json.dumps({"flags": settings.flags()}) + "\n"
    with contextlib.suppress(OSError):
        if not note.is_file() or note.read_bytes() != text.encode():
            note.write_text(text)


def resume_notice(checkpoint: Any, settings: Settings) -> str | None:
    """What to say when a run goes on with other flags than it had."""
    if not isinstance(checkpoint, (str, os.PathLike)):
        return None
    note = run_folder(Path(checkpoint).absolute()) / NOTE
    try:
        had = json.loads(note.read_text())["flags"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if had == settings.flags():
        return None
    return (
        f"the run that is resumed had the flags: {' '.join(had) or 'none'}; this one "
        f"has: {' '.join(settings.flags()) or 'none'}"
    )


def is_resuming(arguments: Sequence[str]) -> bool:
    """Do the arguments ask for a resume, in the official or ultralytics way?"""
    return any(word.lstrip("-").partition("=")[0] == "resume" for word in arguments)
