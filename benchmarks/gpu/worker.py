# SPDX-License-Identifier: MIT
"""One task in a process of its own: a request in, a result out, both one line of JSON.

    {"task": "step", ...} on stdin -> RESULT {"outcome": "done", "result": {...}}

The process imports PyTorch before it reads, so that one that waits costs the next task no
time. It touches the GPU only after it has read.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from typing import Any

MARK = "RESULT "
TASKS = ("facts", "step", "first_time", "bandwidth", "sgd", "mosaic")
TASKS += ("losses", "determinism", "rule", "step_kernels")
WORDS = 600  # of an error's text that a record keeps


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request; running out of memory is an answer too."""
    import torch

    begin = time.perf_counter()
    if "threads" in request:
        torch.set_num_threads(request["threads"])
    os.nice(request.get("niceness", 0))
    try:
        module = importlib.import_module(f"benchmarks.gpu.{request['task']}")
        answer: dict[str, Any] = {"outcome": "done", "result": module.run(request)}
    except torch.OutOfMemoryError as error:
        answer = {"outcome": "out of memory", "reason": str(error)[:WORDS]}
    except MemoryError as error:
        answer = {"outcome": "out of memory", "reason": f"{error}"[:WORDS]}
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"[:WORDS]
        answer = {"outcome": "failed", "reason": reason}
    return answer | {"seconds": round(time.perf_counter() - begin, 1)}


def leave_with_the_parent() -> None:
    """A parent that was killed must not leave workers that hold the GPU's memory."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    leave_with_the_parent()
    # Before the request is known: what takes seconds to import.
    for name in ("numpy", "torch", "torch._inductor.config", "yaml", "cv2"):
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"{name} is not installed", file=sys.stderr)
    line = sys.stdin.readline()
    if not line.strip():
        return 0  # nobody needs this process
    request = json.loads(line)
    if request.get("task") not in TASKS:
        print(f"task: is {request.get('task')!r}, must be one of {TASKS}")
        return 2
    print(MARK + json.dumps(perform(request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
