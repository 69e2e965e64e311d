# SPDX-License-Identifier: MIT
"""The tasks of stage rest."""

from __future__ import annotations

from benchmarks.gpu.session import Session, Task, asking

# The smallest first: where time runs out, the least is left for the next call.
DETECTORS = [f"{family}-{size}" for size in "tsmce" for family in ("yolov9", "gelan")]


RULE = "rule "
# All but the first three, which would keep the others waiting.
LARGE_RULES = [RULE + name for name in DETECTORS[3:]]


def rule(quick: bool) -> list[Task]:
    """Exactness of all ten detectors; quick: of yolov9-t with one seed."""
    names = DETECTORS[:1] if quick else DETECTORS
    return [asking(RULE + name, 90, 20, "rule", False, model=name) for name in names]


def tasks(session: Session) -> list[Task]:
    return [
        asking("bandwidth", 90, 20, "bandwidth"),
        asking("sgd", 150, 30, "sgd"),
        asking("mosaic", 150, 30, "mosaic"),
        asking("losses", 90, 30, "losses", False),
        asking("determinism", 45, 15, "determinism", False),
        *rule(session.quick),
    ]
