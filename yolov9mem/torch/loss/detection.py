# SPDX-License-Identifier: MIT
"""Detection loss of YOLOv9: BCE for classes, CIoU and DFL for boxes, per branch.

For each branch, with target scores t of the assigner and T = max(sum t, 1):
    cls = sum BCE(logits, t) / T
    box = sum_positive (1 - CIoU) * sum_c t / T
    dfl = sum_positive DFL * sum_c t / T              (arXiv:2006.04388)
total = batch * sum_branch weight * (box * gain + cls * gain + dfl * gain); auxiliary
branches, all but the last, weigh 0.25. All arithmetic is float32, under autocast too.

The images of a batch, and all branches, are taken together: few launches. Beside the
output and its gradient, memory is of the positive cells, and what the assigner,
BIN_ELEMENTS and cells.ELEMENTS bound: at 640 px the logits alone in float32 would be three
times the output. The host does not wait for the device, so that it can launch backward
while forward still runs; but for the objects' counts, if the targets are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolov9mem._checks import check_mapping
from yolov9mem.sgd import is_finite

from ..checks import check_attributes, checked_count
from .assigner import Assignment, Objects, TaskAlignedAssigner, pack_objects
from .boxes import (
    boxes_to_distances,
    complete_iou,
    distances_to_boxes,
    make_anchors,
    xywh_to_xyxy,
)
from .cells import Cells, Levels

AUXILIARY_WEIGHT = 0.25
GAINS = ("box", "cls", "dfl")
BIN_ELEMENTS = 1 << 22  # logits of distances decoded at a time for the assigner


def first_cells(positive: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Positions of the cells that are positive, in order, and which of these are real.

    positive (B, cells); both are (B, most), any cell filling up: how many there are only
    the device knows, and nonzero() would make the host wait for it.
    """
    place = torch.arange(most, device=positive.device).expand(len(positive), -1)
    # All rows in one sum: a GPU would give each of few long rows to a single block.
    count = positive.flatten().cumsum(0).view_as(positive)
    before = count[:, :1] - positive[:, :1].long()
    is_real = place < count[:, -1:] - before
    found = torch.searchsorted(count, place + before + 1)
    return found.where(is_real, place), is_real


def _finite(name: str, value: Any, least: float = -math.inf) -> float:
    if not (is_finite(name, value) and value >= least):
        rule = "finite" if least < 0 else f"finite and at least {least}"
        raise ValueError(f"{name}: is {value}, must be {rule}")
    return float(value)


def _strides(stride: Any) -> list[float]:
    """Of each level."""
    rule = "must be a number of pixels for each level"
    try:
        found = torch.as_tensor(stride).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"head: stride: is {stride!r}, {rule}") from error
    if not (isinstance(found, list) and found and isinstance(found[0], int | float)):
        raise ValueError(f"head: stride: is {stride!r}, {rule}")
    if not all(0 < pixels < math.inf for pixels in found):
        raise ValueError(f"head: stride: is {found}, must be finite and above 0")
    return found


def _check_tensor(name: str, value: Any) -> None:
    """Of numbers in memory, one after the other or with gaps."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: is a {type(value).__name__}, must be a tensor")
    if value.layout is not torch.strided:
        raise ValueError(f"{name}: is {value.layout}, must be dense")


class DetectionLoss:
    """Loss of the training output of a YOLOv9 or GELAN detector, or of its eval levels.

    Args:
        head: of the detector, its last layer, with attributes `nc` (classes), `reg_max`
            (bins of a distance) and `stride` (pixels, of each level).
        hyp: gains "box", "cls" and "dfl", as in the official hyper-parameter files;
            "cls_pw", the weight of positive classes (1), and "fl_gamma", of the focal
            loss (0: none).
        topk, alpha, beta: of the task-aligned assigner.

    Raises:
        TypeError: head lacks an attribute, hyp is no mapping, or a value is no number.
        ValueError: hyp lacks a gain, or a number is not finite, too small, or not whole.

    The same sums as in the official ComputeLoss of `utils.loss_tal` (one branch),
    `utils.loss_tal_dual` (two) and `utils.loss_tal_triple` (three), in float32 where those
    round to 16 bits under autocast.
    """

    def __init__(
        self,
        head: Any,
        hyp: Mapping[str, float],
        *,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
    ) -> None:
        check_attributes("head", head, ("nc", "reg_max", "stride"))
        check_mapping("hyp", hyp, "numbers")
        for name in GAINS:
            if name not in hyp:
                raise ValueError(f"hyp: has no {name!r}, the gain of that part")
        self.nc = checked_count("head: nc", head.nc)
        self.reg_max = checked_count("head: reg_max", head.reg_max)
        if self.reg_max < 2:
            raise ValueError(
                f"head: reg_max: is {self.reg_max}, must be at least 2: two bins share a "
                "distance"
            )
        self.stride = _strides(head.stride)
        gains = {"cls_pw": 1.0, "fl_gamma": 0.0, **hyp}
        self.gains = [_finite(f"hyp: {name}", gains[name]) for name in GAINS]
        self.positive_weight = _finite("hyp: cls_pw", gains["cls_pw"])
        self.gamma = _finite("hyp: fl_gamma", gains["fl_gamma"])
        self.assigner = TaskAlignedAssigner(
            checked_count("topk", topk),
            _finite("alpha", alpha, least=0),
            _finite("beta", beta, least=0),
        )

    def __call__(self, output: Sequence[Any], targets: Tensor) -> tuple[Tensor, Tensor]:
        """(loss times batch size, detached (box, cls, dfl) with their gains).

        Args:
            output: levels (N, 4 * reg_max + nc, H, W), or [auxiliary levels ..., main
                levels], or [levels]; any float dtype and layout.
            targets: (n, 6): number of the image, class, box as centre and size in [0, 1].

        Raises:
            TypeError: output is no list or tuple, or a level or targets are no tensor.
            ValueError: a level or the targets have another shape or dtype, a level lies
                elsewhere than the first, or targets on the CPU have a class that the head
                does not have, an image's number that is not whole or a box that is not
                finite. (On a GPU the host does not wait for their values: such a class is
                an error of the device there, the others are not told.)
        """
        if not isinstance(output, (list, tuple)):
            found = type(output).__name__
            raise TypeError(f"output: is a {found}, must be a list or tuple of levels")
        nested = len(output) > 0 and isinstance(output[0], (list, tuple))
        branches: list[list[Tensor]]
        branches = [list(b) for b in (output if nested else [output])]
        self._check(branches, targets)
        weights = [AUXILIARY_WEIGHT] * (len(branches) - 1) + [1.0]
        targets = targets.float()
        device = branches[0][0].device
        with torch.autocast(device.type, enabled=False):
            sizes = [(f.shape[2], f.shape[3]) for f in branches[0]]
            batch = branches[0][0].shape[0]
            points, stride = make_anchors(sizes, self.stride, device)
            objects = self._objects(targets, batch, sizes[0]).to(device)
            outputs = [Levels(levels, 4 * self.reg_max) for levels in branches]
            of_branches = self._parts(outputs, objects, points, stride).unbind(1)
            # A tensor of weights would be copied to the device, and waited for.
            pairs = zip(of_branches, weights, strict=True)
            parts = torch.stack([part * weight for part, weight in pairs]).sum(0)
            gained = zip(parts.unbind(), self.gains, strict=True)
            parts = torch.stack([part * gain for part, gain in gained])
            return parts.sum() * batch, parts.detach()

    def _check(self, branches: list[list[Tensor]], targets: Tensor) -> None:
        for b, levels in enumerate(branches):
            if len(levels) != len(self.stride):
                raise ValueError(
                    f"output[{b}]: has {len(levels)} levels, the head {len(self.stride)}"
                )
            for k, level in enumerate(levels):
                _check_tensor(f"output[{b}][{k}]", level)
                self._check_level(f"output[{b}][{k}]", level, levels[0], branches[0][k])
        self._check_targets(targets)

    def _check_targets(self, targets: Tensor) -> None:
        _check_tensor("targets", targets)
        if targets.is_complex() or targets.dtype is torch.bool:
            raise ValueError(f"targets: is {targets.dtype}, must be real numbers")
        if targets.ndim != 2 or targets.shape[1] != 6:
            raise ValueError(f"targets: is {tuple(targets.shape)}, must be (n, 6)")
        if targets.device.type != "cpu":
            return
        image, label, boxes = targets[:, 0], targets[:, 1], targets[:, 2:]
        rules = (
            ("an image's number", image, image == image.floor(), "whole"),
            ("a class", label, (label >= 0) & (label < self.nc), f"in [0, {self.nc})"),
            ("a box coordinate", boxes, boxes.isfinite(), "finite"),
        )
        for name, values, holds, rule in rules:
            wrong = values[~holds]
            if len(wrong):
                value = f"{wrong[0].item():g}"
                raise ValueError(f"targets: {name} is {value}, must be {rule}")

    def _check_level(
        self, name: str, level: Tensor, first: Tensor, same: Tensor
    ) -> None:
        """first: level of the branch; same: the level of the first branch."""
        channels, shape = 4 * self.reg_max + self.nc, tuple(level.shape)
        if level.ndim != 4 or shape[1] != channels or not level.numel():
            raise ValueError(
                f"{name}: is {shape}, must be (N, {channels}, H, W): {self.nc} classes, "
                f"4 x {self.reg_max} bins"
            )
        if not level.is_floating_point():
            raise ValueError(f"{name}: is {level.dtype}, must be a float dtype")
        if len(level) != len(first) or level.shape != same.shape:
            raise ValueError(
                f"{name}: is {shape}, beside {tuple(first.shape)} and {tuple(same.shape)} "
                "of the other levels and branches"
            )
        if level.device != same.device or level.device != first.device:
            raise ValueError(
                f"{name}: is on {level.device}, beside {first.device} and {same.device} "
                "of the other levels and branches"
            )

    def _objects(self, targets: Tensor, batch: int, size: tuple[int, int]) -> Objects:
        """Packed where the targets are, which is mostly the host: no wait then."""
        height, width = (s * self.stride[0] for s in size)
        x, y, w, h = targets[:, 2:].unbind(1)
        sides = torch.stack((x * width, y * height, w * width, h * height), 1)
        boxes = xywh_to_xyxy(sides)
        image = targets[:, 0].long().where(boxes.sum(1) > 0, -1)
        # A negative class would be a bin of the boxes; one too many is an error.
        label = targets[:, 1].where(targets[:, 1] >= 0, self.nc)
        return pack_objects(image, label, boxes, batch)

    def _parts(
        self, outputs: list[Levels], objects: Objects, points: Tensor, stride: Tensor
    ) -> Tensor:
        """(box, cls, dfl) of B branches, (3, B), without weights and gains."""
        boxes, labels, scores, positive = self._assign(outputs, objects, points, stride)
        total = scores.sum((1, 2)).clamp(min=1)
        # No positive cell is no special case: sums of nothing, with zero gradients.
        most = self.assigner.most_positive(objects, len(points))
        found, is_real = first_cells(positive.flatten(1), most)
        cell, image = found % len(points), found // len(points)
        label = labels.flatten(1).gather(1, found)
        read = [
            output.read(Cells(*of_branch), self._of_absent)
            for output, *of_branch in zip(outputs, image, cell, label, is_real)
        ]
        bins, logit, absent = map(torch.stack, zip(*read))
        weight = scores.flatten(1).gather(1, found) * is_real
        logit = logit.where(is_real, 0)
        present = self._classification(logit, weight) - self._of_absent(logit)
        cls = (absent + present.sum(1)) / total
        bins = bins.where(is_real[..., None], 0).unflatten(2, (4, self.reg_max))
        here = points[cell]
        aim = boxes.flatten(1, 2).gather(1, found[..., None].expand(-1, -1, 4))
        aim = aim / stride[cell]
        predicted = distances_to_boxes(self._expected(bins), here)
        box = ((1 - complete_iou(predicted, aim)) * weight).sum(1) / total
        sides = boxes_to_distances(aim, here, self.reg_max - 1)
        dfl = (self._distribution(bins, sides) * weight).sum(1) / total
        return torch.stack((box, cls, dfl))

    @torch.no_grad()
    def _assign(
        self, outputs: list[Levels], objects: Objects, points: Tensor, stride: Tensor
    ) -> Assignment:
        """Boxes in pixels."""

        def class_logits(part: slice, image: Tensor, label: Tensor) -> Tensor:
            found = [o.class_logits(image, label) for o in outputs[part]]
            return torch.stack(found) if len(found) > 1 else found[0][None]

        of_branches = [output.boxes(BIN_ELEMENTS) for output in outputs]
        sides = [
            torch.cat([self._expected_sides(part) for parts in level for part in parts])
            for level in zip(*of_branches)
        ]
        boxes = distances_to_boxes(torch.cat(sides, 1), points).mul_(stride)
        boxes = boxes.unflatten(0, (len(outputs), -1))
        return self.assigner(class_logits, boxes, points * stride, objects)

    def _expected_sides(self, bins: Tensor) -> Tensor:
        """(n, 4 * reg_max, cells) -> (n, cells, 4)."""
        sides = bins.transpose(1, 2).unflatten(2, (4, self.reg_max))
        return self._expected(sides)

    def _expected(self, bins: Tensor) -> Tensor:
        """(..., reg_max) logits -> expected distance (...) in cells."""
        steps = torch.arange(self.reg_max, device=bins.device, dtype=bins.dtype)
        return bins.softmax(-1) @ steps

    def _classification(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Of each logit: binary cross entropy, focal where that is asked for."""
        absent = F.softplus(logits)
        loss = (1 - scores) * absent
        loss = loss + self.positive_weight * scores * F.softplus(-logits)
        return loss if self.gamma <= 0 else self._focused(loss, logits, scores)

    def _of_absent(self, logits: Tensor) -> Tensor:
        """The same for scores of 0, which nearly all are."""
        loss = F.softplus(logits)
        if self.gamma <= 0:
            return loss
        return loss * 0.75 * logits.sigmoid() ** self.gamma

    def _focused(self, loss: Tensor, logits: Tensor, scores: Tensor) -> Tensor:
        p = logits.sigmoid()
        agreement = scores * p + (1 - scores) * (1 - p)
        balance = scores * 0.25 + (1 - scores) * 0.75  # arXiv:1708.02002
        return loss * balance * (1 - agreement) ** self.gamma

    def _distribution(self, bins: Tensor, sides: Tensor) -> Tensor:
        """DFL (n,): cross entropy shared by the two bins next to the distance."""
        # Products, for the gradient of an index is summed by what PyTorch sorts for where
        # its algorithms must be deterministic.
        steps = torch.arange(self.reg_max, device=bins.device, dtype=bins.dtype)
        share = (1 - (steps - sides[..., None]).abs()).clamp_(0)
        shared = bins.log_softmax(-1) * share
        return -shared.where(share > 0, 0).sum(-1).mean(-1)
