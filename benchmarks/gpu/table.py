# SPDX-License-Identifier: MIT
"""The configurations of the training step, as tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.names import COMPILED, CONV, EAGER, GRAPHS, LAST, MIN, PER_LAYER
from benchmarks.gpu.session import Session, Task, asking

BATCHES = (16, 64, 32, 8)
LIMIT_S, NEED_S = 60.0, 14.0
# torch.compile: a first time beside what is not timed, which leaves its code in a cache.
COMPILE_LIMIT_S, COMPILE_NEED_S = 240.0, 40.0
COMPILING = "torch.compile's first time"


def configuration(way: str, batch: int, **change: Any) -> dict[str, Any]:
    """A request of step.py: the table's own settings but for `change`."""
    made = {"way": way, "model": "yolov9-s", "batch": batch, "size": 640, "objects": 7}
    return made | {"deterministic": True, "multi_scale": False} | change


def key(request: dict[str, Any]) -> str:
    """A name that tells the configurations apart."""
    words = [f"step {request['model']}", f"{request['size']} px"]
    words += [f"batch {request['batch']}", f"{request['objects']} objects"]
    words += ["" if request["deterministic"] else "not deterministic"]
    words += ["multi-scale" if request["multi_scale"] else ""]
    words += ["torch's own segments" if request.get("fixed_segments") else ""]
    words += [request["way"]]
    return ", ".join(filter(None, words))


def core(quick: bool) -> list[dict[str, Any]]:
    """Those that the targets are about, the most wanted first."""
    if quick:
        return configurations(True)[:1]
    ways = (EAGER, CONV, MIN)
    made = [configuration(way, batch) for batch in (16, 64) for way in ways]
    changing = (CONV, MIN, EAGER)
    return made + [configuration(way, 16, multi_scale=True) for way in changing]


def free(way: str) -> dict[str, Any]:
    """As PyTorch runs when nobody asks for determinism."""
    return configuration(way, 32, deterministic=False)


def wanted(quick: bool) -> list[dict[str, Any]]:
    """The rest of what the targets are about, which the GPU command does when it has
    waited for COMPILING."""
    if quick:
        return []
    return [free(CONV), free(GRAPHS), configuration(GRAPHS, 16), free(COMPILED)]


def configurations(quick: bool) -> list[dict[str, Any]]:
    """All, the most wanted first: those of core and of wanted, the rest of the table as the
    official script's settings make it, dense images, torch's own segments, graphs of
    many sizes.

    quick: yolov9-t, one batch of 2 images of 64 px, as a rehearsal.
    """
    if quick:
        small = {"model": "yolov9-t", "size": 64, "seconds": 0.0, "steps": 2}
        ways = (EAGER, LAST, PER_LAYER, CONV)
        made = [configuration(way, 2, **small) for way in ways]
        return [*made, configuration(MIN, 2, multi_scale=True, **small)]
    table = [
        configuration(way, batch)
        for ways in ((EAGER, CONV, MIN), (LAST, PER_LAYER))
        for batch in BATCHES
        for way in ways
    ]
    dense = [configuration(w, 16, objects=100) for w in (EAGER, CONV, MIN)]
    fixed = [
        configuration(way, 16, multi_scale=True, fixed_segments=True)
        for way in (CONV, MIN)
    ]
    graphs = configuration(GRAPHS, 16, multi_scale=True)  # what they take of the device
    rest = [*table, *dense, *fixed, graphs]
    rest += [free(way) for way in (MIN, LAST, EAGER)]
    first = [*core(quick), *wanted(quick)]
    return [*first, *(request for request in rest if request not in first)]


def tasks_of(requests: list[dict[str, Any]]) -> list[Task]:
    made = []
    for request in requests:
        limit, need = LIMIT_S, NEED_S
        if request["way"] == COMPILED:
            limit, need = COMPILE_LIMIT_S, COMPILE_NEED_S
        made.append(asking(key(request), limit, need, "step", **request))
    return made


def tasks(session: Session) -> list[Task]:
    """Those of stage step."""
    made = tasks_of(configurations(session.quick))
    if not session.quick:
        request = free(COMPILED) | {"seconds": 0.0, "steps": 2}
        limit, need = COMPILE_LIMIT_S, COMPILE_NEED_S
        made.append(asking(COMPILING, limit, need, "step", False, **request))
    return made
