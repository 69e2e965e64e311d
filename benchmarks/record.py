# SPDX-License-Identifier: MIT
"""One JSON record per run: what was measured, on what, with which versions."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("yolov9mem", "torch", "numpy", "opencv-python-headless")


def cpu_model() -> str:
    """The processor's name, as the system says it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Which of the vector instruction sets that matter here the CPU has."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [name for name in ("avx2", "avx512f", "avx512_bf16") if name in flags]


def threads() -> dict[str, int]:
    """How many threads each library uses."""
    import torch

    import yolov9mem

    return {"torch": torch.get_num_threads(), "yolov9mem": yolov9mem.get_num_threads()}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The repository's commit, with "+" if files differ; None without a repository.

    YOLOV9MEM_COMMIT says it where files were copied over a repository that lies
    elsewhere in its history, or over none.
    """
    if os.environ.get("YOLOV9MEM_COMMIT"):
        return os.environ["YOLOV9MEM_COMMIT"]
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ":!benchmarks/results"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


PACKAGE_SOURCES = ("csrc", "yolov9mem", "setup.py", "build_cuda.py", "pyproject.toml")
BENCHMARK_SOURCES = ("benchmarks", "examples/yolov9")


def sources(of: Sequence[str] = PACKAGE_SOURCES) -> str:
    """A name for the state of files and folders, also where there is no repository."""
    state = hashlib.sha256()
    for name in of:
        place = ROOT / name
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.suffix in (".c", ".h", ".cu", ".cuh", ".py", ".toml"):
                state.update(str(path.relative_to(ROOT)).encode())
                state.update(path.read_bytes())
    return state.hexdigest()[:12]


def software() -> dict[str, Any]:
    """What can be told without importing anything that was built."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "cpu": cpu_model(),
        "instruction_sets": instruction_sets(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
    }


def facts(device: str) -> dict[str, Any]:
    """Everything about the machine and the software that a figure depends on."""
    return {"device": device, "threads": threads()} | software()


def write(record: dict[str, Any], folder: Path) -> Path:
    """Writes the record as DEVICE-DATE.json and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = record["date"].replace(":", "").replace("-", "")[:15]
    path = folder / f"{record['device']}-{stamp}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)
    return path


def read_all(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All records of a folder, oldest first.

    Raises:
        ValueError: a file is not a record; names it.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            missing = {"device", "date", "suites"} - record.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a benchmark record ({error})") from error
        if missing:
            raise ValueError(f"{path}: not a benchmark record, lacks {sorted(missing)}")
        records.append(record | {"file": path.name})
    return sorted(records, key=lambda record: record["date"])
