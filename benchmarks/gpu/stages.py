# SPDX-License-Identifier: MIT
"""Runs the stages: `python -m benchmarks gpu`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import render
from benchmarks.gpu import build, rest, table
from benchmarks.gpu.session import Session

STAGES = {"build-test": build.tasks, "step": table.tasks, "rest": rest.tasks}


def run(session: Session, stages: list[str]) -> Path:
    """Runs the stages, each within its time, and returns the record's path.

    Raises:
        NoGpuError: there is no GPU, or another than the record's.
    """
    try:
        build.look_at_the_gpu(session)
        for stage in stages:
            session.begin_stage()
            made = STAGES[stage](session)
            if build.make_ready(session, stage):
                for task in made:
                    session.perform(stage, task)
            else:
                why = "the package could not be built for this GPU, see task build"
                for task in made:
                    session.skip(stage, task, why)
        return session.save()
    finally:
        session.close()


def summary(session: Session) -> str:
    """The tables, then what was not measured and what failed."""
    parts = [render.table(suite) for suite in session.record["suites"].values()]
    lines = [
        f"{key}: {task['outcome']}: {task.get('reason', '')[:200]}"
        for key, task in session.record["tasks"].items()
        if task["outcome"] != "done"
    ]
    return "\n".join([*parts, *lines])


def all_well(session: Session) -> bool:
    """Whether every task has a result."""
    fine = ("done", "out of memory", "does not run here")
    return all(task["outcome"] in fine for task in session.record["tasks"].values())
