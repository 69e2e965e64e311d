# SPDX-License-Identifier: MIT
"""The tasks of stage rest."""

from __future__ import annotations

from benchmarks.gpu.session import Session, Task, asking

# The smallest first: where time runs out, the least is left for the next call.
DETECTORS = [f"{family}-{size}" for size in "tsmce" for family in ("yolov9", "gelan")]


def rule(quick: bool) -> list[Task]:
    """Exactness of all ten detectors; quick: of yolov9-t with one seed."""
    names = DETECTORS[:1] if quick else DETECTORS
    return [
        asking(f"rule {name}", 150, 20, "rule", False, model=name) for name in names
    ]


def tasks(session: Session) -> list[Task]:
    return [
        asking("bandwidth", 90, 20, "bandwidth"),
        asking("sgd", 60, 14, "sgd"),
        asking("mosaic", 60, 12, "mosaic"),
        asking("losses", 90, 30, "losses", False),
        asking("determinism", 45, 15, "determinism", False),
        *rule(session.quick),
    ]
