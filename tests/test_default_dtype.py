# SPDX-License-Identifier: MIT
"""Under torch.set_default_dtype() numbers that are float32 by their meaning stay so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loss_cases import head, make_case
from mosaic_batches import make_mosaic
from torch import Tensor, nn

from yolov9mem.torch import AccumulatingSGD, DetectionLoss, MosaicDataset
from yolov9mem.torch.loss.boxes import make_anchors
from yolov9mem.torch.optimizer.deferred import deferred
from yolov9mem.torch.optimizer.gpu_step import Scaling
from yolov9mem.torch.optimizer.lazy_scalar import LazyScalar

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}


@pytest.fixture(autouse=True, params=[torch.bfloat16, torch.float64], ids=str)
def another_default(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def test_scalars_and_tables_are_float32() -> None:
    cpu = torch.device("cpu")
    found = Scaling.of(torch.ones((), dtype=torch.float32), cpu).found_inf
    lazy = LazyScalar(lambda: 1 / 3)
    labels = MosaicDataset(make_mosaic({}))[0][1]
    made = (found, lazy, lazy.resolve(), labels, *make_anchors([(2, 3)], [8.0], cpu))
    assert {x.dtype for x in made if x is not None} == {torch.float32}


def step(kind: type, unscales: bool, waits: bool) -> tuple[list[Tensor], float, Any]:
    """Of gradients that C steps, and of one in bfloat16, which it leaves to torch."""
    dtypes = (torch.float32, torch.bfloat16)
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    optimizer, scaler = kind(params, lr=0.1), torch.amp.GradScaler("cpu")
    for p in params:
        scaler.scale(p.square().sum() / 3).backward()
    with deferred(optimizer) if waits else contextlib.nullcontext():
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
    (found,) = scaler._found_inf_per_device(optimizer).values()
    scaler.update()
    return [p.detach() for p in params], scaler.get_scale(), found.dtype


@pytest.mark.parametrize("unscales", [False, True])
def test_a_scaled_step_is_that_of_stock(unscales: bool) -> None:
    theirs, scale, dtype = step(torch.optim.SGD, unscales, False)
    assert dtype == torch.float32
    for waits in (False, True):
        ours, of_ours, found = step(AccumulatingSGD, unscales, waits)
        assert all(map(torch.equal, ours, theirs))
        assert (of_ours, found) == (scale, dtype)


def test_the_loss_is_what_it_is_by_float32() -> None:
    levels, targets = make_case(0)
    made = []
    for dtype in (torch.get_default_dtype(), torch.float32):
        torch.set_default_dtype(dtype)
        leaves = [torch.tensor(z, dtype=torch.float32).requires_grad_() for z in levels]
        total, parts = DetectionLoss(head(3), GAINS)(leaves, torch.tensor(targets))
        total.backward()
        made.append([total, parts, *(x.grad for x in leaves)])
    for ours, usual in zip(*made, strict=True):
        assert ours.dtype == usual.dtype and torch.equal(ours, usual)
