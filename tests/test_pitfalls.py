# SPDX-License-Identifier: MIT
"""The 22 traps of memory-saving training, each with its test.

TRAPS says in which file each trap is tested; that those tests exist is checked here. The
tests that belong to no other file stand below. (Trap numbers: batch norm 1-5, autograd
6-12, memory accounting 13-16, trainer contract 17-22.)
"""

from __future__ import annotations

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import yolov9mem.torch as ym
from yolov9 import blocks

HERE = Path(__file__).parent
TRAPS = {
    "1 running statistics move once per forward": "test_pitfalls.test_statistics_move",
    "2 rebuild with the saved statistics": "test_pitfalls.test_backward_moves_nothing",
    "3 modules stay nn.BatchNorm2d": "test_torch_dropin.test_it_returns_the_same",
    "3 momentum may be None": "test_torch_recording.test_momentum_none",
    "4 one value per channel raises": "test_torch_recording.test_one_value_per_channel",
    "5 a NaN batch poisons as eager": "test_pitfalls.test_nan_batch",
    "6 parameters are explicit inputs": "test_torch_ddp.test_distributed",
    "7 frozen layers and the image": "test_torch_autograd.test_frozen_layers",
    "8 autocast": "test_torch_formats.test_autocast_bf16",
    "8 autocast dtype in backward": "test_pitfalls.test_backward_outside_autocast",
    "9 a second backward": "test_torch_autograd.test_a_second_backward",
    "9 double backward": "test_torch_autograd.test_create_graph",
    "9 version counter": "test_torch_autograd.test_a_changed_input_or_weight",
    "10 what views pin is not kept": "test_plan_memory.test_conv_keeps_convolution",
    "11 the same bits twice": "test_pitfalls.test_two_runs_have_the_same_bits",
    "12 layouts": "test_torch_formats.test_layouts_are_read_or_converted",
    "12 odd sizes, batch tail": "test_torch_dropin.test_sizes_and_batches_change",
    "13 memory is the caller's": "test_torch_memory.test_held_bytes_equal_the_plan",
    "14 rebuilt values are freed": "test_plan_memory.test_rules_are_ordered",
    "15 the GIL is released": "test_torch_memory.test_threads_share_plans",
    "16 out of memory": "test_torch_memory.test_out_of_memory_leaves",
    "17 copies and pickles": "test_torch_dropin.test_a_pickle_opens_without_yolov9mem",
    "17 fuse": "test_torch_dropin.test_fuse_of_inner_blocks",
    "18 classes are not swapped": "test_torch_dropin.test_release_restores_the_class",
    "19 accumulation sums": "test_sgd_torch.test_accumulate_sums",
    "19 groups and warm-up": "test_example_train.test_groups_are_biases",
    "20 clip and inf check first": "test_sgd_torch.test_official_loop_with_scaler",
    "21 accumulation is no larger batch": "test_pitfalls.test_accumulation_is_no_larger",
    "22 plans are remembered": "test_torch_dropin.test_eval_between_does_not_plan_again",
}


def test_each_trap_has_a_test() -> None:
    assert {int(name.split()[0]) for name in TRAPS} == set(range(1, 23))
    for trap, test in TRAPS.items():
        file, start = test.split(".")
        tree = ast.parse((HERE / f"{file}.py").read_text())
        names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        assert any(n.startswith(start) for n in names), f"{trap}: {test}"


def pair(keep: str) -> tuple[nn.Module, nn.Module]:
    """The same block, stock and checkpointed."""
    torch.manual_seed(0)
    stock = nn.Sequential(blocks.Conv(3, 8, 3, 2), blocks.RepNCSPELAN4(8, 8, 8, 4, 1))
    stock.train()
    return stock, ym.checkpoint(copy.deepcopy(stock), keep=keep)


def norms(model: nn.Module) -> list[torch.Tensor]:
    return [
        t.clone()
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
        for t in (m.running_mean, m.running_var, m.num_batches_tracked)
    ]


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_statistics_move_without_backward(keep: str) -> None:
    stock, ours = pair(keep)
    for _ in range(3):
        x = torch.randn(2, 3, 16, 16)
        stock(x)
        ours(x)
    for made, expected in zip(norms(ours), norms(stock), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_backward_moves_nothing(keep: str) -> None:
    _, ours = pair(keep)
    y = ours(torch.randn(2, 3, 16, 16))
    before = norms(ours)
    y.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, norms(ours), strict=True))


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_nan_batch_poisons_what_it_poisons_in_stock(keep: str) -> None:
    stock, ours = pair(keep)
    x = torch.randn(2, 3, 16, 16)
    x[0, 0, 3, 3] = float("nan")
    results = []
    for model in (stock, ours):
        y = model(x)
        y.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        results.append(
            [y, *gradients, *(n for n in norms(model) if n.is_floating_point())]
        )
    for expected, made in zip(*results, strict=True):
        assert torch.equal(expected.isnan(), made.isnan())


def test_backward_outside_autocast_keeps_the_forward_dtype() -> None:
    _, ours = pair("conv")
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
    assert y.dtype is torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in ours.parameters())
    assert all(p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_two_runs_have_the_same_bits(keep: str) -> None:
    x = torch.randn(2, 3, 16, 16)
    runs = []
    for _ in range(2):
        _, ours = pair(keep)
        y = ours(x)
        y.square().sum().backward()
        runs.append([y.detach(), *(p.grad for p in ours.parameters()), *norms(ours)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_accumulation_is_no_larger_batch_for_batch_norm() -> None:
    """Said where users look, and so: two micro-batches move the statistics twice."""
    assert "batch norm" in " ".join(ym.AccumulatingSGD.__doc__.lower().split())
    _, ours = pair("conv")
    optimizer = ym.AccumulatingSGD(ours.parameters(), lr=0.1, accumulate=2)
    for _ in range(2):
        ours(torch.randn(2, 3, 16, 16)).sum().backward()
        optimizer.step()
    counts = [
        int(m.num_batches_tracked) for m in ours.modules() if hasattr(m, "momentum")
    ]
    assert set(counts) == {2}
