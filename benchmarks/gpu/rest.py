# SPDX-License-Identifier: MIT
"""The tasks of stage rest."""

from __future__ import annotations

from benchmarks.gpu import table
from benchmarks.gpu.session import Session, Task, asking


def tasks(session: Session) -> list[Task]:
    return [
        asking("bandwidth", 90, 20, "bandwidth"),
        asking("sgd", 150, 30, "sgd"),
        asking("mosaic", 150, 30, "mosaic"),
        *table.tasks_of(table.beside_compile(session.quick)),
    ]
