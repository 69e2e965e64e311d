# SPDX-License-Identifier: MIT
"""Processes for tasks: each request gets a fresh one, so that memory figures are its own.

While one works the next one imports PyTorch and waits, without touching the GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import MARK, WORDS

LAST_WORDS_S = 15.0  # for a killed process to go away


def end(process: subprocess.Popen[str]) -> str:
    """Kills a process and those that it started; what they had printed.

    A process that hangs in the driver can't be killed, and one in another session holds
    the pipe open: neither is waited for.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        output, _ = process.communicate(timeout=LAST_WORDS_S)
    except subprocess.TimeoutExpired as late:
        told = late.output or b""
        output = told.decode(errors="replace") if isinstance(told, bytes) else told
        output += f"\nprocess {process.pid} was killed, and is left as it is\n"
        process.poll()
        if process.stdout is not None:
            process.stdout.close()
    return output or ""


def command(
    words: Sequence[str], limit_s: float, folder: Path, environment: dict[str, str]
) -> tuple[int | None, str]:
    """(exit status, output) of a command; None: it ran past its limit and was killed."""
    process = subprocess.Popen(
        list(words),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return None, end(process)
    return process.returncode, output or ""


class Crew:
    """Runs requests; several threads may ask at once.

    Args:
        folder: where the processes run; holds no package that could hide the built one.
        environment: theirs.
        log: gets what they print.
    """

    def __init__(self, folder: Path, environment: dict[str, str], log: Path) -> None:
        self.folder, self.environment, self.log = folder, environment, log
        self._waiting: subprocess.Popen[str] | None = None
        self._busy: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def _hire(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "benchmarks.gpu.worker"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """The answer {"outcome", "seconds", "result" or "reason"}; never raises for it."""
        begin = time.perf_counter()
        with self._lock:
            process, self._waiting = self._waiting or self._hire(), None
            self._busy.add(process)
        timed_out = False
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            with self._lock:
                self._waiting = self._waiting or self._hire()
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            output = end(process)
        except OSError as error:
            output = f"{error}: {end(process)}"
        with self._lock, self.log.open("a") as log:
            self._busy.discard(process)
            log.write(f"=== {json.dumps(request)}\n{output}\n")
        answer = self._answer(output or "", process.returncode, timed_out, limit_s)
        return {"seconds": round(time.perf_counter() - begin, 1)} | answer

    @staticmethod
    def _answer(
        output: str, status: int | None, timed_out: bool, limit_s: float
    ) -> dict[str, Any]:
        for line in reversed(output.splitlines()):
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        if timed_out:
            reason = f"it ran past its {limit_s:.0f} s and was ended"
            return {"outcome": "not measured", "reason": reason}
        tail = output.strip()[-WORDS:]
        return {"outcome": "failed", "reason": f"exit status {status}: {tail}"}

    def dismiss(self) -> None:
        """Sends the waiting process home (a new build is imported by new ones only)."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            end(waiting)

    def give_up(self) -> None:
        """Ends what works; those who asked for it are told that it failed."""
        with self._lock:
            for process in self._busy:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
