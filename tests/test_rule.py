# SPDX-License-Identifier: MIT
"""The rule of exactness, layer type by layer type and on whole detectors."""

from __future__ import annotations

import pytest
import rule
import torch
from rule_layers import LAYERS
from torch import nn

from yolov9.model import DetectionModel


@pytest.mark.parametrize("name", LAYERS)
def test_layer_types(name: str) -> None:
    rule.check(LAYERS[name], [(2, 8, 13, 17)])


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_norm_of_few_channels(channels: int) -> None:
    """Many pixels of a channel are summed side by side, and then with each other."""
    norm = lambda: nn.Sequential(nn.BatchNorm2d(channels, momentum=1.0))  # noqa: E731
    rule.check(norm, [(2, channels, 20, 20)], keeps=("conv",), seeds=range(15))


def test_whole_detector() -> None:
    rule.check(lambda: DetectionModel("yolov9-t", nc=3), [(2, 3, 64, 96)])


@pytest.mark.parametrize(
    "name",
    ["yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e"]
    + ["gelan-t", "gelan-s", "gelan-m", "gelan-c", "gelan-e"],
)
def test_other_detectors(name: str) -> None:
    """One seed, float32; `python -m benchmarks cpu --only rule` runs five and bfloat16."""
    rule.check(
        lambda: DetectionModel(name, nc=3),
        [(2, 3, 64, 64)],
        keeps=("conv", "min"),
        dtypes=(torch.float32,),
        seeds=range(1),
    )


def test_loss_on_one_head_only() -> None:
    rule.check(
        lambda: DetectionModel("yolov9-t", nc=3),
        [(2, 3, 64, 64)],
        keeps=("conv", "min"),
        dtypes=(torch.float32,),
        seeds=range(3),
        heads=3,
    )
