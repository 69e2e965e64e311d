# SPDX-License-Identifier: MIT
"""yolov9mem for PyTorch: train in a fraction of the memory.

import yolov9mem.torch
yolov9mem.torch.checkpoint(model)          # keep="conv": no convolution runs twice
...                                        # train as before
print(yolov9mem.torch.report(model))       # what was swapped, and the bytes
"""

from yolov9mem.launch import patch

from .api import checkpoint, release
from .arenas import use_expandable_segments
from .blocks import (
    ELAN1,
    SP,
    SPPELAN,
    AConv,
    ADown,
    CBFuse,
    CBLinear,
    Concat,
    Conv,
    RepConvN,
    RepNBottleneck,
    RepNCSP,
    RepNCSPELAN4,
    Silence,
)
from .dataset import MosaicBatchDataset, MosaicDataset
from .deferred import deferred
from .ema import ModelEMA
from .entry import StockForwardWarning
from .ir import CannotLower
from .mosaic_batch import MosaicBatch
from .report import Report, report
from .sgd import AccumulatingSGD

uncheckpoint = release

__all__ = [
    "ELAN1",
    "SP",
    "SPPELAN",
    "AConv",
    "ADown",
    "AccumulatingSGD",
    "CBFuse",
    "CBLinear",
    "CannotLower",
    "Concat",
    "Conv",
    "ModelEMA",
    "MosaicBatch",
    "MosaicBatchDataset",
    "MosaicDataset",
    "RepConvN",
    "RepNBottleneck",
    "RepNCSP",
    "RepNCSPELAN4",
    "Report",
    "Silence",
    "StockForwardWarning",
    "checkpoint",
    "deferred",
    "patch",
    "release",
    "report",
    "uncheckpoint",
    "use_expandable_segments",
]
