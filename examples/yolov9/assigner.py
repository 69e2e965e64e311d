# SPDX-License-Identifier: MIT
"""Task-aligned assignment (TOOD, arXiv:2108.07755), one image at a time.

An object takes the `topk` cells inside it with the largest
score ** alpha * CIoU ** beta; a cell that several objects take goes to the object it
overlaps most. One image at a time keeps the temporaries at objects x cells of the
image at hand: a batch with one dense image costs no more than that image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .boxes import complete_iou

CHUNK_ELEMENTS = 1 << 20  # objects x cells of one CIoU evaluation (about 60 MB)


class Assignment(NamedTuple):
    """Targets of one image; cells that are not positive have zero scores."""

    boxes: Tensor  # (A, 4) xyxy, same unit as the objects
    scores: Tensor  # (A, nc) float32
    positive: Tensor  # (A,) bool


class TaskAlignedAssigner:
    """Callable assigner; see the module text for the rule."""

    def __init__(
        self, nc: int, topk: int = 10, alpha: float = 0.5, beta: float = 6.0
    ) -> None:
        self.nc = nc
        self.topk = topk
        self.alpha = alpha
        self.beta = beta
        self.eps = 1e-9

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, boxes: Tensor, points: Tensor, labels: Tensor, gt: Tensor
    ) -> Assignment:
        """Assigns cells to the objects of one image.

        scores (A, nc) in [0, 1], boxes (A, 4) and points (A, 2) of the cells; labels
        (n,) int64 and gt (n, 4) of the objects; all coordinates in pixels.
        """
        if len(gt) == 0:
            nothing = torch.zeros(len(points), dtype=torch.bool, device=points.device)
            return Assignment(
                torch.zeros_like(boxes), torch.zeros_like(scores), nothing
            )
        overlaps, align = self._metrics(scores, boxes, labels, gt)
        taken = self._candidates(align, points, gt)
        contested = taken.sum(0) > 1
        if contested.any():
            winner = torch.zeros_like(taken[:, contested])
            winner.scatter_(0, overlaps[:, contested].argmax(0, keepdim=True), True)
            taken[:, contested] = winner
        owner = taken.to(torch.uint8).argmax(0)
        return self._targets(taken, owner, overlaps, align, labels, gt)

    def _metrics(
        self, scores: Tensor, boxes: Tensor, labels: Tensor, gt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """CIoU clamped at zero and the alignment, both (n, A)."""
        overlaps = boxes.new_empty(len(gt), len(boxes))
        rows = max(1, CHUNK_ELEMENTS // len(boxes))
        for i in range(0, len(gt), rows):
            part = slice(i, i + rows)
            overlaps[part] = complete_iou(gt[part, None], boxes[None]).clamp_(0)
        align = scores.T[labels].pow_(self.alpha)
        return overlaps, align.mul_(overlaps.pow(self.beta))

    def _candidates(self, align: Tensor, points: Tensor, gt: Tensor) -> Tensor:
        """(n, A) bool: inside the object and among its topk."""
        x, y = points.T
        margin = torch.minimum(x - gt[:, 0:1], y - gt[:, 1:2])
        margin = torch.minimum(margin, gt[:, 2:3] - x)
        inside = torch.minimum(margin, gt[:, 3:4] - y) > self.eps
        count = min(self.topk, align.shape[1])
        best = (align * inside).topk(count, dim=1).indices
        taken = torch.zeros_like(inside).scatter_(1, best, True)
        return taken & inside

    def _targets(
        self,
        taken: Tensor,
        owner: Tensor,
        overlaps: Tensor,
        align: Tensor,
        labels: Tensor,
        gt: Tensor,
    ) -> Assignment:
        """Scores are alignments scaled so that an object's largest is its best CIoU."""
        align = align * taken
        best_align = align.amax(1, keepdim=True)
        best_overlap = (overlaps * taken).amax(1, keepdim=True)
        strength = (align * best_overlap / (best_align + self.eps)).amax(0)
        positive = taken.any(0)
        scores = align.new_zeros(len(owner), self.nc)
        scores[positive, labels[owner[positive]]] = strength[positive]
        return Assignment(gt[owner], scores, positive)
