# SPDX-License-Identifier: MIT
"""Box geometry in torch: anchors, distances to the four sides, CIoU.

Boxes are (x1, y1, x2, y2) in pixels or in grid cells unless a name says otherwise.
"""

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
        scales.append(torch.full((height * width, 1), float(stride), device=device))
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

    The trade-off weight of the aspect term carries no gradient, as in the paper.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    aw, ah = ax2 - ax1, ay2 - ay1 + eps
    bw, bh = bx2 - bx1, by2 - by1 + eps
    overlap_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(0)
    overlap_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(0)
    overlap = overlap_w * overlap_h
    iou = overlap / (aw * ah + bw * bh - overlap + eps)
    hull_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    hull_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    diagonal = hull_w**2 + hull_h**2 + eps
    distance = ((bx1 + bx2 - ax1 - ax2) ** 2 + (by1 + by2 - ay1 - ay2) ** 2) / 4
    aspect = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)) ** 2
    with torch.no_grad():
        weight = aspect / (aspect - iou + (1 + eps))
    return iou - (distance / diagonal + aspect * weight)
