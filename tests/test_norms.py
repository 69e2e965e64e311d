# SPDX-License-Identifier: MIT
"""Batch norm's statistics where their numbers are awkward, against float64 and stock."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import brick_case
from kernel_oracle import DTYPES, ROUNDING, draw, error, ours, stock

BACKENDS = pytest.mark.parametrize("backend", ["ref", "cpu"])


@BACKENDS
def test_statistics_survive_a_mean_far_from_zero(backend: str) -> None:
    case = brick_case((4, 24, 16, 16), "identity")
    graph, arrays = draw(case, torch.float32)
    arrays.inputs[0] += 3000.0
    exact = stock(case, arrays, torch.float64)
    mine = ours(case, graph, arrays, backend, torch.float32)
    usual = stock(case, arrays, torch.float32)
    for i in (0, -1):  # the output, the running variance
        allowed = 2 * max(error(usual[i], exact[i]), ROUNDING["float32"])
        assert error(mine[i], exact[i]) <= allowed


@pytest.mark.parametrize("shape", [(8, 64, 10, 10), (2, 512, 1, 1), (4, 3, 200, 200)])
@pytest.mark.parametrize("dtype", DTYPES)
@BACKENDS
def test_running_mean_of_values_around_zero(
    backend: str, dtype: str, shape: tuple[int, ...]
) -> None:
    """A fresh one becomes momentum's share of a mean that is far smaller than the values
    it is made of."""
    case = brick_case(shape, "identity")
    graph, arrays = draw(case, DTYPES[dtype])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    arrays.inputs = [x.to(DTYPES[dtype]).float()]
    arrays.running[0][0].zero_()
    exact = stock(case, arrays, torch.float64)[-2]
    usual = stock(case, arrays, DTYPES[dtype])[-2]
    mine = ours(case, graph, arrays, backend, DTYPES[dtype])[-2]
    assert error(mine, exact) <= 2 * max(
        error(usual, exact), error(exact.float(), exact)
    )


@BACKENDS
def test_momentum_is_a_double(backend: str) -> None:
    """Of means without an error the running ones are the nearest floats."""
    case = brick_case((2, 64, 2, 2), "identity")
    graph, arrays = draw(case, torch.float32)
    means = torch.arange(1.0, 65.0).view(64, 1, 1)
    arrays.inputs = [means.expand(2, 64, 2, 2).contiguous()]
    arrays.running[0][0].zero_()
    exact = stock(case, arrays, torch.float64)[-2]
    mine = ours(case, graph, arrays, backend, torch.float32)[-2]
    assert torch.equal(mine, exact.float())


@pytest.mark.parametrize("shape", [(8, 64, 20, 20), (16, 32, 10, 10)])
@BACKENDS
def test_gradients_of_values_below_eps(backend: str, shape: tuple[int, ...]) -> None:
    """Where eps keeps the normalised values small too, sums over the pixels are what
    rounding is seen in: beside stock's where channels lie last, its most exact ones."""
    case = brick_case(shape, "identity")
    graph, arrays = draw(case, torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 1e-5
    arrays.inputs = [x.contiguous(memory_format=torch.channels_last)]
    exact = stock(case, arrays, torch.float64)
    usual = stock(case, arrays, torch.float32)
    mine = ours(case, graph, arrays, backend, torch.float32)
    for made, b, truth in zip(mine, usual, exact, strict=True):
        assert error(made, truth) <= 2 * max(
            error(b, truth), error(truth.float(), truth)
        )
