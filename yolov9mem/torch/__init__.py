# SPDX-License-Identifier: MIT
"""yolov9mem for PyTorch: train in a fraction of the memory.

import yolov9mem.torch
yolov9mem.torch.checkpoint(model)          # keep="conv": no convolution runs twice
...                                        # train as before
print(yolov9mem.torch.report(model))       # what was swapped, and the bytes

Which file does what:

recording/         a module's forward, written down once
running/           the recording as graphs of the C core, in every training step
loss/              the official detection loss, DetectionLoss
optimizer/         AccumulatingSGD and the moving average
api, report        checkpoint(), release() and report()
batches            largest_batch(): what fits a GPU, by measured steps
blocks             the blocks of the YOLOv9 family, checkpointed from the start
dataset            samples of yolov9mem.augment.Mosaic for a DataLoader
mosaic_batch       the same, rendered on the GPU, a batch in one launch
devices            where tensors lie, and the CUDA extension
checks             rules for what callers give
processes          batch norm statistics of several, for SyncBatchNorm
layout, versions   which tensors C can walk through; telling autograd what it wrote
"""

from yolov9mem.launch import patch

from .api import checkpoint, release
from .batches import LargestBatch, largest_batch
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
from .loss import DetectionLoss
from .mosaic_batch import MosaicBatch
from .optimizer.deferred import deferred
from .optimizer.ema import ModelEMA
from .optimizer.sgd import AccumulatingSGD
from .recording.ir import CannotLower
from .report import Report, report
from .running.arenas import use_expandable_segments
from .running.conditions import StockForwardWarning

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
    "DetectionLoss",
    "LargestBatch",
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
    "largest_batch",
    "patch",
    "release",
    "report",
    "uncheckpoint",
    "use_expandable_segments",
]
