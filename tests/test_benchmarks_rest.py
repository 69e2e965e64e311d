# SPDX-License-Identifier: MIT
"""Exactness, losses and determinism among the GPU benchmarks, and verdicts that need two
rows; as in test_benchmarks_gpu.py, figures are invented.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import rule
import torch
from invented_sessions import invent_step

from benchmarks import bench_losses, render
from benchmarks.exactness import ROUNDINGS, holds
from benchmarks.gpu import determinism, losses, rest, suites, table
from benchmarks.gpu import rule as rule_task
from benchmarks.gpu.names import COMPILED, CONV, EAGER, GRAPHS, MIN, MIN_GRAPHS


def done(tasks: dict, key: str, result: dict) -> None:
    tasks[key] = {"stage": "rest", "outcome": "done", "result": result}


def losses_of(mine: dict, stock: float | None = 1e-5) -> dict:
    """An invented result of task losses; stock: its gradient error, None: no row."""
    rows = [{"implementation": "torch channels_last", "gradient_error": 3e-5}]
    rows += [{"implementation": CONV, "loss_max": 1e-6, "images_differ": 0} | mine]
    if stock is not None:
        rows.insert(0, {"implementation": EAGER, "gradient_error": stock})
    rows = [row | {"case": "step by step", "iterations": 50} for row in rows]
    free = {"case": "running freely, last 10, median of 3 seeds", "iterations": 50}
    free |= {"implementation": CONV, "loss_median": 0.9, "loss_max": 0.9}
    return {"case": "yolov9-t, 160 px, batch 4, float32", "rows": [*rows, free]}


@pytest.mark.parametrize(
    "mine, stock, verdict",
    [
        ({"gradient_error": 1.9e-5}, 1e-5, "met"),
        ({"gradient_error": 2.1e-5}, 1e-5, "not met: gradients"),
        ({"gradient_error": 0.9 * ROUNDINGS}, 0.0, "met"),
        ({"gradient_error": 1.1 * ROUNDINGS}, 0.0, "not met: gradients"),
        ({"gradient_error": 1e-6, "loss_max": 6e-4}, 1e-5, "not met: loss 5e-04"),
        ({"gradient_error": 1e-6, "images_differ": 1}, 1e-5, "not met: equal images"),
        ({"gradient_error": 1e-6}, None, "not met: no stock row"),
    ],
)
def test_losses_have_targets_step_by_step_only(mine, stock, verdict) -> None:
    tasks: dict = {}
    done(tasks, "losses", losses_of(mine, stock))
    suite = suites.from_tasks(tasks)["losses"]
    *_, ours, free = suite["rows"]
    assert ours["verdict"] == verdict
    assert "verdict" not in free
    shown = render.table(suite)
    assert "beside stock's, yolov9-t, 160 px, batch 4, float32" in shown
    assert "| running freely, last 10, median of 3 seeds | yolov9mem conv |" in shown


def test_equal_bits_are_told_kind_by_kind() -> None:
    row = {"case": "yolov9-s", "steps": 3, "outputs_differ": 0, "weights_differ": 0}
    rows = [
        row | {"implementation": CONV, "state_differ": 0},
        row | {"implementation": MIN, "outputs_differ": 4, "state_differ": 1},
    ]
    tasks: dict = {}
    done(tasks, "determinism", {"rows": rows})
    suite = suites.from_tasks(tasks)["determinism"]
    found = [row["verdict"] for row in suite["rows"]]
    assert found == ["met", "not met: outputs, state"]
    assert "| yolov9-s | yolov9mem min | 3 | 4 | 0 | 1 | not met" in render.table(suite)


@pytest.mark.parametrize("outcome", [None, "out of memory"])
def test_without_its_partner_s_row_ours_meets_nothing(outcome: str | None) -> None:
    tasks: dict = {}
    invent_step(tasks, CONV, 64, 8.0, 160)
    invent_step(tasks, CONV, 8, 1.0, 160)  # nothing is asked of it beside stock
    invent_step(tasks, CONV, 32, 4.0, 160)
    free = tasks[table.key(table.configuration(CONV, 32))]
    free["request"] = free["request"] | {"deterministic": False}
    if outcome is not None:
        gone = {"stage": "step", "outcome": outcome, "reason": "none"}
        for way, batch, deterministic in ((EAGER, 64, True), (COMPILED, 32, False)):
            request = table.configuration(way, batch, deterministic=deterministic)
            tasks[table.key(request)] = gone | {"request": request}
    rows = suites.from_tasks(tasks)["step"]["rows"]
    found = {r["case"]: r["verdict"] for r in rows if r["implementation"] == CONV}
    assert found == {
        "batch 8": "met",
        "batch 64": "not met: no stock row",
        "batch 32, PyTorch's own settings (not deterministic)": (
            "not met: no torch.compile row"
        ),
    }


def test_rows_with_another_allocator_have_names_and_no_partner() -> None:
    tasks: dict = {}
    invent_step(tasks, EAGER, 16, 8.0, 100)
    invent_step(tasks, MIN, 16, 3.0, 90)  # it would not meet what that one does
    slow = tasks.pop(table.key(table.configuration(MIN, 16)))
    invent_step(tasks, MIN, 16, 1.5, 110)
    slow["request"] = slow["request"] | {"fixed_segments": True}
    tasks[table.key(slow["request"])] = slow
    rows = suites.from_tasks(tasks)["step"]["rows"]
    assert [(r["case"], r.get("verdict")) for r in rows] == [
        ("batch 16", None),
        ("batch 16", "met"),
        ("batch 16, torch's own segments", "met"),
    ]


def one_by_one(result: rule.Result, exact: rule.Result) -> list[float]:
    """The errors with Python's own sums."""
    found = []
    for name in ("outputs", "gradients", "state"):
        pairs = list(zip(getattr(result, name), getattr(exact, name), strict=True))
        wrong = sum(float((t.double() - e).square().sum()) for t, e in pairs)
        size = sum(float(e.square().sum()) for _, e in pairs)
        found.append((wrong / max(size, 1e-300)) ** 0.5)
    return found


def test_errors_of_the_rule() -> None:
    generator = torch.Generator().manual_seed(0)

    def result(dtype: torch.dtype, dense: bool) -> rule.Result:
        parts = [
            [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
            for shapes in ([(2, 3, 5, 4), (7,)], [(3, 3), (1,)], [(4,), (4,)])
        ]
        if not dense:
            parts[0][0] = parts[0][0].contiguous(memory_format=torch.channels_last)
        return rule.Result(*parts, [])

    exact = result(torch.float64, True)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        made = result(dtype, False)
        assert rule.errors(made, exact) == pytest.approx(
            one_by_one(made, exact), rel=1e-12
        )
    nothing = rule.Result([], [], [], [])
    assert rule.errors(nothing, nothing) == one_by_one(nothing, nothing)


def test_the_rule_is_twice_stock_s_error_everywhere() -> None:
    """And exactly that on the CPU, whose errors are never (almost) none."""
    assert holds(2e-8, 1e-8) and not holds(2.01e-8, 1e-8)
    assert holds(2.01e-8, 1e-8, ROUNDINGS)
    key = ("conv", torch.float32)
    runs = [{key: ([e, e, e], [1.0, 2.0, 3.0])} for e in (1.0, 9.0, 4.0)]
    others = {("min", torch.float32): ([7.0] * 3, [8.0] * 3)}  # of the first seed alone
    found = rule.medians([runs[0] | others, *runs[1:]])
    assert found["min", torch.float32, "outputs"] == (7, 8)
    assert [found[(*key, kind)] for kind in rule.KINDS] == [(4, 1), (4, 2), (4, 3)]


def test_the_largest_detectors_have_fewer_seeds_and_those_of_maxima_more() -> None:
    found: dict[int, set[tuple[str, torch.dtype]]] = {}
    for name, dtype in itertools.product(rest.DETECTORS, rule_task.dtypes("cpu")):
        count = rule_task.seeds(name, dtype, quick=False)
        found.setdefault(count, set()).add((name, dtype))
    assert {*found} == {5, 9, 49}
    assert {name for name, _ in found[5]} == {"yolov9-e", "gelan-e"}
    assert found[49] == {(n, torch.float32) for n in ("yolov9-c", "gelan-c")}
    assert rule_task.seeds("yolov9-c", torch.float32, quick=True) == 1


def test_one_bit_is_found() -> None:
    zeros = [torch.zeros(()), torch.zeros(2, 3, dtype=torch.float16)]
    others = [x.clone() for x in zeros]
    others[1][1, 2] = -0.0
    assert determinism.bytes_that_differ(zeros, [x.clone() for x in zeros]) == 0
    assert determinism.bytes_that_differ(zeros, others) == 1


def test_training_twice_is_rehearsed_on_the_cpu() -> None:
    found = determinism.run({"device": "cpu", "quick": True})["rows"]
    assert [row["implementation"] for row in found] == [GRAPHS, MIN_GRAPHS]
    assert all(row[f"{kind}_differ"] == 0 for row in found for kind in suites.SAME_BITS)


@pytest.fixture
def tf32_as_it_was() -> Iterator[None]:
    parts = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [part.allow_tf32 for part in parts]
    yield
    for part, allowed in zip(parts, before):
        part.allow_tf32 = allowed


@pytest.mark.usefixtures("tf32_as_it_was")
def test_losses_are_rehearsed_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(bench_losses, "sizes", lambda quick: (64, 2, 2))
    found = losses.run({"device": "cpu", "quick": True})["rows"]
    assert [row["case"] for row in found] == [
        *["step by step"] * 3,
        *["running freely, last 1"] * 2,
    ]
    assert found[2]["images_differ"] == 0 and found[2]["loss_max"] <= 5e-4


def test_running_freely_begins_no_seed_that_would_end_late(monkeypatch) -> None:
    asked: list[int] = []

    def drift(batches, case, seed: int) -> dict[str, list[float]]:
        asked.append(seed)
        return {CONV: [0.1 * (seed + 1), 0.5, 0.1 * (seed + 1)]}

    monkeypatch.setattr(bench_losses, "drift", drift)
    case = bench_losses.Case(50)
    (row,) = bench_losses.running_freely([], case, 3, 60.0)
    assert asked == [0, 1, 2] and row["loss_median"] == pytest.approx(0.2)
    assert row["loss_max"] == 0.5
    assert row["case"] == "running freely, last 3, median of 3 seeds"
    (row,) = bench_losses.running_freely([], case, 3, 0.0)
    assert asked == [0, 1, 2, 0] and "seeds" not in row["case"]
