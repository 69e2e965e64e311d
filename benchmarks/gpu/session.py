# SPDX-License-Identifier: MIT
"""A run on a GPU machine: its record, which is continued from one call to the next, and
the time that each stage has.

The record is written after every task. A task that gave a result ("done", "out of
memory") is not run again; what failed or had no time is, at the next call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu import suites
from benchmarks.gpu.crew import Crew

STAGE_SECONDS = 450.0  # a stage with its start stays under eight minutes
FINAL = ("done", "out of memory")


class NoGpuError(Exception):
    """This machine can't measure; the message says why."""


@dataclass(frozen=True)
class Task:
    """One entry of a stage.

    key: its name in the record. limit_s: it is ended then. need_s: it is not begun with
    less time than this. run: (session, seconds) -> answer, as Crew.ask gives it.
    request: what a worker is asked, kept in the record; None: it asks no worker.
    """

    key: str
    limit_s: float
    need_s: float
    run: Callable[[Session, float], dict[str, Any]]
    request: dict[str, Any] | None = None


def asking(key: str, limit_s: float, need_s: float, task: str, **request: Any) -> Task:
    """A task that is a request to a worker."""

    def run(session: Session, seconds: float) -> dict[str, Any]:
        return session.crew.ask(session.common | request | {"task": task}, seconds)

    return Task(key, limit_s, need_s, run, request or None)


class Session:
    """The record in `out` and what the tasks share.

    Args:
        out: the record's folder; a record there of the same sources is continued.
        device: "cuda", or "cpu" for a rehearsal of everything but the figures.
        quick: small cases.
        stage_seconds: of each stage.
        scratch: where the package is built and processes run.
    """

    def __init__(
        self,
        out: Path,
        device: str = "cuda",
        quick: bool = False,
        stage_seconds: float = STAGE_SECONDS,
        scratch: Path = record.ROOT / "build" / "gpu",
    ) -> None:
        self.out, self.device, self.quick = out.resolve(), device, quick
        self.stage_seconds, self.scratch = stage_seconds, scratch
        self.site, self.work = scratch / "site", scratch / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        self.common = {"device": device, "quick": quick}
        self.crew = Crew(self.work, self.environment(), self.out / "log.txt")
        self.record = self._continued() or self._begun()
        self.deadline = time.monotonic() + stage_seconds

    def environment(self) -> dict[str, str]:
        """Of every process: the built package before the sources."""
        paths = [str(self.site)] if self.device == "cuda" else []
        paths += [str(record.ROOT), os.environ.get("PYTHONPATH", "")]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def _begun(self) -> dict[str, Any]:
        made = record.software() | {"device": "gpu", "quick": self.quick}
        made |= {"rehearsal": self.device != "cuda", "sources": record.sources()}
        return made | {"tasks": {}, "suites": {}}

    def _continued(self) -> dict[str, Any] | None:
        """The newest record in the folder that is of these sources and this kind."""
        for path in sorted(self.out.glob("gpu-*.json"), reverse=True):
            found = json.loads(path.read_text())
            same = found.get("sources") == record.sources()
            same = same and found.get("quick") == self.quick
            if same and found.get("rehearsal") == (self.device != "cuda"):
                print(f"continues {path}", flush=True)
                return found
            print(f"{path} is of other sources: a new record is begun", flush=True)
        return None

    def save(self) -> Path:
        """Writes the record with its tables so far."""
        self.record["suites"] = suites.from_tasks(self.record["tasks"])
        return record.write(self.record, self.out)

    def left(self) -> float:
        """Seconds of the stage that are left."""
        return self.deadline - time.monotonic()

    def result(self, key: str) -> dict[str, Any] | None:
        """What a task found, None if it did not."""
        task = self.record["tasks"].get(key, {})
        return task.get("result") if task.get("outcome") == "done" else None

    def begin_stage(self) -> None:
        self.deadline = time.monotonic() + self.stage_seconds

    def perform(self, stage: str, task: Task) -> None:
        """Runs a task unless it has its result already, and notes what became of it."""
        tasks = self.record["tasks"]
        if tasks.get(task.key, {}).get("outcome") in FINAL:
            return
        left = self.left()
        if left < task.need_s:
            reason = (
                f"{max(left, 0):.0f} s of the stage's {self.stage_seconds:.0f} s were "
                f"left, it needs {task.need_s:.0f} s"
            )
            answer = {"outcome": "not measured", "reason": reason}
        else:
            print(f"{stage}: {task.key} ...", flush=True)
            try:
                answer = task.run(self, min(task.limit_s, left))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                answer = {"outcome": "failed", "reason": reason[:600]}
        tasks[task.key] = self._described(stage, task) | answer
        told = answer.get("reason", "").splitlines()
        seconds = f" in {answer['seconds']:.0f} s" if "seconds" in answer else ""
        print(f"{stage}: {task.key}: {answer['outcome']}{seconds}", *told[:3])
        sys.stdout.flush()
        self.save()

    def skip(self, stage: str, task: Task, reason: str) -> None:
        """Notes a task that cannot be run, unless it has its result already."""
        tasks = self.record["tasks"]
        if tasks.get(task.key, {}).get("outcome") not in FINAL:
            answer = {"outcome": "not measured", "reason": reason}
            tasks[task.key] = self._described(stage, task) | answer
            self.save()

    @staticmethod
    def _described(stage: str, task: Task) -> dict[str, Any]:
        asked = {} if task.request is None else {"request": task.request}
        return {"stage": stage} | asked

    def close(self) -> None:
        self.crew.dismiss()
