# SPDX-License-Identifier: MIT
"""What an earlier call made, packed beside the record: the next one is maybe elsewhere."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path


def pack(folder: Path, archive: Path, most: int | None = None) -> bool:
    """Whether it is there now; not where it would have more than `most` bytes."""
    half = archive.with_suffix(".half")
    with tarfile.open(half, "w:gz", compresslevel=6) as tar:
        tar.add(folder, ".")
    fits = most is None or half.stat().st_size <= most
    if fits:
        half.rename(archive)  # never there in part
    else:
        half.unlink()
        archive.unlink(missing_ok=True)
    return fits


def unpack(archive: Path, folder: Path) -> bool:
    """Whether the folder is what was packed; an archive that can't be read is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        shutil.unpack_archive(archive, folder, "gztar", **safely)
    except (OSError, shutil.ReadError, tarfile.TarError) as error:
        print(f"{archive} cannot be read ({error}): made again", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        archive.unlink()
        return False
    return True
