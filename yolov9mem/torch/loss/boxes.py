# SPDX-License-Identifier: MIT
"""Box geometry in torch: anchors, distances to the four sides, CIoU.

Boxes are (x1, y1, x2, y2) in pixels or in grid cells unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def make_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cell centres (A, 2) in cells and strides (A, 1) in pixels, level by level.

    `sizes` are the levels' (H, W).
    """
    points, scales = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
        y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), -1).view(-1, 2))
        scales.append(points[-1].new_full((height * width, 1), float(stride)))
    return torch.cat(points), torch.cat(scales)


def distances_to_boxes(distances: Tensor, points: Tensor) -> Tensor:
    """(..., 4) distances left, top, right, bottom of (..., 2) points -> boxes."""
    left_top, right_bottom = distances.chunk(2, -1)
    return torch.cat((points - left_top, points + right_bottom), -1)


def boxes_to_distances(boxes: Tensor, points: Tensor, limit: float) -> Tensor:
    """Inverse of distances_to_boxes, clamped to [0, limit - 0.01]."""
    low, high = boxes.chunk(2, -1)
    return torch.cat((points - low, high - points), -1).clamp(0, limit - 0.01)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def complete_iou(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """CIoU (arXiv:1911.08287) of boxes (..., 4) that broadcast; shape (...).

    The trade-off weight of the aspect term carries no gradient, as in the paper. In
    parts, so that no more than six tensors of that shape live without gradients.
    """
    of_a, of_b = a.unbind(-1), b.unbind(-1)
    iou = _plain_iou(of_a, of_b, eps)
    apart = _centres_apart(of_a, of_b, eps)
    aspect = _aspects_apart(of_a, of_b, eps)
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (apart + aspect * weight)


Sides = Sequence[Tensor]  # x1, y1, x2, y2 of boxes, each (...)


def _plain_iou(a: Sides, b: Sides, eps: float) -> Tensor:
    overlap = _common(a, b, 0) * _common(a, b, 1)
    area_a = (a[2] - a[0]) * (a[3] - a[1] + eps)
    area_b = (b[2] - b[0]) * (b[3] - b[1] + eps)
    return overlap / (area_a + area_b - overlap + eps)


def _common(a: Sides, b: Sides, axis: int) -> Tensor:
    """Length of the boxes' intersection along an axis."""
    high = torch.minimum(a[axis + 2], b[axis + 2])
    return (high - torch.maximum(a[axis], b[axis])).clamp(0)


def _centres_apart(a: Sides, b: Sides, eps: float) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the hull."""
    diagonal = _hull(a, b, 0) ** 2 + _hull(a, b, 1) ** 2 + eps
    x = (b[0] + b[2] - a[0] - a[2]) ** 2
    return (x + (b[1] + b[3] - a[1] - a[3]) ** 2) / 4 / diagonal


def _hull(a: Sides, b: Sides, axis: int) -> Tensor:
    """Length of the boxes' hull along an axis."""
    high = torch.maximum(a[axis + 2], b[axis + 2])
    return high - torch.minimum(a[axis], b[axis])


def _aspects_apart(a: Sides, b: Sides, eps: float) -> Tensor:
    ratio_a = (a[2] - a[0]) / (a[3] - a[1] + eps)
    ratio_b = (b[2] - b[0]) / (b[3] - b[1] + eps)
    return (4 / math.pi**2) * (torch.atan(ratio_b) - torch.atan(ratio_a)) ** 2
