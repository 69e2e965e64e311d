# SPDX-License-Identifier: MIT
"""The detection loss of YOLOv9 without float32 copies of the network's output.

detection   DetectionLoss: classes, boxes and their distributions, of any number of branches
cells       what it reads of the output, and the output's gradient
assigner    which cells have which object (TOOD)
boxes       geometry of boxes and anchors
"""

from .detection import DetectionLoss

__all__ = ["DetectionLoss"]
