# SPDX-License-Identifier: MIT
"""keep="min" is the smallest plan: no budget, no other rule and no older planner beats it.

The figures of `FOUND` are peaks that budgets of an earlier planner had, where its "min"
needed up to 1.49 times as much.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from graph_oracle import plan
from random_graphs import tower

import yolov9mem
from yolov9mem.block import Block

BLOCKS: dict[str, Callable[[], Block]] = {
    "conv": lambda: yolov9mem.conv(40, 32, 3),
    "aconv": lambda: yolov9mem.aconv(16, 64),
    "adown": lambda: yolov9mem.adown(64, 64),
    "sppelan": lambda: yolov9mem.sppelan(64, 128, 32),
    "elan1": lambda: yolov9mem.elan1(32, 32, 32, 16),
    "rep_ncsp_elan4": lambda: yolov9mem.rep_ncsp_elan4(32, 64, 32, 16, 1),
}
SIZES = [(2, 56, 24), (4, 80, 80), (1, 3, 5)]
FOUND = [
    ("conv", (40, 32, 3), (2, 56, 24), 700672),
    ("aconv", (64, 64), (4, 80, 80), 10204160),
    ("sppelan", (256, 256, 128), (4, 20, 20), 7832576),
    ("elan1", (32, 32, 32, 16), (4, 160, 160), 65790720),
    ("rep_ncsp_elan4", (32, 64, 32, 16, 1), (2, 20, 20), 1355712),
    ("rep_ncsp_elan4", (64, 64, 64, 32, 3), (4, 80, 80), 47518464),
]
# Networks: depth, pixels, peak, operations that run again. A faster search finds as much.
FOUND_IN_TOWERS = [
    (4, 32, 218048, 5484544),
    (8, 96, 2550976, 109522944),
    (12, 64, 1337280, 65978368),
]


def learning(block: Block) -> list[dict]:
    """All, no gradient of the input, frozen from the front and as a whole."""
    names = list(block.param_shapes)
    half = names[: len(names) // 2]
    return [{}, {"input_grad": False}, {"frozen": half}, {"frozen": names}]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_no_budget_finds_a_smaller_plan(name: str, size: tuple[int, int, int]) -> None:
    block = BLOCKS[name]()
    for wanted in learning(block):
        low = block.plan(size, keep="min", **wanted)
        least = low.peak_bytes
        convolutions = [row for row in low.core.table() if row["op"] == "conv"]
        assert max(row["rebuilds"] for row in convolutions) <= 1
        for budget in (least - 1, least * 31 // 32, least // 2, 1):
            with pytest.raises(ValueError, match="smallest plan needs") as raised:
                block.plan(size, keep=budget, **wanted)
            assert int(re.findall(r"needs (\d+)", str(raised.value))[0]) == least
        for share in (1.0, 1.01, 1.1, 1.5):
            made = block.plan(size, keep=int(least * share), **wanted)
            assert least <= made.peak_bytes <= least * share
            assert made.core.rerun_flops <= low.core.rerun_flops
        for keep in ("all", "conv"):
            assert block.plan(size, keep=keep, **wanted).peak_bytes >= least


@pytest.mark.parametrize("backend", ["cpu", "ref"])
@pytest.mark.parametrize(("name", "channels", "size", "found"), FOUND)
def test_peaks_that_were_found_before(name, channels, size, found, backend) -> None:
    isa = str(yolov9mem.info()["isa"])
    if (name, backend) == ("conv", "cpu") and not isa.startswith("avx512"):
        pytest.skip(f"this figure has the workspace of AVX-512, this machine {isa}'s")
    block = getattr(yolov9mem, name)(*channels)
    assert block.plan(size, keep="min", backend=backend).peak_bytes <= found


@pytest.mark.parametrize(("depth", "px", "peak", "flops"), FOUND_IN_TOWERS)
def test_plans_of_networks_that_were_found_before(depth, px, peak, flops) -> None:
    made = plan(tower(depth, px)[0], keep="min", backend="ref")
    assert (made.peak_bytes, made.rerun_flops) <= (peak, flops)


def test_fewer_gradients_need_no_more() -> None:
    """The search itself, not the gradients, had made this one 25 % larger."""
    block = yolov9mem.aconv(16, 64)
    size = (4, 76, 68)
    whole = block.plan(size, keep="min")
    assert block.plan(size, keep="min", input_grad=False).peak_bytes <= whole.peak_bytes


def test_no_budget_is_smaller_in_a_network() -> None:
    """Of more values than a block has: those are not tried one by one."""
    t, _ = tower(8, 96)
    low = plan(t, keep="min")
    assert len(low.table()) > 160
    for share in (0.7, 0.9, 0.97, 1 - 1e-6):
        budget = int(low.peak_bytes * share)
        with pytest.raises(ValueError, match=f"needs {low.peak_bytes}"):
            plan(t, keep="budget", budget=budget)
    same = plan(t, keep="budget", budget=low.peak_bytes)
    assert same.rerun_flops == low.rerun_flops
    assert same.peak_bytes == low.peak_bytes
