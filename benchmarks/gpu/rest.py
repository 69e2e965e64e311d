# SPDX-License-Identifier: MIT
"""The tasks of stage rest."""

from __future__ import annotations

from benchmarks.gpu import table
from benchmarks.gpu.names import COMPILED, GRAPHS, LAST
from benchmarks.gpu.session import Session, Task, asking

# The largest first: they take longest, and several run beside each other.
DETECTORS = [f"{family}-{size}" for size in "ecmst" for family in ("gelan", "yolov9")]


def rule(quick: bool) -> list[Task]:
    """Exactness of all ten detectors; quick: of yolov9-t with one seed. Those of many seeds
    last longest."""
    made = []
    for name in DETECTORS[-1:] if quick else DETECTORS:
        limit, need = (420, 60) if name.endswith("-c") else (150, 40)
        made.append(asking(f"rule {name}", limit, need, "rule", False, model=name))
    return made


def step_kernels(quick: bool) -> list[Task]:
    """Of the rows that torch.compile is in; quick: of a rehearsal's step."""
    if quick:
        requests = [r for r in table.rehearsed() if r["way"] == GRAPHS]
    else:
        requests = [table.free(way) for way in (GRAPHS, COMPILED, LAST)]
    made = []
    for request in requests:
        limit, need = table.limits(request)
        key = f"kernels of a step, {request['way']}"
        made.append(asking(key, limit, need, "step_kernels", **request))
    return made


def tasks(session: Session) -> list[Task]:
    """Limits are twice what the tasks took beside four others, or more."""
    return [
        asking("bandwidth", 60, 15, "bandwidth"),
        asking("sgd", 60, 14, "sgd"),
        asking("mosaic", 60, 12, "mosaic"),
        *step_kernels(session.quick),
        asking("losses", 180, 50, "losses", False),
        asking("determinism", 90, 40, "determinism", False),
        *rule(session.quick),
    ]
