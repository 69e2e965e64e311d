# SPDX-License-Identifier: MIT
"""Every layer type that the rule of exactness is tried on, see rule.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolov9 import blocks


class Op(nn.Module):
    """One call between two convolutions, so that it has a gradient to pass on."""

    def __init__(self, call, c: int = 8) -> None:
        super().__init__()
        self.first, self.last = blocks.Conv(c, c, 3), nn.Conv2d(c, c, 1)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self.first(x))
        return y if y.shape[1] != self.last.in_channels else self.last(y)


class Shared(nn.Module):
    """One convolution and one batch norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = blocks.Conv(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def functional(name: str):
    f = nn.functional
    return {
        "relu": f.relu,
        "leaky_relu": lambda x: f.leaky_relu(x, 0.1),
        "hardtanh": lambda x: f.hardtanh(x, 0.125, 0.75),
        "relu6": f.relu6,
        "hardswish": f.hardswish,
        "mish": f.mish,
        "sigmoid": torch.sigmoid,
        "hardsigmoid": f.hardsigmoid,
        "gelu": f.gelu,
        "gelu tanh": lambda x: f.gelu(x, approximate="tanh"),
        "max_pool": lambda x: f.max_pool2d(x, 5, 1, 2),
        "avg_pool": lambda x: f.avg_pool2d(x, 2, 1, 0, False, True),
        "upsample": lambda x: f.interpolate(x, scale_factor=2, mode="nearest"),
        "bilinear": lambda x: f.interpolate(x, scale_factor=2, mode="bilinear"),
        "chunk": lambda x: torch.cat(list(x.chunk(2, 1))[::-1], 1),
    }[name]


LAYERS = {
    "conv": lambda: blocks.Conv(8, 12, 3, 2),
    "conv bias groups": lambda: nn.Conv2d(8, 12, 3, 1, 2, 2, 4),
    "conv no activation": lambda: blocks.Conv(8, 12, 1, act=False),
    "rep conv": lambda: blocks.RepConvN(8, 8),
    "bottleneck": lambda: blocks.RepNBottleneck(8, 8),
    "csp": lambda: blocks.RepNCSP(8, 8, 2),
    "elan": lambda: blocks.RepNCSPELAN4(8, 16, 16, 8, 1),
    "elan1": lambda: blocks.ELAN1(8, 16, 16, 8),
    "sppelan": lambda: blocks.SPPELAN(8, 16, 8),
    "aconv": lambda: blocks.AConv(8, 16),
    "adown": lambda: blocks.ADown(8, 16),
    "shared": Shared,
} | {
    name: (lambda name=name: Op(functional(name)))
    for name in (
        *("relu", "leaky_relu", "hardtanh", "relu6", "hardswish", "mish"),
        *("sigmoid", "hardsigmoid", "gelu", "gelu tanh"),
        *("max_pool", "avg_pool", "upsample", "bilinear", "chunk"),
    )
}
