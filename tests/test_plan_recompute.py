# SPDX-License-Identifier: MIT
"""Outputs of early stages that are recomputed in backward.

What is compared with what: the bytes of `_core.Plan.recompute` with those that forward
wrote, and the gradients of the same backward with stock torch in float64.
"""

from __future__ import annotations

import random

import cuda_emulation as ce
import numpy as np
import pytest
from graph_oracle import arena
from staged_graphs import Run, Staged, check, draw, staged_case


class RunRecomputed(Run):
    """Recomputes each output just before the backward of a stage, while it may."""

    def __init__(self, *args, **request) -> None:
        super().__init__(*args, **request)
        self.recomputed: set[int] = set()

    def before_stage(self, stage: int) -> None:
        for output, of in enumerate(self.t.stage_of_output):
            if of <= stage and self.plan.recompute_needs()[output] is not None:
                made = recomputed(self, output)
                assert made.tobytes() == self.outputs[output].tobytes(), output
                self.recomputed.add(output)


def only(entries: list, flags: list[bool]) -> list:
    return [entry if flag else None for entry, flag in zip(entries, flags, strict=True)]


def recomputed(run: Run, output: int) -> np.ndarray:
    """With no more than what it asks for."""
    needs = run.plan.recompute_needs()[output]
    assert needs is not None
    made: list = [None] * len(run.outputs)
    made[output] = np.full_like(run.outputs[output], np.nan)
    params, norms = only(run.params, needs[1]), only(run.norms, needs[2])
    run.plan.recompute(output, params, norms, made, run.saved, arena(needs[0]))
    return made[output]


@pytest.mark.parametrize("backend", ["ref", "cpu"])
@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int, backend: str) -> None:
    t, before = staged_case(seed)
    rng = random.Random(seed)
    wanted = [rng.random() < 0.8 for _ in t.params]
    for keep in ("all", "conv", "min"):
        grads = draw(t, seed, missing=seed % 2 == 1)
        request = {"keep": keep, "backend": backend, "param_grads": wanted}
        check(t, before, grads, RunRecomputed, segments=4, **request)


@pytest.mark.parametrize("table", ["ym_cuda_plain_backend", "ym_cuda_backend"])
@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_on_the_emulated_gpu(seed: int, table: str) -> None:
    t, before = staged_case(100 + seed)
    request = {"keep": "conv", "backend": ce.capsule(table)}
    check(t, before, draw(t, seed, False), RunRecomputed, segments=2, **request)


def one_of_each() -> tuple[Staged, list[dict]]:
    t = Staged(1)
    x = t.input(2, 3, 16, 16)
    t.output(t.conv(x, 8, 3))
    t.output(t.brick(x, 8, 3))
    t.output(t.act(x, "silu"))
    t.next_stage()
    t.output(t.brick(t.sine(1), 8, 3))
    return t, t.fresh_norms()


def test_what_takes_a_convolution_or_an_input_is_not() -> None:
    t, before = one_of_each()
    run = check(t, before, draw(t, 1, False), RunRecomputed, keep="conv")
    assert isinstance(run, RunRecomputed) and run.recomputed == {1, 3}
    _, brick, _, last = run.plan.recompute_needs()
    names = [row["name"] for row in run.plan.table()]
    assert brick is not None and last is not None, names
    assert brick[0] == last[0] == 0
    assert brick[2] == [True, False] and last[2] == [False, True]
    assert not any(a and b for a, b in zip(brick[1], last[1], strict=True))
    assert sum(brick[1]) == sum(last[1]) == 2  # gamma and beta


def test_arguments_are_checked() -> None:
    t, before = one_of_each()
    run = Run(t, before)
    run.forward()
    needs = run.plan.recompute_needs()[1]
    assert needs is not None
    gamma = needs[1].index(True)
    none: list = [None] * 4
    given = run.params, run.norms, run.outputs
    rest = run.saved, arena(needs[0])
    with pytest.raises(ValueError, match=r"output: is 4, must be in \[0, 4\)"):
        run.plan.recompute(4, *given, *rest)
    with pytest.raises(
        ValueError, match=r"outputs\[1\]: is None, but is to be written"
    ):
        run.plan.recompute(1, run.params, run.norms, none, *rest)
    params = [None if i == gamma else p for i, p in enumerate(run.params)]
    with pytest.raises(ValueError, match=rf"params\[{gamma}\]: is None, but is read"):
        run.plan.recompute(1, params, run.norms, run.outputs, *rest)
    with pytest.raises(TypeError, match="is a NoneType, must be a tuple"):
        run.plan.recompute(1, run.params, [None, None], run.outputs, *rest)
    with pytest.raises(ValueError, match="saved: 0 bytes given, the plan needs"):
        run.plan.recompute(1, *given, None, None)
    with pytest.raises(ValueError, match="output: 0 cannot be recomputed without"):
        run.plan.recompute(0, *given, *rest)
