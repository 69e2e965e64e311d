# SPDX-License-Identifier: MIT
"""Modules that train on the CUDA backend, emulated or on a GPU, as they do in stock."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from gap_models import CHANNELS, Call, Rows
from models_for_tests import (
    Detector,
    Elan,
    Net,
    assert_close,
    assert_same_training,
    backward,
    image,
)
from torch import nn

import yolov9mem.torch as ym
from yolov9mem.torch import devices
from yolov9mem.torch.running import registry


def train(module: torch.nn.Module, device: str) -> list[torch.Tensor]:
    """Output, gradients and running statistics of one step."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 12, 8, generator=random).to(device).requires_grad_()
    y = module(x)
    (y * torch.randn(y.shape, generator=random).to(device)).sum().backward()
    grads = [x.grad, *(p.grad for p in module.parameters())]
    return [t.detach().cpu() for t in (y, *grads, *module.buffers())]


def check_one_graph(device: str, backend: Any, keep: str) -> None:
    torch.manual_seed(0)
    stock = Elan(16, 24, 8).to(device).train()
    ours = copy.deepcopy(stock)
    ym.checkpoint(ours, keep, segments=2, backend=backend)
    for made, truth in zip(train(ours, device), train(stock, device), strict=True):
        torch.testing.assert_close(made, truth, rtol=1e-4, atol=1e-4)


def check_several_graphs(device: str, backend: Any) -> None:
    torch.manual_seed(0)
    stock = Detector().to(device).train()
    ours = ym.checkpoint(copy.deepcopy(stock), "min", strict=False, backend=backend)
    for size in (16, 24):
        assert_same_training(ours, stock, image(size=size).to(device))
    pieces = r"(a piece|\d+ pieces) of stock calls made again"
    detail = rf"keep=min, in 2 stages, {pieces}, CUDA graphs repeated \d+ times"
    assert re.fullmatch(detail, ym.report(ours).rows[0].detail)


def attend(x: torch.Tensor) -> torch.Tensor:
    """Attention of all pixels to all."""
    q = x.flatten(2).transpose(1, 2).unsqueeze(1)
    made = nn.functional.scaled_dot_product_attention(q, q, q)
    return made.squeeze(1).transpose(1, 2).reshape(x.shape)


def check_gaps_that_draw(device: str, backend: Any, mixed: bool) -> None:
    """With a backward outside of autocast, which on a GPU has a thread of its own: they
    are made again with the numbers of forward, and what others draw is theirs."""

    def each() -> nn.Module:
        return nn.Sequential(
            nn.GroupNorm(2, CHANNELS), nn.Dropout(0.3), nn.ELU(), Call(attend)
        )

    stock = Rows(each).to(device)
    half = torch.float16 if device == "cuda" else torch.bfloat16
    (*_, generator) = devices.generators(torch.device(device))
    trained = []
    for keep in ("all", "min"):
        ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False, backend=backend)
        torch.manual_seed(5)
        with torch.autocast(device, half, enabled=mixed):
            out = ours(image().to(device))
        torch.rand(3, device=device)
        state = generator.get_state()
        (out.float().square().mean() * 64).backward()
        assert torch.equal(generator.get_state(), state)
        trained.append([out, *(p.grad for p in ours.parameters())])
        detail = ym.report(ours).rows[0].detail
        if not mixed:  # else a GPU's types decide, which are not the CPU's
            assert ("made again" in detail) == (keep == "min"), detail
    assert_close(trained[1], trained[0], 1e-2)


def check_tensors_on_the_cpu() -> None:
    """Those run in stock PyTorch where backend="cuda" was asked for."""
    stock = Elan(16, 24, 8).train()
    ours = ym.checkpoint(copy.deepcopy(stock), backend="cuda")
    for made, truth in zip(train(ours, "cpu"), train(stock, "cpu"), strict=True):
        torch.testing.assert_close(made, truth, rtol=0, atol=0)


def trained_with_and_without_graphs(
    keep: str, device: str, backend: str
) -> torch.nn.Module:
    """Over steps of two sizes the same bits, whatever was repeated; the one with graphs.

    Until something was: the host's memory, in the emulation, comes back when it likes.
    """
    torch.manual_seed(0)
    plain = Net().to(device)
    graphs = copy.deepcopy(plain)
    options = {"segments": 2, "backend": backend}
    ym.checkpoint(plain, keep, **options, cuda_graphs=False)
    ym.checkpoint(graphs, keep, **options)

    def train_once(module: torch.nn.Module, step: int) -> None:
        backward(module(image(size=16 + 8 * (step % 2)).to(device)), seed=step)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.001 * parameter.grad.sign()

    for step in range(500):
        train_once(graphs, step)
        if step >= 10 and any(plan.core.replays[1] for plan in plans_of(graphs)):
            break
    for again in range(step + 1):
        train_once(plain, again)
    for a, b in zip(plain.state_dict().values(), graphs.state_dict().values()):
        assert torch.equal(a, b)
    for p, q in zip(plain.parameters(), graphs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    return graphs


def plans_of(module: torch.nn.Module) -> list:
    return [
        plan
        for lowered in registry.runner_of(module).lowered.values()
        for graph in lowered.graphs
        for plan in graph.plans.values()
    ]
