# SPDX-License-Identifier: MIT
"""The rule of exactness on a GPU: at most twice stock PyTorch's distance from float64.

The same layer types as in test_rule.py and two detectors, with stock and ours on the GPU
and float64 on the CPU. All ten detectors are in `python -m benchmarks gpu --stage rest`.
"""

from __future__ import annotations

from collections.abc import Callable

import gpu_rule
import pytest
from gpu_machine import (  # noqa: F401
    DEVICE,
    NAMES,
    REHEARSES,
    dtypes,
    exact_float32,
    needs_gpu,
    rehearsal,
)
from rule_layers import LAYERS
from torch import nn

from benchmarks.exactness import ROUNDINGS, holds
from yolov9.model import DetectionModel

pytestmark = needs_gpu
# Of three seeds the median may be one where a max pool picks another of two equals.
SIZE, SEEDS = 64 if REHEARSES else 128, 5
# A rehearsal tries this file; test_rule.py and test_cuda_*.py try what it measures.
KEEPS = ("min",) if REHEARSES else ("all", "conv", "min")


def check(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    name: str,
    seeds: int = SEEDS,
    keeps: tuple[str, ...] = KEEPS,
) -> None:
    place = gpu_rule.Place(DEVICE, backend=name)
    found = gpu_rule.medians(
        make, shape, place, keeps=keeps, seeds=dict.fromkeys(dtypes(), seeds)
    )
    for key, (ours, stock) in found.items():
        assert holds(ours, stock, ROUNDINGS), (key, ours, stock)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_types(layer: str, name: str) -> None:
    keeps = tuple(k for k in KEEPS if k != "all" or "plain" not in name)
    check(LAYERS[layer], (2, 8, 13, 17), name, keeps=keeps)


@pytest.mark.parametrize("model", ["yolov9-t", "gelan-t"])
def test_whole_detector(model: str) -> None:
    seeds = 1 if REHEARSES else SEEDS
    check(lambda: DetectionModel(model, nc=3), (2, 3, SIZE, SIZE), NAMES[0], seeds)
