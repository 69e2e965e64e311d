# SPDX-License-Identifier: MIT
"""Runs the stages: `python -m benchmarks gpu`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import render
from benchmarks.gpu import build, compiling, rest, table
from benchmarks.gpu.session import Session, Task

STAGES = {"build-test": build.tasks, "step": table.tasks, "rest": rest.tasks}
Pairs = list[tuple[str, Task]]


def in_order(session: Session, stages: list[str]) -> tuple[Pairs, Pairs]:
    """(stage, task) of the stages: those that run beside each other, then the timed ones.

    Tests come before anything is timed, so that no figure is of something that is wrong.
    Of the first the longest begin first; of the timed ones those that have a target, for a
    call may end before all is done, then what is compared with them; before these what the
    call names first. What torch.compile has not made yet would take all the time there is,
    and is last.
    """
    made = [
        (stage, task)
        for stage in stages
        for task in STAGES[stage](session)
        if session.takes(task)
    ]
    wanted, late = table.wanted(session.quick), table.late(session.quick)

    def rank(pair: tuple[str, Task]) -> int:
        stage, task = pair
        for place, part in enumerate(session.first):
            if part in task.key:
                return place - len(session.first)
        if not compiling.is_made(session) and compiling.compiles(task):
            return 5
        if stage == "rest":  # bandwidths, optimizer and mosaic; kernels of a step
            return 1 if task.request is None else 3
        return 0 if task.request in wanted else 4 if task.request in late else 2

    beside = [pair for pair in made if not pair[1].timed]
    timed = [pair for pair in made if pair[1].timed]
    beside.sort(key=lambda pair: -pair[1].limit_s)
    return beside, sorted(timed, key=rank)


def perform(session: Session, stages: list[str]) -> None:
    """All that there is time for. torch.compile's first time, which is the longest and
    needs nothing of the package, begins before that is built."""
    beside, timed = in_order(session, stages)
    early = compiling.tasks(session) if "step" in stages else []
    first = [("step", task) for task in early if session.takes(task)]
    known = session.record["tasks"]
    new = [pair for pair in (*first, *beside, *timed) if pair[1].key not in known]
    session.skip(new, "the call ended before it")
    with ThreadPoolExecutor(1) as pool:
        begun = [pool.submit(session.perform, *pair) for pair in first]
        ready = build.make_ready(session)
        if ready:
            session.perform_all(beside)
        else:  # time on such a machine is dear
            session.crew.give_up()
        for task in begun:
            task.result()
    if ready:
        # In the order of now: torch.compile's code may have been made meanwhile.
        session.perform_all(in_order(session, stages)[1])
        return
    why = "the package could not be built for this GPU, see task build"
    session.skip([*beside, *timed], why)


def run(session: Session, stages: list[str]) -> Path:
    """Runs the stages within the call's time and returns the record's path.

    Raises:
        NoGpuError: there is no GPU.
    """
    try:
        build.look_at_the_gpu(session)
        compiling.fetch(session)
        perform(session, stages)
        compiling.leave(session)
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
