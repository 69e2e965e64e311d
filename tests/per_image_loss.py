# SPDX-License-Identifier: MIT
"""The assigner and the loss of yolov9mem.torch.loss one image at a time, as an oracle.

Boolean indexing, no padding, no groups, and formulas of its own, from the papers: what
test_loss.py and test_launch_loss.py compare with. In the dtype of what it is given.
"""

import math

import torch
import torch.nn.functional as F

REG_MAX = 16
STRIDES = [8.0, 16.0, 32.0]
EPS = 1e-9
TINY = 1e-7  # YOLOv9's, beside what it divides by
AWAY = (-1.0, -1.0, 1.0, 1.0)  # from a point to the left, top, right and bottom


def ciou(made, truth):
    """1 - the complete IoU loss of arXiv:1911.08287, of boxes (..., 4) that broadcast.

    Overlap, distance of the centres, aspects; the weight of these is a constant there.
    """
    low = torch.maximum(made[..., :2], truth[..., :2])
    high = torch.minimum(made[..., 2:], truth[..., 2:])
    inner = (high - low).clamp(min=0).prod(-1)
    size_made, size_truth = _size(made), _size(truth)
    union = size_made.prod(-1) + size_truth.prod(-1) - inner
    iou = inner / (union + TINY)
    low = torch.minimum(made[..., :2], truth[..., :2])
    high = torch.maximum(made[..., 2:], truth[..., 2:])
    diagonal = (high - low).square().sum(-1) + TINY
    rho = (_centre(made) - _centre(truth)).square().sum(-1)
    turned = torch.atan2(*size_truth.unbind(-1)) - torch.atan2(*size_made.unbind(-1))
    v = (turned * 2 / math.pi).square()
    alpha = (v / (1 - iou + v + TINY)).detach()
    return iou - rho / diagonal - alpha * v


def _size(boxes):
    """(..., 2): width, and height, which is never zero."""
    return boxes[..., 2:] - boxes[..., :2] + boxes.new_tensor([0, TINY])


def _centre(boxes):
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def anchors(sizes, dtype):
    """Middles (A, 2) of the cells of levels (H, W), in cells, and strides (A, 1)."""
    points, strides = [], []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        number = torch.arange(height * width)
        points.append(torch.stack((number % width, number // width), 1) + 0.5)
        strides += [[stride]] * len(number)
    return torch.cat(points).to(dtype), torch.tensor(strides, dtype=dtype)


def decode(distances, points):
    """Boxes whose sides are that far (..., 4) from points (..., 2): arXiv:2006.04388."""
    return torch.cat((points, points), -1) + distances * distances.new_tensor(AWAY)


def encode(boxes, points):
    """Distances of the sides from the points, below the last bin."""
    apart = boxes - torch.cat((points, points), -1)
    return (apart * boxes.new_tensor(AWAY)).clamp(0, REG_MAX - 1 - 0.01)


def assign(scores, boxes, points, labels, gt, topk=10):
    """(boxes (A, 4), scores (A, nc), positive (A,)) of one image.

    scores (A, nc) in [0, 1], boxes (A, 4), points (A, 2); labels (n,), gt (n, 4).
    """
    if len(gt) == 0:
        nothing = torch.zeros(len(points), dtype=torch.bool)
        return torch.zeros_like(boxes), torch.zeros_like(scores), nothing
    overlaps = ciou(gt[:, None], boxes[None]).clamp_(0)
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
    points, stride = anchors(sizes, branches[0][0].dtype)
    targets = targets.to(points)
    height, width = (side * 8 for side in sizes[0])
    centre, half = targets[:, 2:4], targets[:, 4:] / 2
    boxes = torch.cat((centre - half, centre + half), 1)
    boxes = boxes * points.new_tensor([width, height, width, height])
    objects = []
    for i in range(len(branches[0][0])):
        mine = (targets[:, 0] == i) & (boxes.sum(1) > 0)
        objects.append((targets[mine, 1].long(), boxes[mine]))
    parts = sum(
        weight * _branch(levels, objects, points, stride)
        for weight, levels in zip(weights, branches, strict=True)
    ) * points.new_tensor(gains)
    return parts.sum() * len(objects), parts.detach()


def _branch(levels, objects, points, stride):
    flat = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    bins = flat[..., : 4 * REG_MAX].unflatten(2, (4, REG_MAX))
    logits = flat[..., 4 * REG_MAX :]
    decoded = decode(_expected(bins).detach(), points) * stride
    scores, total = [], 0.0
    box = dfl = flat.new_zeros(())
    for i, (labels, gt) in enumerate(objects):
        aim, score, positive = assign(
            logits[i].detach().sigmoid(), decoded[i], points * stride, labels, gt
        )
        scores.append(score)
        weight, here = score[positive].sum(1), points[positive]
        aim, mine = aim[positive] / stride[positive], bins[i, positive]
        iou = ciou(decode(_expected(mine), here), aim)
        box = box + ((1 - iou) * weight).sum()
        sides = encode(aim, here)
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
