# SPDX-License-Identifier: MIT
"""Runs that are repeated as CUDA graphs: the bits of runs whose work is queued each time.

The core and the torch adapter on the emulated CUDA backend, where a stream records its
calls and a graph is a list of them; test_gpu_torch.py has the adapter on a GPU.
"""

from __future__ import annotations

import os
import weakref
from unittest.mock import Mock

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from backend_training import plans_of, trained_with_and_without_graphs
from emulated_gpu import LAUNCHES, emulated_gpu
from fixed_run import SEGMENTS, FixedRun
from graph_oracle import arena
from models_for_tests import Net, backward, image

import yolov9mem.torch as ym
from yolov9mem.torch.running import binding, planned, registry, shared_call

GRAPHS = 4
FEWEST_STEPS = 4  # of a graph; fewer are queued


def recorded() -> FixedRun:
    """One that has all its graphs."""
    run = FixedRun(replays=True)
    for seed in range(2):
        run.step(seed)
    return run


@pytest.fixture
def runs():
    """One that repeats and one that does not."""
    lib = ce.library()
    before = lib.ym_emulation_count(GRAPHS)
    made = [FixedRun(replays=True), FixedRun()]
    yield made
    made.clear()
    assert lib.ym_emulation_count(GRAPHS) == before  # all went with the plan


def assert_same_bits(runs: list[FixedRun], seed: int, **options) -> None:
    for a, b in zip(*(run.step(seed, **options) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_bits_of_now(runs: list[FixedRun], seed: int) -> None:
    """After runs of the first alone: from its running statistics."""
    for mine, other in zip(runs[0].running, runs[1].running, strict=True):
        for a, b in zip(mine, other, strict=True):
            b[...] = a
    assert_same_bits(runs, seed)


PARTS = 1 + SEGMENTS


def test_a_run_is_recorded_the_second_time_and_repeated(runs) -> None:
    assert runs[1].plan.replays is None
    for seed, expected in enumerate([(0, 0), (PARTS, PARTS), (PARTS, 2 * PARTS)]):
        assert_same_bits(runs, seed)
        assert runs[0].plan.replays == (*expected, False)


def test_a_repeated_part_is_one_launch(runs) -> None:
    lib = ce.library()
    for seed in range(3):
        before = lib.ym_emulation_count(LAUNCHES)
        runs[0].step(seed)
    assert lib.ym_emulation_count(LAUNCHES) - before == PARTS


def test_memory_that_alternates_is_known_each_time(runs) -> None:
    """As torch's allocator gives it in a loop that still holds the last outputs."""
    places = [runs[0].saved, arena(runs[0].plan.saved_bytes)]
    for seed in range(6):
        runs[0].saved = places[seed % 2]
        assert_same_bits(runs, seed)
    assert runs[0].plan.replays == (2 * PARTS, 4 * PARTS, False)


def test_a_forked_child_leaves_the_graphs_alone() -> None:
    """As a DataLoader's worker that collects a plan: they are its parent's."""
    lib, run = ce.library(), recorded()
    before = lib.ym_emulation_count(GRAPHS)
    child = os.fork()
    if child == 0:
        run.plan = None
        os._exit(lib.ym_emulation_count(GRAPHS) != before)
    assert os.waitpid(child, 0)[1] == 0
    del run
    assert lib.ym_emulation_count(GRAPHS) == before - PARTS


def test_only_a_few_keys_are_remembered(runs) -> None:
    lib = ce.library()
    before = lib.ym_emulation_count(GRAPHS)
    held = []
    for seed in range(6):
        runs[0].move()
        held.append(runs[0].saved)  # or the next one would be given its memory
        runs[0].step(seed)
        runs[0].step(seed)
    assert lib.ym_emulation_count(GRAPHS) - before == 4 * PARTS
    assert runs[0].plan.replays == (6 * PARTS, 6 * PARTS, False)


def test_recording_stops_where_nothing_comes_back(runs) -> None:
    """Each key comes twice: a record each, and one repeat of it."""
    held = []
    for seed in range(26):
        runs[0].move()
        held.append(runs[0].saved)
        runs[0].step(seed)
        runs[0].step(seed)
    recorded, repeated, gave_up = runs[0].plan.replays
    assert recorded == repeated == 64 + repeated // 8
    assert not gave_up
    assert_same_bits_of_now(runs, 26)


def test_another_momentum_is_another_run(runs) -> None:
    for seed in range(3):
        assert_same_bits(runs, seed)
    for run in runs:
        run.norms = [(m, v, eps, 0.5, a, b) for m, v, eps, _, a, b in run.norms]
    assert_same_bits(runs, 3)
    assert_same_bits(runs, 4)


def test_adding_to_gradients_is_another_run(runs) -> None:
    some = bytes(i % 2 for i in range(len(runs[0].params)))
    for seed, accumulate in enumerate([None, None, some, some, None, some]):
        assert_same_bits(runs, seed, accumulate=accumulate)
    # In the third step forward alone was known.
    assert runs[0].plan.replays == (1 + 2 * SEGMENTS, 4 * PARTS + 1, False)


def test_gradients_from_other_memory_concern_the_part_that_reads_them(runs) -> None:
    """As a loss leaves them, whose temporaries are never the same."""
    held = []
    for seed in range(4):
        held.append(runs[0].grads)
        runs[0].grads = [np.zeros_like(dy) for dy in held[-1]]
        assert_same_bits(runs, seed)
    others = PARTS - 1
    assert runs[0].plan.replays == (others, 3 * others, False)


def test_an_image_from_other_memory_concerns_its_packing_alone() -> None:
    """As a loader leaves it: the step that packs it is queued, the others are repeated."""
    form = {"planar_inputs": ["float32"], "input_grads": [False]}
    pair = [FixedRun(replays=True, **form), FixedRun(**form)]
    for run in pair:
        run.grad_inputs = [None]
    held = []
    for seed in range(4):
        held.append(pair[0].inputs)
        pair[0].inputs = [np.zeros_like(x) for x in held[-1]]
        assert_same_bits(pair, seed)
    assert pair[0].plan.replays == (PARTS, 3 * PARTS, False)
    lib = ce.library()
    before = lib.ym_emulation_count(LAUNCHES)
    pair[0].step(4)
    packed = 2  # in forward, and for the weights' gradient
    assert lib.ym_emulation_count(LAUNCHES) - before <= PARTS + packed + FEWEST_STEPS


def test_a_small_workspace_stays_from_forward_to_backward(monkeypatch) -> None:
    """What the loss allocates in between would move it. A large one would be missed."""
    taken = Mock(side_effect=shared_call.take_workspace)
    monkeypatch.setattr(shared_call, "take_workspace", taken)
    with emulated_gpu():
        for graphs, part, times in ((False, 1, 2), (True, 1, 1), (True, 0, 2)):
            monkeypatch.setattr(planned, "KEPT_WORKSPACE", part)
            module = ym.checkpoint(Net(), segments=2, cuda_graphs=graphs)
            taken.reset_mock()
            backward(module(image()))
            assert taken.call_count == times


def test_a_large_copy_of_an_input_does_not_stay(monkeypatch) -> None:
    """A crop's, which the plan does not pack itself."""
    copies = []

    def noted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        packed = channels_last(tensor, dtype)
        if packed.data_ptr() != tensor.data_ptr():
            copies.append(weakref.ref(packed))
        return packed

    channels_last = binding.channels_last
    monkeypatch.setattr(binding, "channels_last", noted)
    crop = image(size=18)[..., 1:-1, 1:-1]
    with emulated_gpu():
        module = ym.checkpoint(Net())
        backward(module(crop))
        (plan,) = plans_of(module)
        least = plan.forward_workspace_bytes / plan.core.peak_bytes
        large = image().nbytes / plan.core.peak_bytes
        for part, stays in ((least + large / 2, False), (least + 2 * large, True)):
            monkeypatch.setattr(planned, "KEPT_WORKSPACE", part)
            module = ym.checkpoint(Net())
            copies.clear()
            out = module(crop)
            (plan,) = plans_of(module)
            assert plan.keeps_workspace
            assert [copy() is not None for copy in copies] == [stays]
            backward(out)
            assert len(copies) == (1 if stays else 2) + len(out) * len(out[0])


def test_a_plan_that_goes_leaves_the_captures_of_others_alone() -> None:
    """Python may collect it while its user captures something else."""
    lib = ce.library()
    before = lib.ym_emulation_count(GRAPHS)
    run = recorded()
    lib.ym_emulation_capture(1)
    try:
        del run
        assert lib.ym_emulation_count(GRAPHS) == before
    finally:
        lib.ym_emulation_capture(0)


def test_a_plan_that_goes_in_a_thread_of_another_device_leaves_its_graphs(runs) -> None:
    """To free them would open a context there; the next run does."""
    lib, run = ce.library(), recorded()
    before = lib.ym_emulation_count(GRAPHS)
    lib.ym_emulation_devices(2)
    lib.cudaSetDevice(1)
    try:
        del run
        assert lib.ym_emulation_count(GRAPHS) == before
    finally:
        lib.cudaSetDevice(0)
        lib.ym_emulation_devices(1)
    runs[0].step(0)
    assert lib.ym_emulation_count(GRAPHS) == before - PARTS


def test_a_caller_who_captures_gets_the_launches(runs) -> None:
    lib = ce.library()
    for seed in range(2):
        runs[0].step(seed)
    lib.ym_emulation_capture(1)
    try:
        before = lib.ym_emulation_count(LAUNCHES)
        runs[0].step(2)
        assert lib.ym_emulation_count(LAUNCHES) - before > 5 * PARTS
    finally:
        lib.ym_emulation_capture(0)
    assert runs[0].plan.replays == (PARTS, PARTS, False)


def test_a_failure_while_recording_loses_nothing(runs) -> None:
    assert_same_bits(runs, 0)
    ce.library().ym_emulation_fail_next(2)  # the first call of the recording
    assert_same_bits(runs, 1)
    assert runs[0].plan.replays == (SEGMENTS, SEGMENTS, False)
    assert_same_bits(runs, 2)
    assert runs[0].plan.replays == (PARTS, 2 * SEGMENTS + 1, False)


def test_after_three_failures_in_a_row_there_is_no_fourth(runs) -> None:
    run = runs[0]
    arguments = (run.inputs, run.params, run.norms, run.outputs, run.saved, run.work)
    for _ in range(4):
        assert run.plan.replays == (0, 0, False)
        run.plan.forward(*arguments)
        ce.library().ym_emulation_fail_next(2)
    ce.library().ym_emulation_fail_next(0)
    assert run.plan.replays == (0, 0, True)
    run.plan.forward(*arguments)
    assert_same_bits_of_now(runs, 0)


def test_all_plans_together_have_so_many_graphs(runs) -> None:
    """Those longest unused go, and their plans can do without."""
    lib = ce.library()
    others = [FixedRun(replays=True) for _ in range(45)]
    for run in (runs[0], *others):
        for seed in range(2):
            run.step(seed)
    assert lib.ym_emulation_count(GRAPHS) == 128 < PARTS * len(others)
    runs[1].step(0)
    assert_same_bits_of_now(runs, 1)
    assert runs[0].plan.replays == (2 * PARTS, 2 * PARTS, False)
    assert lib.ym_emulation_count(GRAPHS) == 128


def test_a_graph_that_fails_to_start_loses_nothing(runs) -> None:
    for seed in range(2):
        assert_same_bits(runs, seed)
    ce.library().ym_emulation_fail_next(2)
    assert_same_bits(runs, 2)
    assert runs[0].plan.replays == (PARTS, PARTS, True)


@pytest.mark.parametrize("strict", [True, False])
def test_graphs_are_for_few_sizes(strict: bool) -> None:
    with emulated_gpu():
        module = ym.checkpoint(Net(), strict=strict)
        for size in range(16, 80, 8):
            backward(module(image(size=size)), seed=0)
        repeats = [plan.repeats for plan in plans_of(module)]
    assert repeats == [True] * 4 + [False] * 4


def test_each_gpu_has_graphs_for_its_sizes() -> None:
    """DataParallel's replicas share what is known of their origin."""
    with emulated_gpu():
        module = ym.checkpoint(Net())
        for size in range(16, 48, 8):
            backward(module(image(size=size)), seed=0)
        for lowered in registry.runner_of(module).lowered.values():
            for graph in lowered.graphs:
                graph.program.device = torch.device("cuda", 1)
        backward(module(image(size=48)), seed=0)
        repeats = [plan.repeats for plan in plans_of(module)]
    assert repeats == [True] * 5


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_a_module_trains_as_without(keep: str) -> None:
    with emulated_gpu():
        module = trained_with_and_without_graphs(keep, "cpu", "cuda")
        assert sum(plan.core.replays[0] for plan in plans_of(module)) > 0
