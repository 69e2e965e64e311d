# SPDX-License-Identifier: MIT
"""A session of the GPU benchmarks where there is no GPU: resuming, time guard, build."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gpu_machine import ROOT, why_no_gpu
from invented_sessions import fixed, session, whole

from benchmarks import record
from benchmarks.gpu import build, compiling, rest, stages, table
from benchmarks.gpu.names import (
    COMPILED,
    CONV,
    EAGER,
    GRAPHS,
    LAST,
    MIN_GRAPHS,
    PER_LAYER,
    REDUCED,
)
from benchmarks.gpu.session import Session, Task


def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    if why_no_gpu() is None:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 3
    assert "no GPU to measure on" in done.stderr
    assert "python -m benchmarks cpu" in done.stderr
    assert not list(tmp_path.glob("gpu-*.json"))


def test_a_record_is_continued(tmp_path: Path, capsys) -> None:
    first = session(tmp_path)
    good = {"outcome": "done", "seconds": 2.0, "result": {"passed": 3}}
    bad = {"outcome": "failed", "reason": "exit status 1"}
    first.perform("build-test", fixed("a", [dict(good)]))
    first.perform("build-test", fixed("b", [dict(bad)]))
    second = session(tmp_path)
    assert second.record["date"] == first.record["date"]
    second.perform("build-test", fixed("a", []))  # would fail if it were asked again
    second.perform("build-test", fixed("b", [dict(good)]))
    (path,) = (tmp_path / "out").glob("gpu-*.json")
    made = json.loads(path.read_text())
    assert {k: t["outcome"] for k, t in made["tasks"].items()} == {
        "a": "done",
        "b": "done",
    }
    assert f"continues {path}" in capsys.readouterr().out
    assert made["sources"] and made["rehearsal"]


def test_a_record_of_other_sources_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    first = session(tmp_path)
    first.record["date"] = "2026-01-01T00:00:00+00:00"
    first.perform("rest", fixed("a", [{"outcome": "done", "result": {}}]))
    monkeypatch.setattr(record, "sources", lambda of=(): "others")
    second = session(tmp_path)
    assert second.record["tasks"] == {}
    second.save()
    assert len(list((tmp_path / "out").glob("gpu-*.json"))) == 2


def test_what_has_no_time_is_not_begun(tmp_path: Path) -> None:
    s = session(tmp_path, seconds=50)
    s.perform("rest", fixed("long", [], limit_s=90, need_s=60))
    task = s.record["tasks"]["long"]
    assert task["outcome"] == "not measured"
    assert "of the call's 50 s were left, it needs 60 s" in task["reason"]
    given = []
    run = lambda session, seconds: given.append(seconds) or {"outcome": "done"}  # noqa: E731
    s.perform("rest", Task("short", 400, 1, run))
    assert 40 < given[0] <= 50


def test_a_task_that_raises_is_noted_and_the_next_one_runs(tmp_path: Path) -> None:
    s = session(tmp_path)

    def run(session: Session, seconds: float) -> dict:
        raise OSError("no such program")

    s.perform("rest", Task("a", 9, 1, run))
    assert s.record["tasks"]["a"]["reason"] == "OSError: no such program"
    s.perform("rest", fixed("b", [{"outcome": "done", "result": {}}]))
    assert s.result("b") == {} and s.result("a") is None
    assert not stages.all_well(s)


def test_each_request_has_a_process_of_its_own(tmp_path: Path) -> None:
    s = session(tmp_path)
    try:
        wrong = s.crew.ask({"task": "no such"}, 120)
        assert wrong["outcome"] == "failed" and "must be one of" in wrong["reason"]
        del s.record["gpu"]
        build.look_at_the_gpu(s)
        assert s.record["gpu"]["name"].startswith("none")
        waiting = s.crew._waiting
        late = s.crew.ask(s.common | {"task": "sgd"}, 0.01)
        assert late["outcome"] == "not measured" and "ran past its" in late["reason"]
        assert waiting is not None and waiting.returncode is not None
    finally:
        s.close()
    assert "no such" in (tmp_path / "out" / "log.txt").read_text()


def test_each_gpu_has_a_record_of_its_own(tmp_path: Path, capsys, monkeypatch) -> None:
    """The first machine is an H100, the second an H200, the third an H100 again."""
    facts, days = record.software(), iter(range(1, 9))
    monkeypatch.setattr(
        record, "software", lambda: facts | {"date": f"2026-01-0{next(days)}"}
    )
    for number, name in enumerate(("H100", "H200", "H100")):
        s = Session(tmp_path / "out", "cpu", True, scratch=tmp_path / f"{number}")
        found = {"name": name, "capability": [9, 0], "threads": {"torch": 1}}
        s.crew.ask = lambda *_, found=found: {"outcome": "done", "result": found}
        build.look_at_the_gpu(s)
        assert s.record["gpu"]["name"] == name
        s.perform("rest", fixed(f"task {number}", [{"outcome": "done", "result": {}}]))
    first, second = record.read_all(tmp_path / "out")
    assert (first["gpu"]["name"], list(first["tasks"])) == (
        "H100",
        ["task 0", "task 2"],
    )
    assert (second["gpu"]["name"], list(second["tasks"])) == ("H200", ["task 1"])
    assert "is of H100, this is H200: left alone" in capsys.readouterr().out


def test_a_built_package_is_taken_from_beside_the_record(tmp_path: Path) -> None:
    s = session(tmp_path)
    s.device = "cuda"
    s.record["gpu"]["capability"] = [9, 0]
    made = []
    s.perform = lambda stage, task: made.append(task.key)
    assert not build.make_ready(s) and made == ["build"]
    s.site.mkdir(parents=True)
    (s.site / "built.txt").write_text(build.stamp(s))
    archive = build.shutil.make_archive(str(s.out / "site"), "xztar", s.site)
    assert Path(archive).name == build.ARCHIVE
    build.shutil.rmtree(s.site)
    assert build.make_ready(s) and made == ["build"]
    s.record["gpu"]["capability"] = [8, 0]
    assert not build.make_ready(s) and made == ["build", "build"]


def test_half_an_archive_is_no_package(tmp_path: Path, capsys) -> None:
    """What a killed call has left is said, thrown away and built again."""
    s = session(tmp_path)
    s.device = "cuda"
    s.record["gpu"]["capability"] = [9, 0]
    (s.out / build.ARCHIVE).write_bytes(b"\x1f\x8b half of it")
    s.perform = lambda stage, task: None
    assert not build.make_ready(s)
    assert "cannot be read" in capsys.readouterr().out
    assert not (s.out / build.ARCHIVE).exists()


def test_a_record_survives_in_the_scratch_folder(tmp_path: Path) -> None:
    """The next command on the same machine finds another, empty folder for results."""
    first = session(tmp_path)
    first.perform("rest", fixed("a", [{"outcome": "done", "result": {"x": 1}}]))
    build.shutil.rmtree(tmp_path / "out")
    assert session(tmp_path).result("a") == {"x": 1}


def test_what_is_not_timed_runs_side_by_side_and_what_is_alone(tmp_path: Path) -> None:
    s = session(tmp_path)
    running, most, lock = set(), {}, threading.Lock()

    def task(key: str, timed: bool) -> Task:
        def run(session: Session, seconds: float) -> dict:
            with lock:
                running.add(key)
            time.sleep(0.2)
            with lock:
                most[key] = set(running)
                running.discard(key)
            return {"outcome": "done", "result": {}}

        return Task(key, 9, 1, run, timed=timed)

    keys = {"a": True, "b": False, "c": False, "d": True}
    s.perform_all([("rest", task(key, timed)) for key, timed in keys.items()])
    assert most["a"] == {"a"} and most["d"] == {"d"}
    assert {"b", "c"} in (most["b"], most["c"])
    assert list(s.record["tasks"]) in (list("abcd"), list("acbd"))


def test_the_most_wanted_comes_first(tmp_path: Path) -> None:
    made = whole(tmp_path)
    made.record["tasks"][compiling.KEY] = {"outcome": "done", "result": {}}
    beside, timed = stages.in_order(made, list(stages.STAGES))
    names = [task.key for _, task in beside]
    assert names[0] == "tests on the GPU" and not any(task.timed for _, task in beside)
    assert {"losses", "determinism", *(f"rule {n}" for n in rest.DETECTORS)} < set(
        names
    )
    assert all(task.timed for _, task in timed)
    keys = [task.key for _, task in timed]
    assert len(keys) == len(set(keys))

    def place(way: str, batch: int, **change) -> int:
        return keys.index(table.key(table.configuration(way, batch, **change)))

    assert keys[0] == table.key(table.free(GRAPHS))
    ways = (EAGER, GRAPHS, MIN_GRAPHS)
    table_proper = [place(way, n) for n in (16, 32, 64, 8) for way in ways]
    compiled = keys.index(table.key(table.free(COMPILED)))
    assert [*range(1, 13)] == table_proper and compiled == 13
    assert keys[14:17] == ["bandwidth", "sgd", "mosaic"]
    assert place(EAGER, 16, multi_scale=True) == 17
    assert place(PER_LAYER, 8) < place(GRAPHS, 16, objects=100) < place(LAST, 16)
    kernels = keys.index(f"kernels of a step, {GRAPHS}")
    assert place(PER_LAYER, 16) < kernels < place(CONV, 16)
    after = [table.key(request) for request in table.late(False)]
    assert keys[-len(after) :] == after and "reduce-overhead" in after[-1]


def test_what_is_not_compiled_yet_comes_last(tmp_path: Path) -> None:
    _, timed = stages.in_order(whole(tmp_path), list(stages.STAGES))
    ways = [(task.request or {}).get("way") for _, task in timed]
    # Two rows, and the kernels of one.
    assert ways[-3:] == [COMPILED, REDUCED, COMPILED]
    assert not {COMPILED, REDUCED} & {*ways[:-3]}


def test_limits_are_twice_what_a_task_has_taken(tmp_path: Path) -> None:
    """On the machines of the records; beside other tasks it takes more."""
    made = whole(tmp_path)
    tasks = [task for stage in stages.STAGES.values() for task in stage(made)]
    limits = {task.key: task.limit_s for task in tasks}
    seen = {}
    for found in record.read_all():
        for key, task in found.get("tasks", {}).items():
            if task["outcome"] == "done" and key in limits:
                seen[key] = max(seen.get(key, 0), task["seconds"])
    assert len(seen) > 15
    assert {k: s for k, s in seen.items() if limits[k] < 2 * s} == {}
    assert all(task.need_s <= task.limit_s / 2 for task in tasks)


def test_what_is_timed_has_its_part_of_a_call(tmp_path: Path) -> None:
    """torch.compile's first time may take the first call, and ends before in the next
    one; in a long call it has all that it wants, and a short one is for it alone."""
    for seconds, first, later in (
        *((480, 420, 240), (300, 300, 300), (900, 420, 420), (10, 120, 120)),
    ):
        s = Session(tmp_path, "cpu", False, seconds, tmp_path / "scratch")
        for limit in (first, later):
            (task,) = compiling.tasks(s)
            assert task.limit_s == pytest.approx(limit, abs=5)
            ended = {"outcome": "not measured", "reason": "ended", "seconds": 250.0}
            s.record["tasks"][compiling.KEY] = ended


def test_torch_compile_begins_before_the_build(tmp_path: Path, monkeypatch) -> None:
    """Its first time lasts as long as what is not timed; what is waits."""
    s, order, begun = session(tmp_path), [], threading.Event()

    def task(key: str, timed: bool, seconds: float = 0) -> Task:
        def run(session: Session, limit: float) -> dict:
            order.append(key)
            begun.set()
            time.sleep(seconds)
            order.append(f"{key} ended")
            return {"outcome": "done", "result": {}}

        return Task(key, 9, 1, run, timed=timed)

    def ready(session: Session) -> bool:
        assert begun.wait(60)
        order.append("build")
        return True

    pairs = [("step", task("row", True))], [("rest", task("rule", False))]
    monkeypatch.setattr(stages, "in_order", lambda *_: pairs[::-1])
    monkeypatch.setattr(compiling, "tasks", lambda _: [task("first", False, 1.5)])
    monkeypatch.setattr(build, "make_ready", ready)
    stages.perform(s, ["step", "rest"])
    assert order[:4] == ["first", "build", "rule", "rule ended"]
    assert order[4:] == ["first ended", "row", "row ended"]


def test_compiled_code_travels_while_a_row_of_it_lacks(tmp_path: Path, capsys) -> None:
    s = whole(tmp_path)
    compiling.fetch(s)
    assert compiling.leave(s) is None, "nothing was compiled"
    (s.compiled / "triton").mkdir(parents=True)
    (s.compiled / "triton" / "a.cubin").write_bytes(bytes(100))
    archive = compiling.leave(s)
    assert archive is not None and archive.parent == s.out
    build.shutil.rmtree(s.compiled)
    (s.compiled / "locks").mkdir(parents=True)  # as a process that imports PyTorch does
    compiling.fetch(s)
    assert (s.compiled / "triton" / "a.cubin").read_bytes() == bytes(100)
    (s.compiled / "large").write_bytes(os.urandom(compiling.MOST_BYTES + 1))
    assert compiling.leave(s) is None and not archive.exists()
    assert "too large to travel" in capsys.readouterr().out
    (s.compiled / "large").unlink()
    assert compiling.leave(s) == archive
    for way in (COMPILED, REDUCED):
        s.record["tasks"][table.key(table.free(way))] = {"outcome": "done"}
    assert compiling.leave(s) is None and not archive.exists()
    assert s.crew.environment["TORCHINDUCTOR_CACHE_DIR"] == str(s.compiled)


def test_the_map_of_the_folder_is_whole_and_orders_need_no_torch() -> None:
    folder = ROOT / "benchmarks" / "gpu"
    names = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    assert names == set(re.findall(r"\w+\.py", (folder / "__init__.py").read_text()))
    code = "import sys, benchmarks.gpu.stages; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120)
    assert done.returncode == 0


def test_commands_are_ended_at_their_limit(tmp_path: Path) -> None:
    words = [sys.executable, "-u", "-c", "print('begun'); import time; time.sleep(60)"]
    status, output = build.command(words, 5, tmp_path, {})
    assert status is None
    assert output in ("begun\n", "")


def test_what_pytest_and_the_sanitizer_print_is_read() -> None:
    line = "== 2 failed, 31 passed, 1 skipped in 12.34s =="
    assert build.counts(line) == {"failed": 2, "passed": 31, "skipped": 1}
    assert build.counts("no tests here") == {}


def test_a_file_s_name_says_whether_its_tests_need_a_gpu() -> None:
    """test_cuda_*.py never, test_gpu_*.py always: those are what a GPU machine runs."""
    tests = ROOT / "tests"
    assert build.test_files() == sorted(tests.glob("test_gpu_*.py"))
    assert {"test_gpu_torch.py", "test_gpu_step.py"} <= {
        path.name for path in build.test_files()
    }
    for path in tests.glob("test_cuda_*.py"):
        found = re.search(r"gpu_machine|is_available\(|\.cuda\(", path.read_text())
        assert found is None, (path.name, found)
    for path in build.test_files():
        text = path.read_text()
        marks = re.findall(
            r"^(?:pytestmark = |@)(?:needs_gpu|on_a_gpu_only)\b", text, re.M
        )
        every = any(mark.startswith("pytestmark") for mark in marks)
        count = len(re.findall(r"^def test_", text, re.M))
        assert every or len(marks) == count, path.name


def test_a_missing_sanitizer_is_noted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.Path, "exists", lambda path: False)
    answer = build.sanitize("memcheck", session(tmp_path), 5)
    assert answer["outcome"] == "does not run here"
