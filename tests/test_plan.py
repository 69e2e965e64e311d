# SPDX-License-Identifier: MIT
"""Plans of arbitrary graphs against float64 autograd: every keep rule, any cut.

What is compared with what: `_core.Plan` on the reference and the CPU backend (float32)
with stock torch in float64. The graphs are random: values are read several times, sliced,
concatenated (also twice), added to themselves, norms are shared, outputs are inner values.
"""

from __future__ import annotations

import copy
import random

import pytest
from graph_oracle import check
from random_graphs import output_gradients, random_case

KEEPS = ("all", "conv", "min")


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    t, before = random_case(seed)
    grads = output_gradients(t, seed, drop=seed % 3 == 0)
    peaks = {}
    for keep in KEEPS:
        for backend in ("cpu",) if seed % 4 else ("cpu", "ref"):
            run = check(
                t,
                copy.deepcopy(before),
                grads,
                keep=keep,
                backend=backend,
                segments=1 + seed % 3,
            )
            peaks[keep, backend] = run.plan.peak_bytes
    assert peaks["min", "cpu"] <= peaks["all", "cpu"]


@pytest.mark.parametrize("seed", range(20))
def test_partly_frozen_graphs(seed: int) -> None:
    t, before = random_case(seed)
    rng = random.Random(seed)
    grads = output_gradients(t, seed, drop=False)
    for keep in KEEPS:
        check(
            t,
            copy.deepcopy(before),
            grads,
            keep=keep,
            input_grads=[rng.random() < 0.3 for _ in t.inputs],
            param_grads=[rng.random() < 0.6 for _ in t.params],
        )
