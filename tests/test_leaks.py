# SPDX-License-Identifier: MIT
"""No leaks: memory and reference counts over many calls, failed ones included."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import yolov9mem
from yolov9mem import _core

CALLS = 1000
GROWTH = 2**20  # bytes in CALLS calls: an object of 1 kB kept by each would break it


def resident_bytes() -> int:
    """RSS after the allocator has handed back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def grown_bytes(call: Callable[[], object]) -> int:
    for _ in range(CALLS // 5):
        call()
    before = resident_bytes()
    for _ in range(CALLS):
        call()
    return resident_bytes() - before


def refused(call: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError, NotImplementedError)):
        call()


def block_step() -> Callable[[], object]:
    block = yolov9mem.elan1(2, 2, 2, 2)
    params = block.initial_params()
    x = np.ones((1, 4, 4, 2), np.float32)

    def step() -> None:
        block.backward(block.forward(x, params))

    return step


def build_a_plan() -> None:
    block = yolov9mem.rep_ncsp_elan4(2, 2, 2, 2, 1)
    str(block.plan((1, 4, 4)))


def refused_by_the_graph() -> None:
    graph = _core.Graph()
    x = graph.input(3)
    w = graph.param((4, 3, 1, 1), "w")
    refused(lambda: graph.conv(x, 7))
    refused(lambda: graph.conv(9, w))
    refused(lambda: graph.conv(x, w, groups=3))
    refused(lambda: graph.conv_transpose(x, w))
    refused(lambda: graph.conv_transpose(x, 9))
    refused(lambda: graph.affine(x, float("inf")))
    refused(lambda: graph.affine(x, bias=w))
    refused(lambda: graph.add([x, 5]))
    refused(lambda: graph.concat([]))
    refused(lambda: graph.concat("ab"))
    refused(lambda: graph.slice(x, 2, 2))
    refused(lambda: graph.slice(x, 2**31 - 1, 1))
    refused(lambda: graph.activation(x, "tanh"))
    refused(lambda: graph.upsample(x, scale=(1.5, 1.5)))
    refused(lambda: graph.upsample(x))
    refused(lambda: graph.upsample(x, scale=(0.0, 1.0), mode="bilinear"))
    refused(lambda: graph.upsample(x, size=(3, 3), mode="bicubic"))
    refused(lambda: graph.upsample(x, size=(3, 3), align_corners=True))
    refused(lambda: graph.max_pool(x, (2, 2), (0, 1)))
    refused(lambda: graph.param((1, 2), "p"))
    refused(lambda: graph.norm(3, gamma=w))
    graph.affine(x, 2.0, name="freed with the graph")


def refused_by_the_plan() -> None:
    graph = _core.Graph()
    graph.output(graph.input(3))
    refused(lambda: _core.Plan(graph, []))
    refused(lambda: _core.Plan(graph, [(1, 0, 1)]))
    refused(lambda: _core.Plan(graph, [(1, 1)]))
    refused(lambda: _core.Plan(graph, [(1, 1, 1)], dtype="int8"))
    refused(lambda: _core.Plan(graph, [(1, 1, 1)], dtype="float16"))
    refused(lambda: _core.Plan(graph, [(1, 1, 1)], input_grads=[True, True]))
    refused(lambda: _core.Plan(graph, [(1, 1, 1)], segments=0))
    refused(lambda: _core.Plan(object(), [(1, 1, 1)]))


def refused_by_forward() -> Callable[[], object]:
    block = yolov9mem.elan1(2, 2, 2, 2)
    params = block.initial_params()
    x = np.ones((1, 4, 4, 2), np.float32)
    wrong = params | {"cv4.conv.weight": np.zeros((9, 9, 1, 1), np.float32)}
    plan = block.plan((1, 4, 4)).core

    def step() -> None:
        refused(lambda: block.forward(x, wrong))
        refused(lambda: plan.forward([x], [], [], [x], None, None))
        refused(lambda: plan.backward(9, [x], [], [], [x], [None], [], None, None))

    return step


class NoFlag:
    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")


def refused_by_a_mask() -> Callable[[], object]:
    plan = yolov9mem.elan1(2, 2, 2, 2).plan((1, 4, 4)).core
    return lambda: refused(lambda: plan.backward_workspace([NoFlag()]))


CASES = {
    "forward and backward": block_step,
    "a plan": lambda: build_a_plan,
    "refused by Graph": lambda: refused_by_the_graph,
    "refused by Plan": lambda: refused_by_the_plan,
    "refused by forward": refused_by_forward,
    "refused by a mask": refused_by_a_mask,
}


@pytest.mark.skipif(
    _core.build_info()["sanitize"], reason="ASan keeps freed memory for a while"
)
@pytest.mark.parametrize("name", CASES)
def test_memory_does_not_grow(name: str) -> None:
    call = CASES[name]()
    if yolov9mem.get_num_threads() > 1:
        yolov9mem.set_num_threads(1)  # a thread's own heap is no leak
    assert grown_bytes(call) < GROWTH


@pytest.mark.parametrize("name", CASES)
def test_reference_counts_do_not_move(name: str) -> None:
    call = CASES[name]()
    watched = [_core.Graph, _core.Plan, np.dtype(np.float32), Ellipsis, (), "conv"]
    call()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    for _ in range(50):
        call()
    gc.collect()
    after = [sys.getrefcount(thing) for thing in watched]
    moved = [b - a for a, b in zip(before, after, strict=True)]
    assert max(moved) < 25, dict(zip(map(repr, watched), moved, strict=True))


def test_arguments_are_only_borrowed() -> None:
    block = yolov9mem.elan1(2, 2, 2, 2)
    params = block.initial_params()
    x = np.ones((1, 4, 4, 2), np.float32)
    counts = [sys.getrefcount(a) for a in (x, *params.values())]
    y = block.forward(x, params)
    block.backward(y)
    assert [sys.getrefcount(a) for a in (x, *params.values())] == counts


def test_a_plan_keeps_its_graph() -> None:
    graph = _core.Graph()
    graph.output(graph.input(2))
    plan = _core.Plan(graph, [(1, 2, 2)])
    with pytest.raises(ValueError, match="nothing can be added"):
        graph.input(3)
    del graph
    gc.collect()
    assert plan.output_shapes == [(1, 2, 2, 2)]


def test_a_plan_that_is_not_made_leaves_its_graph_open() -> None:
    graph = _core.Graph()
    graph.output(graph.input(2))
    for sizes in ([(1, 0, 2)], [(1, 2, 2), (1, 2, 2)]):
        with pytest.raises(ValueError, match="input"):
            _core.Plan(graph, sizes)
    assert graph.input(3) == 1


def test_a_graph_does_not_grow_under_its_plan() -> None:
    """An argument is code of the user's: here one that adds to the graph."""
    graph = _core.Graph()
    graph.output(graph.input(2))

    class Sizes:
        def __iter__(self):
            graph.input(3)
            return iter([(1, 2, 2)])

    with pytest.raises(ValueError, match="a plan is being made from it"):
        _core.Plan(graph, Sizes())  # type: ignore[arg-type]
    assert graph.input(3) == 1


def test_threads_share_a_plan() -> None:
    """The same bits from eight threads at once as from one."""
    block = yolov9mem.elan1(4, 4, 4, 4)
    params = block.initial_params(1)
    x = np.random.default_rng(0).standard_normal((2, 9, 9, 4), np.float32)
    expected = block.forward(x, params)
    results: list[np.ndarray] = []

    def work() -> None:
        mine = yolov9mem.elan1(4, 4, 4, 4)
        own = block.initial_params(1)
        for _ in range(20):
            y = mine.forward(x, own)
            mine.backward(y)
        results.append(y)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for y in results:
        np.testing.assert_array_equal(y, expected)
