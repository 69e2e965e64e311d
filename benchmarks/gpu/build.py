# SPDX-License-Identifier: MIT
"""Stage build-test: the package for this GPU alone, its tests, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import archives
from benchmarks.gpu.crew import command
from benchmarks.gpu.names import REPEATED
from benchmarks.gpu.session import BESIDE, NoGpuError, Session, Task
from benchmarks.record import ROOT

WORDS = 1500  # of an output that the record keeps
ARCHIVE = "site.tar.xz"  # the built package, beside the record
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
TEST_SECONDS = 90  # of one test, beside the sanitizers; one that hangs costs that much
AFTER_OTHERS = ("nice", "-n", str(BESIDE["niceness"]))


def look_at_the_gpu(session: Session) -> None:
    """Puts the facts of the GPU into the record.

    Raises:
        NoGpuError: there is none.
    """
    answer = session.crew.ask(session.common | {"task": "facts"}, 240)
    if answer["outcome"] != "done":
        raise NoGpuError(
            f"no GPU to measure on: {answer.get('reason')}. `python -m benchmarks cpu` "
            "measures this machine's CPU"
        )
    session.is_on(answer["result"])


def architecture(session: Session) -> str:
    major, minor = session.record["gpu"]["capability"]
    return f"{major}{minor}"


def stamp(session: Session) -> str:
    return f"{session.record['sources']} {architecture(session)} {sys.version_info[:2]}"


def is_built(session: Session) -> bool:
    """Whether the package in `site` is of these sources and this GPU."""
    note = session.site / "built.txt"
    return note.exists() and note.read_text() == stamp(session)


def build(session: Session, seconds: float) -> dict[str, Any]:
    """pip install of the sources for this GPU's architecture, into a folder."""
    session.crew.dismiss()
    shutil.rmtree(session.site, ignore_errors=True)
    environment = {
        **os.environ,
        "YOLOV9MEM_CUDA": "1",
        "YOLOV9MEM_CUDA_ARCHS": architecture(session),
    }
    begin = time.perf_counter()
    status, output = command(
        [
            *AFTER_OTHERS,
            *(sys.executable, "-m", "pip", "install", "--no-build-isolation"),
            *("--no-deps", "--no-index", "--disable-pip-version-check", "-v"),
            *("--target", str(session.site), "."),
        ],
        seconds,
        ROOT,
        environment,
    )
    (session.out / "build.txt").write_text(output)
    answer = {"seconds": round(time.perf_counter() - begin, 1)}
    if status != 0:
        what = "ended at its limit" if status is None else f"exit status {status}"
        return answer | {"outcome": "failed", "reason": f"{what}: {output[-WORDS:]}"}
    (session.site / "built.txt").write_text(stamp(session))
    archives.pack(session.site, session.out / ARCHIVE)
    return answer | {"outcome": "done", "result": {"archs": architecture(session)}}


def unpack(session: Session) -> None:
    """The package as an earlier call left it beside the record, maybe elsewhere."""
    archive = session.out / ARCHIVE
    if not is_built(session) and archive.exists():
        archives.unpack(archive, session.site)
        # One that waits has looked for the package already and found none.
        session.crew.dismiss()


def make_ready(session: Session) -> bool:
    """Builds if need be; whether the package is there."""
    if session.device == "cpu":
        return True
    unpack(session)
    if is_built(session):
        return True
    session.forget("build")
    session.perform("build-test", Task("build", 300, 60, build))
    # As in unpack(): torch.compile's first time has had the next one come meanwhile.
    session.crew.dismiss()
    return is_built(session)


def pytest_settings(session: Session) -> Path:
    """Settings that need no plugin and turn no warning of other versions into an error."""
    path = session.work / "pytest.ini"
    folders = f"{ROOT / 'tests'} {ROOT / 'examples'}"
    path.write_text(f"[pytest]\npythonpath = {folders}\naddopts = -ra\n")
    return path


def counts(output: str) -> dict[str, int]:
    """{"passed": n, ...} of pytest's last line."""
    last = [x for x in output.splitlines() if re.search(r" in [\d.]+s", x)]
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", last[-1] if last else "")
    return {word: int(number) for number, word in found}


def counts_so_far(output: str) -> dict[str, Any]:
    """The same of a pytest -v that was ended, and which tests failed."""
    outcomes = re.findall(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", output)
    found: dict[str, Any] = dict(Counter(word.lower() for word in outcomes))
    # Lines of one process, and of one of several.
    named = r"^(\S+::.+?) (?:FAILED|ERROR)\b|\b(?:FAILED|ERROR) (\S+::.+)$"
    failed = ["".join(pair) for pair in re.findall(named, output, re.MULTILINE)]
    return found | ({"failures": failed[:40]} if failed else {})


def test_files() -> list[Path]:
    """Those that need a GPU; test_cuda_*.py know its emulation alone and are CI's."""
    return sorted((ROOT / "tests").glob("test_gpu_*.py"))


def run_tests(session: Session, seconds: float) -> dict[str, Any]:
    """pytest on test_files(); a skip is a failure where there must be a GPU."""
    if importlib.util.find_spec("pytest") is None:
        return {"outcome": "failed", "reason": "pytest is not installed: carry it"}
    words = [
        *AFTER_OTHERS,
        sys.executable,
        "-m",
        "pytest",
        "-v",  # names what ran when it is ended at its limit
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    if importlib.util.find_spec("pytest_timeout"):
        words += ["-o", f"timeout={TEST_SECONDS}", "-o", "timeout_method=thread"]
    words += ["-c", str(pytest_settings(session)), "--rootdir", str(ROOT)]
    cores = len(os.sched_getaffinity(0))
    if importlib.util.find_spec("xdist") and cores >= 4:
        words += ["-n", str(min(max(cores * 3 // 4, 4), 12))]
    required = "1" if session.device == "cuda" else "0"
    environment = session.environment() | {"YOLOV9MEM_REQUIRE_CUDA": required}
    environment |= {"OMP_NUM_THREADS": "2"}  # of each of pytest's processes
    begin = time.perf_counter()
    status, output = command(
        [*words, *map(str, test_files())], seconds, session.work, environment
    )
    (session.out / "tests.txt").write_text(output)
    found: dict[str, Any] = counts(output)
    answer = {"seconds": round(time.perf_counter() - begin, 1)}
    if status is None:
        found = counts_so_far(output)
        reason = f"ended after {seconds:.0f} s: {found}: {output[-WORDS:]}"
        return answer | {"outcome": "not measured", "reason": reason, "result": found}
    if status != 0 or not found:
        failed = re.findall(r"^(?:FAILED|ERROR) (.+)$", output, re.MULTILINE)
        found |= {"failures": [line[:300] for line in failed[:40]]}
        reason = f"exit status {status}: {found} {'' if failed else output[-WORDS:]}"
        return answer | {"outcome": "failed", "reason": reason, "result": found}
    return answer | {"outcome": "done", "result": found}


def sanitize(tool: str, session: Session, seconds: float) -> dict[str, Any]:
    """The small cases under a tool of compute-sanitizer, with kernels of our own only."""
    program = shutil.which("compute-sanitizer")
    for place in ("/usr/local/cuda", os.environ.get("CUDA_HOME", "")):
        path = Path(place) / "bin" / "compute-sanitizer"
        program = program or (str(path) if place and path.exists() else None)
    if program is None:
        return {
            "outcome": "does not run here",
            "reason": "compute-sanitizer: not found",
        }
    words = [
        *AFTER_OTHERS,
        program,
        "--tool",
        tool,
        "--print-limit",
        "20",
        "--target-processes",
        "all",
        "--report-api-errors",
        "no",  # PyTorch asks for more than there is and handles the answer
    ]
    words += [sys.executable, "-m", "benchmarks.gpu.small"]
    if tool == "racecheck":
        words += ["--without", REPEATED]
    begin = time.perf_counter()
    # Each tensor in memory of its own: in a block of PyTorch's, its neighbours hide what
    # lies beyond its end.
    environment = session.environment() | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status, output = command(words, seconds, session.work, environment)
    with (session.out / "sanitizer.txt").open("a") as log:
        log.write(f"=== {tool}: exit status {status}\n{output}\n")
    answer: dict[str, Any] = {"seconds": round(time.perf_counter() - begin, 1)}
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    if status is None:
        reason = f"ended after {seconds:.0f} s: {output[-WORDS:]}"
        return answer | {"outcome": "not measured", "reason": reason}
    if not summary or "small cases: all ran" not in output:
        reason = f"exit status {status}: {output[-WORDS:]}"
        return answer | {"outcome": "does not run here", "reason": reason}
    clean = re.search(r"SUMMARY: 0 (errors|hazards)", summary[-1]) is not None
    found = {"result": {"summary": summary[-1]}}
    if clean:
        return answer | found | {"outcome": "done"}
    return answer | found | {"outcome": "failed", "reason": output[-WORDS:]}


def tasks(session: Session) -> list[Task]:
    """Those of stage build-test; the build itself comes before every stage."""
    if session.device == "cpu":
        return []
    made = [Task("tests on the GPU", 420, 60, run_tests, timed=False)]
    for tool in SANITIZERS:
        # racecheck looks at every access to shared memory.
        limit, need = (300, 60) if tool == "racecheck" else (100, 20)
        key = f"compute-sanitizer {tool}"
        made.append(Task(key, limit, need, partial(sanitize, tool), timed=False))
    return made
