# SPDX-License-Identifier: MIT
"""A run on a GPU machine: its record, which is continued from one call to the next, and
the time that a call has.

The record is written after every task, and names from the beginning what a call that is
killed would lack. A task that gave a result ("done", "out of memory") is not run again;
what failed or had no time is, at the next call.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.gpu import suites
from benchmarks.gpu.crew import Crew

STAGE_SECONDS = 450.0  # of one stage, which with its start stays under eight minutes
CALL_SECONDS = 540.0  # of all
AT_ONCE = 5  # tasks that are not timed
# Of each of them: more threads on 16 cores would wait for each other; and what others wait
# for, torch.compile's first time, goes before them.
BESIDE = {"threads": 3, "niceness": 10}
FINAL = ("done", "out of memory")


class NoGpuError(Exception):
    """This machine can't measure; the message says why."""


@dataclass(frozen=True)
class Task:
    """One entry of a stage.

    key: its name in the record. limit_s: it is ended then. need_s: it is not begun with
    less time than this. run: (session, seconds) -> answer, as Crew.ask gives it.
    request: what a worker is asked, kept in the record; None: it asks no worker.
    timed: it measures time and has the machine for itself; others run beside each other.
    """

    key: str
    limit_s: float
    need_s: float
    run: Callable[[Session, float], dict[str, Any]]
    request: dict[str, Any] | None = None
    timed: bool = True


def asking(
    key: str,
    limit_s: float,
    need_s: float,
    task: str,
    timed: bool = True,
    **request: Any,
) -> Task:
    """A task that is a request to a worker."""
    beside = {} if timed else BESIDE

    def run(session: Session, seconds: float) -> dict[str, Any]:
        return session.crew.ask(
            session.common | beside | request | {"task": task}, seconds
        )

    return Task(key, limit_s, need_s, run, request or None, timed)


class Session:
    """The record in `out` and what the tasks share.

    Args:
        out: the record's folder; a record of the same package there, or in `scratch`
            (where a later command on the same machine still finds it), is continued.
        device: "cuda", or "cpu" for a rehearsal of everything but the figures.
        quick: small cases.
        seconds: of the whole call.
        scratch: where the package is built and processes run.
        first, without: parts of tasks' names; the timed ones to begin with, in this order,
            and those to leave out.
    """

    def __init__(
        self,
        out: Path,
        device: str = "cuda",
        quick: bool = False,
        seconds: float = CALL_SECONDS,
        scratch: Path = record.ROOT / "build" / "gpu",
        first: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> None:
        self.out, self.device, self.quick = out.resolve(), device, quick
        self.seconds, self.scratch = seconds, scratch
        self.first, self.without = first, without
        self.deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.site, self.work = scratch / "site", scratch / "work"
        self.compiled = scratch / "compiled"
        self.work.mkdir(parents=True, exist_ok=True)
        self.out.mkdir(parents=True, exist_ok=True)
        self.common = {"device": device, "quick": quick}
        self.crew = Crew(self.work, self.environment(), self.out / "log.txt")
        self.benchmarks = record.sources(record.BENCHMARK_SOURCES)
        self.record = self._continued() or self._begun()

    def environment(self) -> dict[str, str]:
        """Of every process: the built package before the sources, one cache of
        torch.compile."""
        paths = [str(self.site)] if self.device == "cuda" else []
        paths += [str(record.ROOT), os.environ.get("PYTHONPATH", "")]
        made = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        made["PYTHONUNBUFFERED"] = "1"  # what one printed is read when it is ended
        return {**os.environ, **made, "TORCHINDUCTOR_CACHE_DIR": str(self.compiled)}

    def _begun(self) -> dict[str, Any]:
        made = record.software() | {"device": "gpu", "quick": self.quick}
        made |= {"rehearsal": self.device != "cuda", "sources": record.sources()}
        return made | {"tasks": {}, "suites": {}}

    def _continued(self, gpu: str | None = None) -> dict[str, Any] | None:
        """The record of this package and kind that has most results; `gpu`: of that one."""
        best, most = None, -1
        for folder in (self.out, self.scratch / "keep"):
            for path in sorted(folder.glob("gpu-*.json"), reverse=True):
                found = json.loads(path.read_text())
                same = found.get("sources") == record.sources()
                same = same and found.get("quick") == self.quick
                if not same or found.get("rehearsal") != (self.device != "cuda"):
                    print(f"{path} is of another package: left alone", flush=True)
                    continue
                name = found.get("gpu", {}).get("name")
                if gpu is not None and name != gpu:
                    print(f"{path} is of {name}, this is {gpu}: left alone", flush=True)
                    continue
                tasks = found["tasks"].values()
                count = sum(task["outcome"] in FINAL for task in tasks)
                if count > most:
                    best, most = found | {"commit": record.commit()}, count
                    print(f"continues {path}: {count} results", flush=True)
        return best

    def is_on(self, gpu: dict[str, Any]) -> None:
        """Notes the facts of this machine's GPU. The record is changed for one of such a
        GPU, or a new one, if it is of another: a lent machine may be of another kind the
        next time, and figures of two do not compare."""
        known = self.record.get("gpu", gpu)["name"]
        if known != gpu["name"]:
            self.record = self._continued(gpu["name"]) or self._begun()
        self.record["threads"] = gpu.pop("threads")
        self.record["gpu"] = gpu

    def save(self) -> Path:
        """Writes the record with its tables so far; with what a task found in any case."""
        with self._lock:
            try:
                self.record["suites"] = suites.from_tasks(self.record["tasks"])
            except Exception:
                print(f"no tables: {traceback.format_exc()}", flush=True)
            record.write(self.record, self.scratch / "keep")
            return record.write(self.record, self.out)

    def takes(self, task: Task) -> bool:
        """Whether a task is not to be left out."""
        return not any(part in task.key for part in self.without)

    def left(self) -> float:
        """Seconds of the call that are left."""
        return self.deadline - time.monotonic()

    def result(self, key: str) -> dict[str, Any] | None:
        """What a task found, None if it did not."""
        task = self.record["tasks"].get(key, {})
        return task.get("result") if task.get("outcome") == "done" else None

    def forget(self, key: str) -> None:
        """So that the task is run again."""
        with self._lock:
            self.record["tasks"].pop(key, None)

    def perform(self, stage: str, task: Task) -> None:
        """Runs a task unless it has its result already, and notes what became of it."""
        tasks = self.record["tasks"]
        before = tasks.get(task.key, {}).get("outcome")
        if before in FINAL:
            return
        left = self.left()
        if left < task.need_s:
            if before == "failed":
                return  # how it failed says more
            reason = (
                f"{max(left, 0):.0f} s of the call's {self.seconds:.0f} s were left, "
                f"it needs {task.need_s:.0f} s"
            )
            answer = {"outcome": "not measured", "reason": reason}
        else:
            print(f"{stage}: {task.key} ...", flush=True)
            try:
                answer = task.run(self, min(task.limit_s, left))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                answer = {"outcome": "failed", "reason": reason[:600]}
        if answer["outcome"] == "out of memory" and not task.timed:
            # Others had a part of it: at another time there may be enough.
            words = f"out of memory beside other work: {answer.get('reason', '')}"
            answer |= {"outcome": "failed", "reason": words}
        with self._lock:
            tasks[task.key] = self._described(stage, task) | answer
        told = answer.get("reason", "").splitlines()
        seconds = f" in {answer['seconds']:.0f} s" if "seconds" in answer else ""
        print(f"{stage}: {task.key}: {answer['outcome']}{seconds}", *told[:3])
        sys.stdout.flush()
        self.save()

    def perform_all(self, tasks: Sequence[tuple[str, Task]]) -> None:
        """Runs (stage, task) in order; neighbours that are not timed beside each other."""
        for timed, some in itertools.groupby(tasks, key=lambda pair: pair[1].timed):
            with ThreadPoolExecutor(1 if timed else AT_ONCE) as pool:
                list(pool.map(lambda pair: self.perform(*pair), some))

    def skip(self, pairs: Sequence[tuple[str, Task]], reason: str) -> None:
        """Notes of (stage, task) why they were not run, unless more is known of them."""
        tasks = self.record["tasks"]
        for stage, task in pairs:
            if tasks.get(task.key, {}).get("outcome") in (None, "not measured"):
                answer = {"outcome": "not measured", "reason": reason}
                tasks[task.key] = self._described(stage, task) | answer
        self.save()

    def _described(self, stage: str, task: Task) -> dict[str, Any]:
        asked = {} if task.request is None else {"request": task.request}
        return {"stage": stage, "benchmarks": self.benchmarks} | asked

    def close(self) -> None:
        self.crew.dismiss()
