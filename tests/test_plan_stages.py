# SPDX-License-Identifier: MIT
"""Graphs of several stages, between which the caller computes inputs from outputs.

What is compared with what: `_core.Plan` with stock torch in float64, see staged_graphs.py.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from graph_oracle import arena
from staged_graphs import Run, Staged, check, draw, staged_case

KEEPS = ("all", "conv", "min")


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    t, before = staged_case(seed)
    for keep in KEEPS:
        for segments in (1, 4):
            grads = draw(t, seed, missing=segments == 4)
            run = check(t, before, grads, keep=keep, segments=segments)
            assert set(run.plan.segment_stages()) == set(range(t.stages))


@pytest.mark.parametrize("backend", ["ref", "cpu"])
@pytest.mark.parametrize("seed", range(40, 46))
def test_frozen_parameters(seed: int, backend: str) -> None:
    t, before = staged_case(seed)
    rng = random.Random(seed)
    wanted = [rng.random() < 0.5 for _ in t.params]
    check(t, before, draw(t, seed, False), backend=backend, param_grads=wanted)


def two_stages() -> tuple[Staged, list[dict]]:
    """A brick whose result crosses to the next stage, in which a sine of it is added."""
    t = Staged(1)
    first = t.brick(t.input(2, 3, 16, 16), 8, 3)
    t.output(first)
    t.next_stage()
    t.output(t.brick(t.add(first, t.sine(0)), 4, 3))
    return t, t.fresh_norms()


def test_what_crosses_is_rebuilt() -> None:
    """Kept are the convolutions' outputs alone, as in a graph of one stage."""
    t, before = two_stages()
    run = check(t, before, draw(t, 1, False), keep="conv")
    states = {row["name"]: row["state"] for row in run.plan.table() if row["name"]}
    assert states == {"conv0": "kept", "conv3": "kept"}


def test_arguments_are_checked() -> None:
    t, before = two_stages()
    run = Run(t, before)
    run.forward()
    given = [run.params, run.norms]
    arenas = [run.saved, arena(run.plan.forward_workspace_bytes)]
    with pytest.raises(ValueError, match=r"stage: is 2, must be in \[0, 2\)"):
        run.plan.forward(run.inputs, *given, run.outputs, *arenas, 0, 2)
    inputs = [run.inputs[0], None]
    with pytest.raises(
        ValueError, match=r"inputs\[1\]: is None, but this segment reads it"
    ):
        run.plan.forward(inputs, *given, run.outputs, *arenas, 0, 1)
    with pytest.raises(TypeError, match=r"outputs\[0\]"):
        run.plan.forward(run.inputs, *given, [None, None], *arenas, 0, 0)
    grads = [np.zeros_like(y) for y in run.outputs]
    work = arena(run.plan.backward_workspace([True, True]))
    wanted = (
        [np.zeros_like(x) for x in run.inputs],
        [np.zeros_like(p) for p in run.params],
    )
    last = run.plan.segments - 1
    with pytest.raises(
        ValueError, match=r"grad_outputs\[1\]: is None, but this segment reads it"
    ):
        run.plan.backward(
            last, run.inputs, *given, [None, None], *wanted, run.saved, work, 0, None,
            [True, True],
        )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"grad_outputs\[1\]: is given, the mask says no"
    ):
        run.plan.backward(
            last, run.inputs, *given, grads, *wanted, run.saved, work, 0, None,
            [True, False],
        )  # fmt: skip
