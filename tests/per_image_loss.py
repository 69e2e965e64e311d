# SPDX-License-Identifier: MIT
"""The assigner and the loss of the example one image at a time, as an oracle.

Boolean indexing, no padding and no groups: what tests/test_example_loss.py compares
the example's assignment with, bit for bit.
"""

import torch
import torch.nn.functional as F

from yolov9mem.torch.loss.boxes import (
    boxes_to_distances,
    complete_iou,
    distances_to_boxes,
    make_anchors,
)

REG_MAX = 16
STRIDES = [8.0, 16.0, 32.0]
EPS = 1e-9


def random_images(counts, nc, cells=320, seed=0):
    """(logits, boxes, points, objects) of images with that many objects."""
    torch.manual_seed(seed)
    points = torch.rand(cells, 2) * 100
    size = torch.rand(len(counts), cells, 4) * 25 + 2
    boxes = torch.cat((points - size[..., :2], points + size[..., 2:]), -1)
    objects = []
    for count in counts:
        low = torch.rand(count, 2) * 70
        gt = torch.cat((low, low + torch.rand(count, 2) * 35 + 4), 1)
        objects.append((torch.randint(0, nc, (count,)), gt))
    return torch.randn(len(counts), cells, nc), boxes, points, objects


def assign(scores, boxes, points, labels, gt, topk=10):
    """(boxes (A, 4), scores (A, nc), positive (A,)) of one image.

    scores (A, nc) in [0, 1], boxes (A, 4), points (A, 2); labels (n,), gt (n, 4).
    """
    if len(gt) == 0:
        nothing = torch.zeros(len(points), dtype=torch.bool)
        return torch.zeros_like(boxes), torch.zeros_like(scores), nothing
    overlaps = complete_iou(gt[:, None], boxes[None]).clamp_(0)
    align = scores.T[labels].pow_(0.5).mul_(overlaps.pow(6.0))
    taken = _candidates(align, points, gt, topk)
    contested = taken.sum(0) > 1
    if contested.any():
        winner = torch.zeros_like(taken[:, contested])
        winner.scatter_(0, overlaps[:, contested].argmax(0, keepdim=True), True)
        taken[:, contested] = winner
    owner = taken.to(torch.uint8).argmax(0)
    align = align * taken
    best_overlap = (overlaps * taken).amax(1, keepdim=True)
    strength = align * best_overlap / (align.amax(1, keepdim=True) + EPS)
    strength, positive = strength.amax(0), taken.any(0)
    out = torch.zeros_like(scores)
    out[positive, labels[owner[positive]]] = strength[positive]
    return gt[owner], out, positive


def _candidates(align, points, gt, topk):
    x, y = points.T
    margin = torch.minimum(x - gt[:, 0:1], y - gt[:, 1:2])
    margin = torch.minimum(margin, gt[:, 2:3] - x)
    inside = torch.minimum(margin, gt[:, 3:4] - y) > EPS
    best = (align * inside).topk(min(topk, align.shape[1]), dim=1).indices
    return torch.zeros_like(inside).scatter_(1, best, True) & inside


def loss(branches, weights, targets, gains):
    """(batch times the sum, detached (box, cls, dfl)), as DetectionLoss gives them.

    branches: each a list of levels (N, 64 + nc, H, W); targets (n, 6).
    """
    sizes = [level.shape[2:] for level in branches[0]]
    points, stride = make_anchors(sizes, STRIDES, targets.device)
    height, width = (side * 8 for side in sizes[0])
    centre, half = targets[:, 2:4], targets[:, 4:] / 2
    boxes = torch.cat((centre - half, centre + half), 1)
    boxes = boxes * torch.tensor([width, height, width, height])
    objects = []
    for i in range(len(branches[0][0])):
        mine = (targets[:, 0] == i) & (boxes.sum(1) > 0)
        objects.append((targets[mine, 1].long(), boxes[mine]))
    parts = sum(
        weight * _branch(levels, objects, points, stride)
        for weight, levels in zip(weights, branches, strict=True)
    ) * torch.tensor(gains)
    return parts.sum() * len(objects), parts.detach()


def _branch(levels, objects, points, stride):
    flat = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    bins = flat[..., : 4 * REG_MAX].unflatten(2, (4, REG_MAX))
    logits = flat[..., 4 * REG_MAX :]
    decoded = distances_to_boxes(_expected(bins), points).detach() * stride
    scores, total = [], 0.0
    box = dfl = flat.new_zeros(())
    for i, (labels, gt) in enumerate(objects):
        aim, score, positive = assign(
            logits[i].detach().sigmoid(), decoded[i], points * stride, labels, gt
        )
        scores.append(score)
        weight, here = score[positive].sum(1), points[positive]
        aim, mine = aim[positive] / stride[positive], bins[i, positive]
        iou = complete_iou(distances_to_boxes(_expected(mine), here), aim)
        box = box + ((1 - iou) * weight).sum()
        sides = boxes_to_distances(aim, here, REG_MAX - 1)
        low = sides.long()
        both = torch.stack((low, low + 1), -1)
        log_p = mine.log_softmax(-1).gather(-1, both)
        share = 1 - (sides[..., None] - both).abs()
        dfl = dfl - ((log_p * share).sum(-1).mean(-1) * weight).sum()
    scores = torch.stack(scores)
    total = scores.sum().clamp(min=1)
    cls = F.binary_cross_entropy_with_logits(logits, scores, reduction="sum")
    return torch.stack((box, cls, dfl)) / total


def _expected(bins):
    return bins.softmax(-1) @ torch.arange(REG_MAX, dtype=bins.dtype)
