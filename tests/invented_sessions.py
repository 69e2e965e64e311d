# SPDX-License-Identifier: MIT
"""Sessions of `python -m benchmarks` that measure nothing: their answers are invented."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import table
from benchmarks.gpu.session import Session, Task


def session(folder: Path, **options) -> Session:
    made = Session(folder / "out", "cpu", True, scratch=folder / "scratch", **options)
    made.record |= {"gpu": {"name": "invented"}, "threads": {"torch": 1}}
    return made


def fixed(key: str, answers: list[dict], limit_s: float = 9, need_s: float = 1) -> Task:
    """A task that gives one answer after the other."""
    return Task(key, limit_s, need_s, lambda session, seconds: answers.pop(0))


def whole(tmp_path: Path) -> Session:
    """As on a GPU machine, whose tasks nobody runs."""
    made = session(tmp_path)
    made.quick, made.device = False, "cuda"
    return made


def half(gb: float, images: float, device: float) -> dict:
    memory = {"allocated": gb * 1e9, "reserved": gb * 1.1e9, "device": device * 1e9}
    return {"memory": memory, "images_per_s": images, "median_ms": 1.0}


def invent_step(tasks: dict, way: str, batch: int, gb: float, images: float) -> None:
    request = table.configuration(way, batch)
    result = {"full": half(gb, images, gb + 1), "alone": half(gb, images * 1.2, gb)}
    tasks[table.key(request)] = {
        "stage": "step",
        "outcome": "done",
        "request": request,
        "result": result,
    }
