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
# With its code in a cache: see compiling.py. It must not take the others' time if the
# cache does not hold what it should.
COMPILE_LIMIT_S, COMPILE_NEED_S = 120.0, 40.0


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


def wanted(quick: bool) -> list[dict[str, Any]]:
    """Those that a target is of, as the official script's settings make them, each batch
    beside its own stock row; and torch.compile, beside ours in PyTorch's own settings."""
    if quick:
        return rehearsed()
    ways = EAGER, GRAPHS, MIN_GRAPHS
    made = [configuration(way, n) for n in (16, 32, 64, 8) for way in ways]
    return [free(GRAPHS), *made, free(COMPILED)]


def compared(quick: bool) -> list[dict[str, Any]]:
    """Sizes that change, which a target is of as well; what stock PyTorch has to offer
    besides; dense images."""
    if quick:
        return []
    ways = EAGER, GRAPHS, MIN_GRAPHS
    made = [changing(way) for way in ways]
    made += [configuration(w, n) for n in (32, 64, 8) for w in (LAST, PER_LAYER)]
    made += [configuration(way, 16, objects=100) for way in ways]
    return [*made, *(configuration(way, 16) for way in (LAST, PER_LAYER))]


def late(quick: bool) -> list[dict[str, Any]]:
    """Those that tell what a part is worth: CUDA graphs, the allocator, cuDNN's search."""
    if quick:
        return []
    made = [configuration(way, 16) for way in (CONV, MIN)]
    made += [free(way) for way in (CONV, MIN_GRAPHS, LAST, EAGER)]
    made += [changing(way, fixed_segments=True) for way in (GRAPHS, MIN_GRAPHS)]
    return [*made, changing(CONV), changing(GROWING), free(REDUCED)]


def configurations(quick: bool) -> list[dict[str, Any]]:
    """All, the most wanted first; quick: a rehearsal's."""
    return [*wanted(quick), *compared(quick), *late(quick)]


def first_time() -> dict[str, Any]:
    """What fills torch.compile's cache and is not timed."""
    return free(COMPILED)


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
