# SPDX-License-Identifier: MIT
"""Graphs of the core: what fails leaves them as they were."""

from __future__ import annotations

import pytest

from yolov9mem import _core

MOST = 8192  # calls, inputs among them


def test_a_sum_that_is_too_long_adds_nothing() -> None:
    graph = _core.Graph()
    value = graph.input(4)
    for _ in range(MOST - 3):
        value = graph.activation(value, "relu")
    for _ in range(2):
        with pytest.raises(ValueError, match="graph: more than 8192 calls"):
            graph.add([value] * 4)
    assert graph.add([value] * 3) == MOST - 1
    with pytest.raises(ValueError, match="graph: more than 8192 calls"):
        graph.add([value])
