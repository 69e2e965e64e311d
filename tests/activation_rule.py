# SPDX-License-Identifier: MIT
"""The rule of exactness for activations, range by range: what an error of the whole
hides is seen around 0, around corners and in the tails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from kernel_calls import ACTIVATIONS
from torch import Tensor

# The last ones: where results, or the exponentials that they are made of, fade away.
RANGES = [(-1e-6, 1e-6), (-1e-3, 1e-3), (-1.0, 1.0), (-8.0, 8.0), (-100.0, 100.0)]
RANGES += [(-0.5, -0.25), (-3.1, -2.9), (2.9, 3.1), (8.0, 20.0), (-20.0, -10.0)]
RANGES += [(-14.0, -5.0), (-89.0, -86.0), (-104.0, -80.0)]
SHAPE = (1, 16, 64, 32)


def precise(kind: str, z: Tensor) -> Tensor:
    """Of float64, also where torch's own formulas cancel: GELU of large negative z."""
    if kind == "gelu":
        return z * torch.special.erfc(z * -(0.5**0.5)) / 2
    if kind == "gelu_tanh":
        return z * torch.sigmoid((8 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))
    return ACTIVATIONS[kind](z)


def value_and_derivative(activation: Callable[[Tensor], Tensor], z: Tensor) -> list:
    z = z.clone().requires_grad_()
    y = activation(z)
    y.backward(torch.ones_like(y))
    return [y.detach(), z.grad]


def check_activation(
    kind: str,
    dtype: torch.dtype,
    run: Callable[[Tensor], Sequence[Tensor]],
    device: torch.device | str = "cpu",
) -> None:
    """Mean and largest error over each range are at most twice those of stock, or those
    of the exact number rounded to dtype.

    Args:
        run: value and derivative of z, which has SHAPE and dtype.
        device: of stock.
    """
    part = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)).double()
    for low, high in RANGES:
        z = (low + (high - low) * part).to(dtype)
        exact = value_and_derivative(lambda z: precise(kind, z), z.double())
        usual = value_and_derivative(ACTIVATIONS[kind], z.to(device))
        for made, b, truth in zip(run(z), usual, exact, strict=True):
            error, *allowed = (
                (t.cpu().double() - truth).abs() for t in (made, b, truth.to(dtype))
            )
            for size in (torch.mean, torch.max):
                limit = 2 * max(size(e) for e in allowed)
                assert size(error) <= limit, f"{size.__name__} of [{low}, {high}]"
