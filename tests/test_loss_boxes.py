# SPDX-License-Identifier: MIT
"""Boxes, distances and CIoU of the loss, against formulas that share nothing with them."""

import numpy as np
import per_image_loss
import pytest
import torch
from loss_by_loops import slow_ciou

from yolov9mem.torch.loss.boxes import (
    boxes_to_distances,
    complete_iou,
    distances_to_boxes,
    make_anchors,
)


def test_geometry_of_the_cells() -> None:
    """Distances that no bin has, too: on the other side of a side, or too far."""
    sizes, random = [(3, 5), (2, 1), (1, 2)], torch.Generator().manual_seed(0)
    found = make_anchors(sizes, per_image_loss.STRIDES, torch.device("cpu"))
    exact = per_image_loss.anchors(sizes, torch.float32)
    assert all(map(torch.equal, found, exact))
    points = torch.rand(50, 2, generator=random, dtype=torch.float64) * 40
    boxes = torch.rand(50, 4, generator=random, dtype=torch.float64) * 40
    distances = boxes_to_distances(boxes, points, 15)
    assert torch.equal(distances, per_image_loss.encode(boxes, points))
    assert distances.min() == 0 and distances.max() == 14.99
    decoded = distances_to_boxes(distances, points)
    assert torch.equal(decoded, per_image_loss.decode(distances, points))


def test_complete_iou_against_loops() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 10, (30, 2, 2))
    boxes = np.concatenate((low, low + rng.uniform(0.5, 8, low.shape)), 2)
    found = complete_iou(*torch.tensor(boxes).unbind(1)).numpy()
    np.testing.assert_allclose(found, [slow_ciou(a, b) for a, b in boxes], rtol=1e-12)


def test_complete_iou_gradient_keeps_the_aspect_weight_constant() -> None:
    a = torch.tensor([1.0, 2, 5, 9], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([2.0, 1, 7, 6], dtype=torch.float64)
    complete_iou(a, b).backward()
    x, y = a.detach().numpy(), b.numpy()
    aspect = slow_ciou(x, y, weight=0) - slow_ciou(x, y, weight=1)
    weight = (slow_ciou(x, y, weight=0) - slow_ciou(x, y)) / aspect
    for i in range(4):
        step = np.eye(4)[i] * 1e-6
        slope = slow_ciou(x + step, y, weight) - slow_ciou(x - step, y, weight)
        assert a.grad[i].item() == pytest.approx(slope / 2e-6, rel=1e-6)
