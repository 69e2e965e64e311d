# SPDX-License-Identifier: MIT
"""The configurations of the training step, as tasks."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.names import (
    COMPILED,
    COMPILED_WAYS,
    CONV,
    EAGER,
    GRAPHS,
    GROWING,
    LAST,
    MIN,
    MIN_GRAPHS,
    PER_LAYER,
    REDUCED,
)
from benchmarks.gpu.session import Session, Task, asking

LIMIT_S, NEED_S = 60.0, 14.0
TRIALS_LIMIT_S = 100.0  # where cuDNN's engines are tried first
# With its code in a cache: see compiling.py.
COMPILE_LIMIT_S, COMPILE_NEED_S = 240.0, 40.0


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


def free(way: str) -> dict[str, Any]:
    """As PyTorch runs when nobody asks for determinism."""
    return configuration(way, 32, deterministic=False)


def rehearsed() -> list[dict[str, Any]]:
    """yolov9-t, one batch of 2 images of 64 px."""
    small = {"model": "yolov9-t", "size": 64, "seconds": 0.0, "steps": 2}
    made = [configuration(way, 2, **small) for way in (EAGER, LAST, PER_LAYER, GRAPHS)]
    return [*made, configuration(MIN, 2, multi_scale=True, **small)]


def changing(way: str, **change: Any) -> dict[str, Any]:
    """With sizes that change."""
    return configuration(way, 16, multi_scale=True, **change)


def late(quick: bool) -> list[dict[str, Any]]:
    """Those without a target, after all that has one."""
    if quick:
        return []
    made = [changing(way, fixed_segments=True) for way in (GRAPHS, MIN_GRAPHS)]
    made += [free(way) for way in (MIN_GRAPHS, LAST, EAGER)]
    return [*made, changing(CONV), changing(GROWING), free(REDUCED)]


def configurations(quick: bool) -> list[dict[str, Any]]:
    """All, the most wanted first: the table as the official script's settings make it;
    torch.compile; dense images; sizes that change.

    quick: a rehearsal's.
    """
    if quick:
        return rehearsed()
    most_wanted = EAGER, GRAPHS, MIN_GRAPHS
    made = [free(GRAPHS)]
    made += [configuration(way, 16) for way in (*most_wanted, CONV, MIN)]
    made += [configuration(way, n) for n in (32, 64, 8) for way in most_wanted]
    made += [free(way) for way in (CONV, COMPILED)]
    made += [configuration(w, n) for n in (16, 32, 64, 8) for w in (LAST, PER_LAYER)]
    made += [configuration(way, 16, objects=100) for way in most_wanted]
    made += [changing(way) for way in most_wanted]
    return [*made, *late(quick)]


def first_time() -> dict[str, Any]:
    """What fills torch.compile's cache and is not timed. It chooses among Triton's
    settings beside other work: what is timed chooses anew."""
    return free(COMPILED) | {"seconds": 0.0, "steps": 2, "choices_are_kept": False}


def limits(request: dict[str, Any]) -> tuple[float, float]:
    """(limit_s, need_s) of a step's task."""
    if request["way"] in COMPILED_WAYS:
        return COMPILE_LIMIT_S, COMPILE_NEED_S
    return LIMIT_S if request["deterministic"] else TRIALS_LIMIT_S, NEED_S


def tasks(session: Session) -> list[Task]:
    """Those of stage step, but for torch.compile's first time."""
    return [
        asking(key(request), *limits(request), "step", **request)
        for request in configurations(session.quick)
    ]
