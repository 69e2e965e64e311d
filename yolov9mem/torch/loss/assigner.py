# SPDX-License-Identifier: MIT
"""Task-aligned assignment (TOOD, arXiv:2108.07755), groups of images at a time.

An object takes the `topk` cells inside it with the largest
score ** alpha * CIoU ** beta; a cell that several objects take goes to the object it
overlaps most.

The branches of an output are assigned together, as so many batches of the same images.

What is bounded: branches x images x objects x cells of a group, objects counted as in its
fullest image, is at most CHUNK_ELEMENTS, and at most half of it is padding. So a batch
with one dense image takes no more memory than that image: where it alone is beyond the
bound, it is a group of its own, whose CIoU is evaluated that many elements at a time.
Nothing here makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import devices
from .boxes import complete_iou

CHUNK_ELEMENTS = 1 << 22  # (image, object, cell) of one CIoU (about 100 MB)


class Objects(NamedTuple):
    """Objects of N images, padded to M, the count of the fullest, at least one.

    Padding is label 0 and a box of zeros: it overlaps nothing and no cell is inside.
    """

    labels: Tensor  # (N, M) int64
    boxes: Tensor  # (N, M, 4) xyxy in pixels
    order: Tensor  # (N,) int64: the images, fullest first
    place: Tensor  # (N,) int64: of each image in that order
    counts: list[int]  # their objects, in that order

    def to(self, device: torch.device) -> Objects:
        """The same on a device, without waiting for it."""
        labels, boxes, order, place = (devices.sent(t, device) for t in self[:4])
        return Objects(labels, boxes, order, place, self.counts)


class Assignment(NamedTuple):
    """Targets of B branches; cells that are not positive have zero scores."""

    boxes: Tensor  # (B, N, A, 4) xyxy, same unit as the objects
    labels: Tensor  # (B, N, A) int64
    scores: Tensor  # (B, N, A) float32, of the label
    positive: Tensor  # (B, N, A) bool


def pack_objects(image: Tensor, labels: Tensor, boxes: Tensor, batch: int) -> Objects:
    """Objects of `batch` images from rows in any order; an image's rows keep theirs.

    image (n,) int64, rows of other images being dropped; labels (n,); boxes (n, 4).
    The counts are read from where the rows are: the only wait, if that is a device.
    """
    image, rows = image.sort(stable=True)
    table = torch.cat((labels[:, None], boxes), 1)[rows]
    edges = torch.searchsorted(image, torch.arange(batch + 1, device=image.device))
    counts, order = edges.diff().sort(descending=True, stable=True)
    sizes = counts.tolist()
    index = edges[:-1, None] + torch.arange(max([1, *sizes]), device=image.device)
    index = index.where(index < edges[1:, None], len(rows))
    padded = F.pad(table, (0, 0, 0, 1))[index]
    labels, boxes = padded[..., 0].long(), padded[..., 1:].contiguous()
    return Objects(labels, boxes, order, order.argsort(), sizes)


def groups(counts: list[int], cells: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the images to take together; see the module text.

    counts: objects of each image, fullest first; images without any are in no group.
    """
    start = 0
    while start < len(counts) and counts[start]:
        most = counts[start]
        room = CHUNK_ELEMENTS // (most * cells)
        stop, real = start + 1, most
        while stop < len(counts) and counts[stop] and stop - start < room:
            real += counts[stop]
            if (stop + 1 - start) * most > 2 * real:
                break
            stop += 1
        yield start, stop
        start = stop


class TaskAlignedAssigner:
    """Callable assigner; see the module text for the rule."""

    def __init__(self, topk: int = 10, alpha: float = 0.5, beta: float = 6.0) -> None:
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.eps = 1e-9

    def most_positive(self, objects: Objects, cells: int) -> int:
        """How many cells of a branch can be positive at most, `cells` of each image."""
        return sum(min(self.topk * count, cells) for count in objects.counts)

    @torch.no_grad()
    def __call__(
        self,
        class_logits: Callable[[slice, Tensor, Tensor], Tensor],
        boxes: Tensor,
        points: Tensor,
        objects: Objects,
    ) -> Assignment:
        """Assigns the cells of N images to their objects, for each of B branches.

        class_logits: of some branches and (image, label) tensors of any shape (...), the
        logits (branches, ..., A) of the class in all cells of the image, whose sigmoids
        are the scores.
        boxes (B, N, A, 4) of the cells, points (A, 2) of any image; all coordinates in
        pixels.
        """
        shape = boxes.shape[:3]
        # Written in the order of the groups: single images would be written by what
        # PyTorch sorts for where its algorithms must be deterministic.
        owner = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
        positive = torch.zeros_like(owner, dtype=torch.bool)
        strength = boxes.new_zeros(shape)
        for start, stop in groups(objects.counts, shape[0] * shape[2]):
            images, most = objects.order[start:stop], objects.counts[start]
            labels, gt = objects.labels[images, :most], objects.boxes[images, :most]
            # An image beyond the bound: as many branches at a time as are within it.
            room = max(1, CHUNK_ELEMENTS // ((stop - start) * most * shape[2]))
            for first in range(0, shape[0], room):
                part = slice(first, first + room)
                scores = class_logits(part, images[:, None], labels).sigmoid_()
                count = len(scores)
                found = self._group(
                    scores.flatten(0, 1),
                    boxes[part, images].flatten(0, 1),
                    points,
                    gt.repeat(count, 1, 1),
                )
                for whole, made in zip((owner, strength, positive), found, strict=True):
                    whole[part, start:stop] = made.unflatten(0, (count, -1))
                del scores, found
        ordered = owner, strength, positive
        owner, strength, positive = (t.index_select(1, objects.place) for t in ordered)
        labels = objects.labels.expand(shape[0], -1, -1).gather(2, owner)
        gt = objects.boxes.expand(shape[0], -1, -1, -1)
        aim = gt.gather(2, owner[..., None].expand(-1, -1, -1, 4))
        return Assignment(aim, labels, strength, positive)

    def _group(
        self, scores: Tensor, boxes: Tensor, points: Tensor, gt: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Owner of each cell, its target score, and whether it has one, all (g, A); g: the
        images of a group, in all branches.

        scores (g, m, A) of the objects' classes, overwritten; boxes (g, A, 4) of the
        cells, gt (g, m, 4) of the objects.
        """
        overlaps = self._overlaps(boxes, gt)
        align = scores.pow_(self.alpha).mul_(overlaps.pow(self.beta))
        taken = self._candidates(align, points, gt)
        takers = taken.sum(1)
        owner = torch.where(takers[:, None] > 1, overlaps, taken).argmax(1)
        positive = takers > 0
        number = torch.arange(gt.shape[1], device=gt.device)[:, None]
        taken = (owner[:, None] == number).logical_and_(positive[:, None])
        return owner, self._strength(taken, owner, overlaps, align), positive

    def _overlaps(self, boxes: Tensor, gt: Tensor) -> Tensor:
        """CIoU clamped at zero, (g, m, A)."""
        images, cells = boxes.shape[:2]
        rows = max(1, CHUNK_ELEMENTS // (images * cells))
        if rows >= gt.shape[1]:
            return complete_iou(gt[:, :, None], boxes[:, None]).clamp_(0)
        overlaps = boxes.new_empty(images, gt.shape[1], cells)
        for i in range(0, gt.shape[1], rows):
            part = gt[:, i : i + rows, None]
            overlaps[:, i : i + rows] = complete_iou(part, boxes[:, None]).clamp_(0)
        return overlaps

    def _candidates(self, align: Tensor, points: Tensor, gt: Tensor) -> Tensor:
        """(g, m, A) bool: inside the object and among its topk."""
        x, y = points.T
        left, top, right, bottom = gt[..., None].unbind(2)
        margin = torch.minimum(x - left, y - top)
        margin = torch.minimum(margin, right - x)
        inside = torch.minimum(margin, bottom - y) > self.eps
        del margin
        count = min(self.topk, align.shape[2])
        best = (align * inside).topk(count, dim=2).indices
        taken = torch.zeros_like(inside).scatter_(2, best, True)
        return taken.logical_and_(inside)

    def _strength(
        self, taken: Tensor, owner: Tensor, overlaps: Tensor, align: Tensor
    ) -> Tensor:
        """Alignments scaled so that an object's largest is its best CIoU, (g, A).

        overlaps and align are overwritten.
        """
        align = align.mul_(taken)
        best_align = align.amax(2).gather(1, owner)
        best_overlap = overlaps.mul_(taken).amax(2).gather(1, owner)
        mine = align.gather(1, owner[:, None]).squeeze(1)
        return mine * best_overlap / (best_align + self.eps)
