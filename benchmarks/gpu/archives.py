# SPDX-License-Identifier: MIT
"""What an earlier call made, packed beside the record: the next one is maybe elsewhere."""

from __future__ import annotations

import lzma
import shutil
import tarfile
from pathlib import Path

# torch.compile keeps the same kernels in several files, far from each other in an archive.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20}]


def pack(folder: Path, archive: Path, most: int | None = None) -> bool:
    """Whether it is there now; not where it would have more than `most` bytes, or a file
    can't be read: a process that was killed may leave one that goes away."""
    half = archive.with_suffix(".half")
    try:
        with (
            lzma.open(half, "wb", filters=FILTERS) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            tar.add(folder, ".")
        fits = most is None or half.stat().st_size <= most
    except OSError as error:
        print(f"{folder} cannot be packed: {error}", flush=True)
        fits = False
    if fits:
        half.rename(archive)  # never there in part
    else:
        half.unlink(missing_ok=True)
        archive.unlink(missing_ok=True)
    return fits


def unpack(archive: Path, folder: Path) -> bool:
    """Whether the folder is what was packed; an archive that can't be read is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        shutil.unpack_archive(archive, folder, "xztar", **safely)
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        print(f"{archive} cannot be read ({error}): made again", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        archive.unlink()
        return False
    return True
