# SPDX-License-Identifier: MIT
"""yolov9mem: train YOLOv9 in a fraction of the memory.

Here is what works on NumPy arrays: `mosaic` and `Mosaic` (augmentation), `sgd_step`
(the optimizer), and the builders of blocks with `forward` and `backward`. What works on
a PyTorch model is `yolov9mem.torch`; nothing here imports PyTorch.
"""

import importlib
from types import ModuleType

from yolov9mem._core import get_num_threads, set_num_threads
from yolov9mem._errors import BackendError
from yolov9mem._info import __version__, info
from yolov9mem.augment import Mosaic
from yolov9mem.block import Block, BlockPlan
from yolov9mem.blocks import aconv, adown, conv, elan1, rep_ncsp_elan4, sppelan
from yolov9mem.mosaic import mosaic
from yolov9mem.sgd import SGDGroup, sgd_step

__all__ = [
    "BackendError",
    "Block",
    "BlockPlan",
    "Mosaic",
    "SGDGroup",
    "__version__",
    "aconv",
    "adown",
    "conv",
    "elan1",
    "get_num_threads",
    "info",
    "mosaic",
    "rep_ncsp_elan4",
    "set_num_threads",
    "sgd_step",
    "sppelan",
]


def __getattr__(name: str) -> ModuleType:
    """`yolov9mem.torch` without an import of its own; PyTorch is loaded then."""
    if name == "torch":
        return importlib.import_module("yolov9mem.torch")
    raise AttributeError(f"module 'yolov9mem' has no attribute {name!r}")
