# SPDX-License-Identifier: MIT
"""The assigner and the loss of yolov9mem.torch.loss as loops in float64, an oracle."""

import math

import numpy as np

HYP = {"box": 7.5, "cls": 0.5, "dfl": 1.5, "cls_pw": 1.0, "fl_gamma": 0.0}
STRIDES = (8, 16, 32)


def slow_ciou(a, b, weight=None, eps=1e-7) -> float:
    """CIoU of two boxes, one number at a time; weight: of the aspect term, if given."""
    aw, ah = a[2] - a[0], a[3] - a[1] + eps
    bw, bh = b[2] - b[0], b[3] - b[1] + eps
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(
        min(a[3], b[3]) - max(a[1], b[1]), 0
    )
    iou = overlap / (aw * ah + bw * bh - overlap + eps)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) ** 2
    hull += (max(a[3], b[3]) - min(a[1], b[1])) ** 2 + eps
    apart = ((b[0] + b[2] - a[0] - a[2]) ** 2 + (b[1] + b[3] - a[1] - a[3]) ** 2) / 4
    aspect = 4 / math.pi**2 * (math.atan(bw / bh) - math.atan(aw / ah)) ** 2
    if weight is None:
        weight = aspect / (aspect - iou + 1 + eps)
    return iou - apart / hull - aspect * weight


def slow_assign(scores, boxes, points, labels, gt, topk=10):
    """(boxes, scores, positive) of the rule in assigner.py, in loops."""
    cells, n = len(boxes), len(gt)
    overlaps = np.zeros((n, cells))
    align = np.zeros((n, cells))
    taken = np.zeros((n, cells), dtype=bool)
    for j in range(n):
        inside = np.zeros(cells, dtype=bool)
        for a in range(cells):
            overlaps[j, a] = max(slow_ciou(gt[j], boxes[a]), 0)
            align[j, a] = scores[a, labels[j]] ** 0.5 * overlaps[j, a] ** 6
            x, y = points[a]
            inside[a] = gt[j][0] < x < gt[j][2] and gt[j][1] < y < gt[j][3]
        best = np.argsort(-align[j] * inside, kind="stable")[:topk]
        taken[j, best] = True
        taken[j] &= inside
    for a in range(cells):
        if taken[:, a].sum() > 1:
            winner = overlaps[:, a].argmax()
            taken[:, a] = False
            taken[winner, a] = True
    out_boxes, out_scores = np.zeros((cells, 4)), np.zeros_like(scores)
    for a in range(cells):
        owners = np.flatnonzero(taken[:, a])
        if len(owners):
            j = owners[0]
            best_align = (align[j] * taken[j]).max()
            best_overlap = (overlaps[j] * taken[j]).max()
            strength = align[j, a] * best_overlap / (best_align + 1e-9)
            out_boxes[a], out_scores[a, labels[j]] = gt[j], strength
    return out_boxes, out_scores, taken.any(0)


def slow_branch(levels, objects, fixed=None):
    """(box, cls, dfl) of one branch without gains; levels: arrays (N, no, H, W).

    fixed: list that keeps the assignments of the first call for later ones.
    """
    points, strides, rows = [], [], []
    for level, s in zip(levels, STRIDES, strict=True):
        h, w = level.shape[2:]
        for y in range(h):
            for x in range(w):
                points.append((x + 0.5, y + 0.5))
                strides.append(s)
                rows.append(level[:, :, y, x])
    flat = np.stack(rows, 1)
    points, strides = np.array(points), np.array(strides)[:, None]
    bins = flat[..., :64].reshape(*flat.shape[:2], 4, 16)
    p = np.exp(bins - bins.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    sides = p @ np.arange(16.0)
    boxes = np.concatenate((points - sides[..., :2], points + sides[..., 2:]), -1)
    logits = flat[..., 64:]
    sigmoid = 1 / (1 + np.exp(-logits))
    total = box = cls = dfl = 0.0
    for i in range(len(flat)):
        if fixed is None or len(fixed) == i:
            labels, gt = objects[i]
            assigned = slow_assign(
                sigmoid[i], boxes[i] * strides, points * strides, labels, gt
            )
            if fixed is not None:
                fixed.append(assigned)
        aim, t, positive = assigned if fixed is None else fixed[i]
        total += t.sum()
        cls += (np.logaddexp(0, logits[i]) - t * logits[i]).sum()
        for a in np.flatnonzero(positive):
            target = aim[a] / strides[a]
            weight = t[a].sum()
            box += (1 - slow_ciou(boxes[i, a], target)) * weight
            want = [*(points[a] - target[:2]), *(target[2:] - points[a])]
            for side in range(4):
                d = min(max(want[side], 0), 14.99)
                low = int(d)
                logp = np.log(p[i, a, side])
                dfl -= (
                    ((low + 1 - d) * logp[low] + (d - low) * logp[low + 1]) * weight / 4
                )
    return np.array([box, cls, dfl]) / max(total, 1)
