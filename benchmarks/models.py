# SPDX-License-Identifier: MIT
"""The detectors of examples/, by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def make_importable(folder: str) -> None:
    """What "examples" or "tests" hold, by the files' names: an installed package named
    tests would hide the folder."""
    path = str(ROOT / folder)
    if path not in sys.path:
        sys.path.insert(0, path)


def detection_model(name: str, classes: int = 80) -> nn.Module:
    """A detector such as "yolov9-c" in training mode, freshly initialised."""
    make_importable("examples")
    from yolov9.model import DetectionModel

    return DetectionModel(name, classes).train()


def moving_average(model: nn.Module) -> Any:
    """The example's, in the official trainer's two calls a tensor."""
    make_importable("examples")
    from yolov9.ema import ModelEMA

    return ModelEMA(model)


def detection_loss(model: nn.Module) -> Any:
    """loss(output, targets) -> (scalar, parts) with the example's hyper-parameters."""
    make_importable("examples")
    import yaml

    from yolov9.options import HYP_FOLDER
    from yolov9mem.torch import DetectionLoss

    hyp = yaml.safe_load((HYP_FOLDER / "hyp.scratch-high.yaml").read_text())
    return DetectionLoss(model.model[-1], hyp)
