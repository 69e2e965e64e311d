# SPDX-License-Identifier: MIT
"""The example's assigner and loss against loops in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from yolov9 import assigner as assigner_module
from yolov9.assigner import TaskAlignedAssigner
from yolov9.boxes import complete_iou
from yolov9.loss import DetectionLoss

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


def make_case(seed: int, batch: int = 2, size: int = 96, nc: int = 3, count: int = 6):
    """Levels near some of the objects, so that overlaps are real; and targets."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((count * batch, 6))
    targets[:, 0] = np.repeat(np.arange(batch), count)
    targets[:, 1] = rng.integers(0, nc, len(targets))
    targets[:, 2:4] = rng.uniform(0.2, 0.8, (len(targets), 2))
    targets[:, 4:] = rng.uniform(0.1, 0.4, (len(targets), 2))
    levels = []
    for s in STRIDES:
        z = rng.normal(0, 1, (batch, 64 + nc, size // s, size // s))
        bins = z[:, :64].reshape(batch, 4, 16, *z.shape[2:])
        bins[:, :, 1 : 1 + 32 // s] += 2.5
        levels.append(z)
    return levels, targets


def objects_of(targets, batch: int, size: int):
    found = []
    for i in range(batch):
        mine = targets[targets[:, 0] == i]
        xy, half = mine[:, 2:4] * size, mine[:, 4:] * size / 2
        found.append(
            (mine[:, 1].astype(int), np.concatenate((xy - half, xy + half), 1))
        )
    return found


def head(nc: int) -> SimpleNamespace:
    return SimpleNamespace(nc=nc, reg_max=16, stride=torch.tensor([8.0, 16.0, 32.0]))


@pytest.mark.parametrize("seed", range(3))
def test_dual_loss_and_gradient(seed: int) -> None:
    aux, targets = make_case(seed)
    main, _ = make_case(seed + 100)
    objects = objects_of(targets, 2, 96)
    gains = np.array([7.5, 0.5, 1.5])
    parts = (0.25 * slow_branch(aux, objects) + slow_branch(main, objects)) * gains
    assert parts.min() > 0.1
    branches = [[torch.tensor(z, dtype=torch.float32) for z in b] for b in (aux, main)]
    loss, items = DetectionLoss(head(3), HYP)(branches, torch.tensor(targets).float())
    np.testing.assert_allclose(items.numpy(), parts, rtol=2e-5)
    assert loss.item() == pytest.approx(parts.sum() * 2, rel=2e-5)


def test_gradient_of_class_and_distribution_losses() -> None:
    levels, targets = make_case(3)
    objects, fixed = objects_of(targets, 2, 96), []
    slow_branch(levels, objects, fixed)
    direction = np.random.default_rng(0).normal(size=levels[1].shape)
    values = []
    for step in (1e-5, -1e-5):
        moved = [levels[0], levels[1] + step * direction, levels[2]]
        _, cls, dfl = slow_branch(moved, objects, fixed)
        values.append(2 * (0.5 * cls + 1.5 * dfl))
    tensors = [torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in levels]
    loss = DetectionLoss(head(3), HYP | {"box": 0.0})
    loss(tensors, torch.tensor(targets).float())[0].backward()
    slope = (tensors[1].grad.double().numpy() * direction).sum()
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_single_branch_and_no_objects() -> None:
    levels, _ = make_case(0)
    tensors = [torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in levels]
    loss, items = DetectionLoss(head(3), HYP)(tensors, torch.zeros(0, 6))
    expected = slow_branch(levels, [(np.zeros(0, int), np.zeros((0, 4)))] * 2)
    np.testing.assert_allclose(items.numpy(), expected * [7.5, 0.5, 1.5], rtol=1e-5)
    assert items[0] == 0
    assert items[2] == 0
    loss.backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors)
    assert tensors[0].grad[:, :64].abs().max() == 0


@pytest.mark.parametrize("count", [0, 1, 25])
def test_assigner_matches_loops(count: int) -> None:
    rng = np.random.default_rng(count)
    cells, nc = 80, 4
    points = rng.uniform(0, 100, (cells, 2))
    boxes = np.concatenate((points - rng.uniform(3, 30, (cells, 2)), points + 15), 1)
    gt_xy = rng.uniform(10, 60, (count, 2))
    gt = np.concatenate((gt_xy, gt_xy + rng.uniform(10, 40, (count, 2))), 1)
    labels = rng.integers(0, nc, count)
    scores = rng.uniform(0.01, 0.9, (cells, nc))
    expected = slow_assign(scores, boxes, points, labels, gt)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (scores, boxes, points)]
    found = TaskAlignedAssigner(nc)(
        *tensors, torch.tensor(labels), torch.tensor(gt, dtype=torch.float32)
    )
    # Cells whose alignment is zero tie, and which of them is taken means nothing.
    strong = expected[1].sum(1) > 0
    assert strong.any() == (count > 0)
    assert found.positive.numpy()[strong].all()
    np.testing.assert_allclose(found.scores.numpy(), expected[1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.boxes.numpy()[strong], expected[0][strong], 1e-6)


def test_chunks_of_objects_change_nothing(monkeypatch) -> None:
    torch.manual_seed(0)
    points = torch.rand(200, 2) * 100
    boxes = torch.cat((points - 10, points + 12), 1)
    gt = torch.cat((points[:50] - 8, points[:50] + 9), 1)
    labels, scores = torch.randint(0, 2, (50,)), torch.rand(200, 2)
    whole = TaskAlignedAssigner(2)(scores, boxes, points, labels, gt)
    monkeypatch.setattr(assigner_module, "CHUNK_ELEMENTS", 600)
    parts = TaskAlignedAssigner(2)(scores, boxes, points, labels, gt)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_fewer_cells_than_topk() -> None:
    points = torch.tensor([[5.0, 5.0], [15.0, 5.0]])
    found = TaskAlignedAssigner(1)(
        torch.full((2, 1), 0.5),
        torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]]),
        points,
        torch.tensor([0]),
        torch.tensor([[1.0, 1, 9, 9]]),
    )
    assert found.positive.tolist() == [True, False]


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


def test_loss_is_float32_under_autocast() -> None:
    levels, targets = make_case(1)
    tensors = [torch.tensor(z).bfloat16() for z in levels]
    loss = DetectionLoss(head(3), HYP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = loss(tensors, torch.tensor(targets).float())
    outside, _ = loss([t.float() for t in tensors], torch.tensor(targets).float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_focal_weight_lowers_easy_cells() -> None:
    levels, targets = make_case(2)
    tensors = [torch.tensor(z, dtype=torch.float32) for z in levels]
    plain = DetectionLoss(head(3), HYP)(tensors, torch.tensor(targets).float())[1]
    focal = DetectionLoss(head(3), HYP | {"fl_gamma": 1.5})
    focused = focal(tensors, torch.tensor(targets).float())[1]
    assert 0 < focused[1] < plain[1]
    assert focused[0] == plain[0]
