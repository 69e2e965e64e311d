# SPDX-License-Identifier: MIT
"""Files of a run that are replaced only by complete new ones."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import yaml


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`; synced and renamed to it where all went well.

    On any error, a full disk too, what was there before stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def prepare_folder(folder: Path, settings: dict[str, dict]) -> None:
    """Makes a run's folders and writes its settings, YAML by name of the file."""
    weights = folder / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    for name, content in settings.items():
        with replacing(folder / name) as file:
            file.write(yaml.safe_dump(dict(content), sort_keys=False).encode())
    for path in (weights / "last.pt", weights / "best.pt"):
        if path.is_dir():  # said now, not by a warning after each epoch
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
