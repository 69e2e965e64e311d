# SPDX-License-Identifier: MIT
"""Runs the stages: `python -m benchmarks gpu`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import render
from benchmarks.gpu import build, rest, table
from benchmarks.gpu.session import Session, Task

STAGES = {"build-test": build.tasks, "step": table.tasks, "rest": rest.tasks}


def in_order(session: Session, stages: list[str]) -> list[tuple[str, Task]]:
    """(stage, task) of the stages, what is wanted most first: a call may end before all
    is done. The core of the table; what is not timed, side by side; what else has a
    target; the rest of the table."""
    made = [(stage, task) for stage in stages for task in STAGES[stage](session)]
    core, wanted = table.core(session.quick), table.wanted(session.quick)

    def rank(pair: tuple[str, Task]) -> tuple[int, bool]:
        stage, task = pair
        if not task.timed:
            return 1, task.key != table.COMPILING  # the longest
        if task.request in core:
            return 0, False
        return 2 if task.request in wanted or stage == "rest" else 3, False

    return sorted(made, key=rank)


def run(session: Session, stages: list[str]) -> Path:
    """Runs the stages within the call's time and returns the record's path.

    Raises:
        NoGpuError: there is no GPU, or another than the record's.
    """
    try:
        build.look_at_the_gpu(session)
        made = in_order(session, stages)
        if build.make_ready(session):
            session.perform_all(made)
        else:
            why = "the package could not be built for this GPU, see task build"
            for stage, task in made:
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
