# SPDX-License-Identifier: MIT
"""Inputs that come planar, (N, C, H, W), and are packed by the plan.

What is compared with what: the packed image with torch's own permutation and rounding, bit
for bit; results and gradients of graphs with those of the same graph whose inputs come
packed, bit for bit, and of several stages with stock torch in float64.
"""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from graph_oracle import Run, Tracer, arena, nhwc
from instruction_sets import each_lesser_isa, run_again
from random_graphs import output_gradients, random_case, tower
from staged_graphs import check as check_stages
from staged_graphs import draw, staged_case

from yolov9mem import _core

BACKENDS = ("ref", "cpu")
NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = [
    (2, 3, 37, 41),  # an image, odd
    (1, 3, 96, 200),  # several tasks
    (3, 1, 5, 7),
    (2, 4, 1, 1),
    (5, 17, 9, 13),
    (1, 32, 8, 5),
    (2, 33, 6, 7),  # a tile of one channel
    (1, 700, 3, 5),
    (2, 3, 1, 1025),
]


def image(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """With ties of bfloat16's rounding, infinities and a NaN."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 100
    odd = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, -torch.inf, torch.nan, -0.0])
    flat = x.flatten()
    flat[: len(odd)] = odd[: len(flat)]
    flat[-1] = torch.nan
    return x.to(dtype)


def array(x: torch.Tensor) -> np.ndarray:
    """bfloat16 as its bits."""
    return (x.view(torch.uint16) if x.dtype is torch.bfloat16 else x).numpy()


def assert_same(made: np.ndarray, truth: torch.Tensor) -> None:
    """The same bits, where both are no NaN."""
    made = torch.from_numpy(made)
    made = made.view(torch.bfloat16) if truth.dtype is torch.bfloat16 else made
    assert torch.equal(made.isnan(), truth.isnan())
    bits = torch.int16 if truth.dtype is torch.bfloat16 else torch.int32
    whole = ~truth.isnan()
    assert torch.equal(made.view(bits)[whole], truth.contiguous().view(bits)[whole])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "given, kept",
    [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")],
)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_packing(shape: tuple[int, ...], given: str, kept: str, backend: str) -> None:
    """It is an output itself, and beside itself and another value in a wider one."""
    x = image(shape, NUMBERS[given])
    n, c, h, w = shape
    graph = _core.Graph()
    value, other = graph.input(c), graph.input(2)
    graph.output(value)
    graph.output(graph.concat([other, value, value]))
    request = {"dtype": kept, "backend": backend, "planar_inputs": [given, None]}
    plan = _core.Plan(graph, [(n, h, w)] * 2, **request)
    beside = torch.ones(n, h, w, 2, dtype=NUMBERS[kept])
    outputs = [torch.full(s, 9, dtype=NUMBERS[kept]) for s in plan.output_shapes]
    work = arena(plan.forward_workspace_bytes + 64)
    work[-64:] = 0xAB
    arrays = [array(y) for y in outputs]
    saved = arena(plan.saved_bytes)
    plan.forward([array(x), array(beside)], [], [], arrays, saved, work)
    truth = x.permute(0, 2, 3, 1).to(NUMBERS[kept])
    assert_same(arrays[0], truth)
    assert_same(arrays[1], torch.cat([beside, truth, truth], 3))
    assert (work[-64:] == 0xAB).all()


@each_lesser_isa
def test_other_instruction_sets(isa: str) -> None:
    run_again(__file__, "test_packing", isa)


def results(run: Run, grads: list[np.ndarray | None]) -> list[np.ndarray]:
    made = run.forward()
    run.backward(grads)
    moved = [x for pair in run.running for x in pair]
    found = [*made, *run.grad_inputs, *run.grad_params, *moved]
    return [x for x in found if x is not None]


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(seed: int) -> None:
    """Inputs are read several times, sliced, concatenated, added, and outputs."""
    t, before = random_case(seed)
    if seed % 5 == 0:
        t.output(0)
    grads = [g if g is None else nhwc(g) for g in output_gradients(t, seed, seed % 3)]
    rng = random.Random(seed)
    planar = ["float32", *[rng.choice((None, "float32")) for _ in t.inputs[1:]]]
    for keep in ("all", "conv", "min"):
        request = {
            "keep": keep,
            "backend": BACKENDS[seed % 4 > 0],
            "segments": 1 + seed % 3,
            "input_grads": [seed % 2 == 0] * len(t.inputs),
        }
        both = [
            results(
                Run(t, copy.deepcopy(before), planar_inputs=forms, **request), grads
            )
            for forms in (planar, None)
        ]
        for a, b in zip(*both, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_stages(seed: int) -> None:
    t, before = staged_case(seed)
    rng = random.Random(seed)
    planar = ["float32", *[rng.choice((None, "float32")) for _ in t.inputs[1:]]]
    for keep in ("conv", "min"):
        request = {"keep": keep, "segments": 1 + seed % 4, "planar_inputs": planar}
        check_stages(t, before, draw(t, seed, missing=False), **request)


def plan(t: Tracer, **request) -> _core.Plan:
    sizes = [(x.shape[0], x.shape[2], x.shape[3]) for x in t.inputs]
    return _core.Plan(t.graph, sizes, input_grads=[False] * len(sizes), **request)


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
def test_the_packed_image_is_there_for_its_readers_alone(keep: str) -> None:
    """It is live at the first step and at the last, where nothing else is large: the
    plan's peak is what it is without it, which would be added if it stayed."""
    t, _ = tower(8, 96)
    ours, packed = plan(t, keep=keep, planar_inputs=["float32"]), plan(t, keep=keep)
    assert ours.peak_bytes == packed.peak_bytes
    assert ours.saved_bytes == packed.saved_bytes
    row, stem = ours.table()[:2]
    assert (row["op"], row["state"]) == ("planar_input", "rebuilt")
    assert row["rebuilds"] == 1 + stem["rebuilds"]
    assert packed.table()[0]["state"] == "input"


def test_it_waits_for_its_first_reader() -> None:
    """Two inputs of which one is read late do not lie beside each other."""
    t = Tracer(0)
    early, late = t.input(1, 8, 16, 16), t.input(1, 8, 4, 4)
    x = t.max_pool(t.max_pool(early, 2, 2, 0), 2, 2, 0)
    t.output(t.max_pool(t.add(x, late), 2, 2, 0))
    size = 8 * 4
    made = plan(t, planar_inputs=["float32"] * 2).forward_workspace_bytes
    assert made == size * (16 * 16 + 8 * 8)


def test_an_input_that_nothing_reads() -> None:
    graph = _core.Graph()
    graph.input(3)
    graph.output(graph.max_pool(graph.input(2), (2, 2), (2, 2)))
    plan = _core.Plan(graph, [(1, 4, 4)] * 2, planar_inputs=["float32", None])
    assert plan.table()[0]["state"] == "not kept"
    out = np.zeros((1, 2, 2, 2), np.float32)
    x = np.ones((1, 4, 4, 2), np.float32)
    unread = np.full((1, 3, 4, 4), np.nan, np.float32)
    saved, work = arena(plan.saved_bytes), arena(plan.forward_workspace_bytes)
    plan.forward([unread, x], [], [], [out], saved, work)
    assert (out == 1).all()


class TestBadInput:
    """Each rule has its sentence."""

    def graph(self) -> _core.Graph:
        graph = _core.Graph()
        graph.output(graph.max_pool(graph.input(3), (2, 2), (2, 2)))
        return graph

    @pytest.mark.parametrize(
        "planar, dtype, error, words",
        [
            (["float32"] * 2, "float32", ValueError, "has 2 entries, must have 1"),
            (["uint8"], "float32", TypeError, r"planar_inputs\[0\]: is 'uint8'"),
            ([3], "float32", TypeError, r"planar_inputs\[0\]: .* or None, got 3"),
            (5, "float32", TypeError, "planar_inputs: is a int, must be a seq"),
            (
                ["bfloat16"],
                "float32",
                TypeError,
                "input 0: comes planar in bfloat16, must be float32 or the plan's float32",
            ),
        ],
    )
    def test_forms(self, planar, dtype: str, error: type, words: str) -> None:
        request = {"dtype": dtype, "planar_inputs": planar}
        with pytest.raises(error, match=words):
            _core.Plan(self.graph(), [(1, 4, 6)], **request)

    @pytest.mark.parametrize(
        "x, error, words",
        [
            (np.zeros((1, 4, 6, 3), np.float32), ValueError, r"must be \(1, 3, 4, 6\)"),
            (
                np.zeros((1, 4, 6, 3), np.float32).transpose(0, 3, 1, 2),
                ValueError,
                "stride of dimension 3 is 3, must be 1",
            ),
            (
                np.zeros((1, 3, 4, 8), np.float32)[..., :6],
                ValueError,
                "stride of dimension 2 is 8, must be 6",
            ),
            (np.zeros((1, 3, 4, 6), np.uint8), TypeError, "is uint8, must be float32"),
            (
                (64, "float32", (1, 3, 4, 6), (72, 24, 6, 1), 0),
                ValueError,
                "CUDA device 0",
            ),
            (None, ValueError, "is None, but this segment reads it"),
        ],
    )
    def test_arrays(self, x, error: type, words: str) -> None:
        plan = _core.Plan(self.graph(), [(1, 4, 6)], planar_inputs=["float32"])
        out = np.zeros((1, 2, 3, 3), np.float32)
        saved, work = arena(plan.saved_bytes), arena(plan.forward_workspace_bytes)
        with pytest.raises(error, match=rf"inputs\[0\]: .*{words}"):
            plan.forward([x], [], [], [out], saved, work)
        assert (out == 0).all()
