# SPDX-License-Identifier: MIT
"""The minutes of a lent GPU machine: what two calls bring, and what a call that is cut off,
a failure or a hang leaves of them. Times are those of the records, nothing is measured.
"""

from __future__ import annotations

import heapq
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_machine import ROOT
from invented_sessions import fixed, session, whole

from benchmarks import record
from benchmarks.gpu import (
    archives,
    build,
    compiling,
    crew,
    rest,
    stages,
    suites,
    table,
)
from benchmarks.gpu import session as session_module
from benchmarks.gpu.names import (
    COMPILED_WAYS,
    EAGER,
    GRAPHS,
    LAST,
    MIN_GRAPHS,
    PER_LAYER,
)
from benchmarks.gpu.session import AT_ONCE, Session, Task

# Seconds that no record has yet, on the safe side: the compiled rows with their code in the
# cache; with 49 seeds; torch.compile's first time, and what an ended one does again.
COMPILED_S, MANY_SEEDS_S, FIRST_TIME_S, AGAIN_S = 60.0, 110.0, 360.0, 60.0
CHANGING_S, KERNELS_S, STOCK_S = 15.0, 14.0, 13.0
FACTS_S, BUILD_S = 10.0, 35.0


def seconds_of(key: str, request: dict | None, seen: dict[str, float]) -> float:
    way = (request or {}).get("way")
    if way in COMPILED_WAYS:
        return COMPILED_S
    if key.startswith("rule ") and key.endswith("-c"):
        return MANY_SEEDS_S
    if key in seen:
        return seen[key]
    if key.startswith("kernels"):
        return KERNELS_S
    assert way is not None, key
    if request["multi_scale"]:
        return CHANGING_S
    return STOCK_S if way == PER_LAYER else 10.0


class Lease:
    """Sessions one after the other on a machine whose clock only tasks move."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now, self.compiled = folder, 0.0, 0.0
        self.seen: dict[str, float] = {}
        for found in record.read_all():
            for key, task in found.get("tasks", {}).items():
                if task["outcome"] in ("done", "failed") and "seconds" in task:
                    self.seen[key] = max(self.seen.get(key, 0), task["seconds"])
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(session_module, "time", clock)
        monkeypatch.setattr(stages, "ThreadPoolExecutor", self.beside)
        monkeypatch.setattr(build, "make_ready", self.built)

    def built(self, session: Session) -> bool:
        """The build, once."""
        self.now += BUILD_S if session.result("build") is None else 0
        session.record["tasks"]["build"] = {"outcome": "done", "stage": "build-test"}
        session.record["tasks"]["build"]["result"] = {"archs": "90"}
        return True

    def beside(self, count: int) -> Lease:
        """A pool whose work began when it was submitted, and has the time for itself."""
        return self

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., None], *given: object) -> SimpleNamespace:
        begin = self.now

        def result() -> None:
            elsewhere, self.now = self.now, begin
            work(*given)
            self.now = max(self.now, elsewhere)

        return SimpleNamespace(result=result)

    def timed_alone(self, s: Session, pairs: Sequence[tuple[str, Task]]) -> None:
        """Session.perform_all, where others run on AT_ONCE lanes."""
        if all(task.timed for _, task in pairs):
            for pair in pairs:
                s.perform(*pair)
            return
        lanes = [self.now] * AT_ONCE
        for pair in pairs:
            self.now = heapq.heappop(lanes)
            s.perform(*pair)
            heapq.heappush(lanes, self.now)
        self.now = max(lanes)

    def taken(self, task: Task, limit: float) -> dict:
        """What a task answers."""
        if task.key == compiling.KEY:
            needed = FIRST_TIME_S - self.compiled + (AGAIN_S if self.compiled else 0)
            self.compiled = max(self.compiled, limit)
        else:
            needed = seconds_of(task.key, task.request, self.seen)
        took = min(needed, limit)
        self.now += took
        outcome = "done" if needed <= limit else "not measured"
        return {"outcome": outcome, "seconds": took, "result": {}}

    def call(self, minutes: float, names: list[str]) -> Session:
        s = Session(self.folder, "cpu", False, 60 * minutes, self.folder / "scratch")
        s.device = "cuda"
        s.save = lambda: s.out / "none"
        s.perform_all = lambda pairs: self.timed_alone(s, pairs)
        if getattr(self, "record", None):
            s.record = self.record
        self.record = s.record
        self.now += FACTS_S
        mine = s.perform
        s.perform = lambda stage, task: mine(stage, self.invented(task))
        stages.perform(s, names)
        return s

    def invented(self, task: Task) -> Task:
        run = lambda session, limit: self.taken(task, limit)  # noqa: E731
        given = task.limit_s, task.need_s, run, task.request, task.timed
        return Task(task.key, *given)


ALL = ["build-test", "step", "rest"]


@pytest.mark.parametrize(
    "calls, least",
    [
        (((9.3, ALL), (4, ALL)), 14),
        (((6.5, ALL), (6, ALL)), 12),
        (((5, ALL), (8, ALL)), 9),
        (((5, ALL[:2]), (8, ALL)), 7),
    ],
)
def test_two_calls_bring_what_no_record_has(
    tmp_path, monkeypatch, calls, least: int
) -> None:
    """least: of those that are compared, in their order."""
    lease = Lease(tmp_path, monkeypatch)
    for minutes, names in calls:
        begin = lease.now
        s = lease.call(minutes, names)
        assert lease.now <= begin + FACTS_S + 60 * minutes
        assert s.result("tests on the GPU") is not None, "in the first call"
    done = {key for key, task in s.record["tasks"].items() if task["outcome"] == "done"}
    first = [*table.wanted(False), *table.compared(False)[:least]]
    assert {table.key(request) for request in first} <= done
    untimed = {task.key for task in rest.tasks(s) if not task.timed}
    assert untimed | {"bandwidth", "sgd", "mosaic"} <= done
    lacks = [task for key, task in s.record["tasks"].items() if key not in done]
    assert all(task["reason"] for task in lacks)


def test_a_call_may_say_what_it_begins_with_and_leaves_out(tmp_path: Path) -> None:
    made = whole(tmp_path)
    made.first, made.without = ("bandwidth", "batch 64"), ("torch.compile", "racecheck")
    beside, timed = stages.in_order(made, list(stages.STAGES))
    keys = [task.key for _, task in timed]
    ways = (EAGER, GRAPHS, MIN_GRAPHS, LAST, PER_LAYER)
    at_64 = [table.key(table.configuration(way, 64)) for way in ways]
    assert keys[:6] == ["bandwidth", *at_64]
    assert keys[6] == table.key(table.free(GRAPHS))
    names = [*keys, *(task.key for _, task in beside)]
    assert "compute-sanitizer memcheck" in names
    assert not [
        name for name in names if "torch.compile" in name or "racecheck" in name
    ]


def test_a_call_that_is_killed_names_what_it_lacks(tmp_path, monkeypatch) -> None:
    s = whole(tmp_path)
    request = table.wanted(False)[0]
    failed = {"stage": "step", "outcome": "failed", "reason": "as it was"}
    failed["request"], known = request, table.key(request)
    s.record["tasks"][known] = failed

    def killed(session: Session) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "make_ready", killed)
    monkeypatch.setattr(s, "perform", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        stages.perform(s, ["step", "rest"])
    (made,) = record.read_all(s.out)
    assert made["tasks"][known] == failed
    lacks = made["tasks"].keys() - {known}
    assert {compiling.KEY, "bandwidth", "rule gelan-c"} < lacks and len(lacks) > 50
    assert all(made["tasks"][k]["reason"] == "the call ended before it" for k in lacks)
    shown = [row["case"] for row in made["suites"]["checks"]["rows"]]
    assert lacks <= {*shown}


def test_what_failed_stays_known_when_there_is_no_time(tmp_path: Path) -> None:
    s = session(tmp_path, seconds=50)
    s.perform("rest", fixed("a", [{"outcome": "failed", "reason": "one wrong"}]))
    s.perform("rest", fixed("a", [], need_s=60))
    s.skip([("rest", fixed("a", []))], "not built")
    assert s.record["tasks"]["a"]["reason"] == "one wrong"


def test_a_table_that_fails_costs_no_result(tmp_path, monkeypatch, capsys) -> None:
    def wrong(tasks: dict) -> dict:
        raise StopIteration

    s = session(tmp_path)
    monkeypatch.setattr(suites, "from_tasks", wrong)
    for key in "ab":
        s.perform("rest", fixed(key, [{"outcome": "done", "result": {"x": 1}}]))
    assert list(session(tmp_path).record["tasks"]) == ["a", "b"]
    assert "no tables: " in capsys.readouterr().out


def test_too_little_memory_beside_others_is_tried_again(tmp_path: Path) -> None:
    s = session(tmp_path)
    for timed in (True, False):
        answers = [{"outcome": "out of memory", "reason": "CUDA"}]
        answers.append({"outcome": "done", "result": {}})
        run = lambda session, limit, answers=answers: answers.pop(0)  # noqa: E731
        for _ in "12":
            s.perform("rest", Task(f"{timed}", 9, 1, run, timed=timed))
    outcomes = {key: task["outcome"] for key, task in s.record["tasks"].items()}
    assert outcomes == {"True": "out of memory", "False": "done"}


def test_without_a_package_torch_compile_is_given_up(tmp_path, monkeypatch) -> None:
    """What failed can be mended at once, and what was compiled stays in the cache."""
    s, ended = session(tmp_path), []

    def run(session: Session, limit: float) -> dict:
        answer = session.crew.ask({"task": "facts", "device": "asleep"}, 60)
        ended.append(answer)
        return answer

    def failed(session: Session) -> bool:
        while not (session.crew._busy or ended):  # it may have failed already
            time.sleep(0.01)
        return False

    first = Task("first", 60, 1, run, timed=False)
    monkeypatch.setattr(compiling, "tasks", lambda _: [first])
    monkeypatch.setattr(build, "make_ready", failed)
    monkeypatch.setattr(s.crew, "environment", {**s.crew.environment, "PYTHONPATH": ""})
    stages.perform(s, ["step"])
    assert ended[0]["outcome"] == "failed" and not s.crew._busy
    assert all(t["outcome"] != "done" for t in s.record["tasks"].values())
    s.close()


def test_the_first_time_needs_nothing_of_ours(tmp_path: Path) -> None:
    """In a process where yolov9mem is not built; every weight gets a gradient."""
    code = """
import sys
sys.modules["yolov9mem"] = None  # an import of it fails
from benchmarks.gpu import first_time, ways
ways.compiled = ways.in_channels_last
seen = []
first_time.Training.alone = lambda self, alone=first_time.Training.alone: (
    alone(self), seen.append(self.model))
request = {"way": "torch.compile channels_last", "model": "yolov9-t", "batch": 2}
request |= {"size": 64, "objects": 7, "deterministic": False, "multi_scale": False}
assert first_time.run(request | {"device": "cpu"})["warm_s"] > 0
assert all(p.grad is not None for p in seen[-1].parameters() if p.requires_grad)
assert first_time.CachingAutotuner.bench(None, None) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_an_ended_pytest_found_is_read() -> None:
    several = (
        "[gw1] [ 3%] PASSED tests/a.py::b\n[gw0] [ 4%] FAILED tests/a.py::c[x y]\n"
    )
    one = "tests/a.py::b PASSED [ 3%]\ntests/a.py::c[x y] FAILED [ 4%]\ntests/a.py::d "
    for output in (several, one):
        found = build.counts_so_far(output)
        assert found == {"passed": 1, "failed": 1, "failures": ["tests/a.py::c[x y]"]}
    assert build.counts_so_far("") == {}


def test_an_archive_holds_what_is_there_twice_once(tmp_path, monkeypatch) -> None:
    folder, archive = tmp_path / "compiled", tmp_path / "a.tar.xz"
    folder.mkdir()
    for name in ("a", "z"):
        (folder / name).write_bytes(random.Random(0).randbytes(12 << 20))
    assert archives.pack(folder, archive, 13 << 20)
    assert archives.unpack(archive, tmp_path / "again")
    assert (tmp_path / "again" / "z").read_bytes() == (folder / "a").read_bytes()

    def gone(*_: object) -> None:
        raise FileNotFoundError("tmp.pid_1")

    monkeypatch.setattr(archives.tarfile.TarFile, "add", gone)
    assert not archives.pack(folder, archive)
    assert not [*tmp_path.glob("*.half")]


def test_a_pipe_that_another_session_holds_is_not_waited_for(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(crew, "LAST_WORDS_S", 1.0)
    code = "import subprocess, sys, time; print('begun', flush=True); subprocess.Popen("
    code += "['sleep', '20'], start_new_session=True); time.sleep(60)"
    begin = time.monotonic()
    status, output = crew.command([sys.executable, "-c", code], 3, tmp_path, {})
    assert time.monotonic() - begin < 15
    assert status is None and output.startswith("begun") and "was killed" in output
