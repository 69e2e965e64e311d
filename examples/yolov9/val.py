# SPDX-License-Identifier: MIT
"""Validation: mean average precision as COCO defines it, by pycocotools."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .nms import detections

MAX_DETECTIONS = 300


@dataclass
class Metrics:
    """Results of one validation; precision and recall at the best F1 of each class."""

    precision: float = 0.0
    recall: float = 0.0
    map50: float = 0.0
    map: float = 0.0
    losses: tuple[float, float, float] = (0.0, 0.0, 0.0)
    per_class: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def fitness(self) -> float:
        return 0.1 * self.map50 + 0.9 * self.map


class _Collector:
    """Ground truth and detections in COCO's terms, boxes in pixels of the image."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.truth: list[dict] = []
        self.found: list[list[float]] = []

    def add(self, truth: np.ndarray, found: np.ndarray) -> None:
        """truth (n, 5) class, xyxy; found (m, 6) xyxy, score, class."""
        image = len(self.images) + 1
        self.images.append({"id": image})
        for label, x1, y1, x2, y2 in truth.tolist():
            w, h = x2 - x1, y2 - y1
            self.truth.append(
                {
                    "id": len(self.truth) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        for x1, y1, x2, y2, score, label in found.tolist():
            self.found.append([image, x1, y1, x2 - x1, y2 - y1, score, label])


def evaluate(collector: _Collector, nc: int) -> Metrics:
    """Runs COCOeval over all areas with up to 300 detections an image."""
    # Here, so that what needs no metrics runs where pycocotools is not installed.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not collector.truth or not collector.found:
        return Metrics()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": collector.images,
            "annotations": collector.truth,
            "categories": [{"id": i} for i in range(nc)],
        }
        truth.createIndex()
        found = truth.loadRes(np.array(collector.found, dtype=np.float64))
        run = COCOeval(truth, found, "bbox")
        run.params.maxDets = [MAX_DETECTIONS]
        run.params.areaRng = [[0, 1e10]]
        run.params.areaRngLbl = ["all"]
        run.evaluate()
        run.accumulate()
    return _summary(run.eval["precision"][:, :, :, 0, 0], run.params.recThrs)


def _summary(precision: np.ndarray, recalls: np.ndarray) -> Metrics:
    """precision (IoU thresholds, recall levels, classes), -1 where no objects."""
    present = [c for c in range(precision.shape[2]) if precision[0, 0, c] > -1]
    if not present:
        return Metrics()
    curve = precision[0][:, present]
    f1 = 2 * curve * recalls[:, None] / (curve + recalls[:, None] + 1e-16)
    best = f1.argmax(0)
    at = np.arange(len(present))
    per_class = {
        c: (float(precision[0, :, c].mean()), float(precision[:, :, c].mean()))
        for c in present
    }
    return Metrics(
        precision=float(curve[best, at].mean()),
        recall=float(np.where(curve[best, at] > 0, recalls[best], 0).mean()),
        map50=float(np.mean([v[0] for v in per_class.values()])),
        map=float(np.mean([v[1] for v in per_class.values()])),
        per_class=per_class,
    )


def _to_image(boxes: np.ndarray, shape: tuple) -> np.ndarray:
    """Letterboxed xyxy -> pixels of the original image, clipped. shape: dataset's."""
    (h0, w0), ((ratio_h, ratio_w), (pad_w, pad_h)) = shape
    boxes = (boxes - [pad_w, pad_h, pad_w, pad_h]) / [
        ratio_w,
        ratio_h,
        ratio_w,
        ratio_h,
    ]
    return boxes.clip(0, [w0, h0, w0, h0])


def _collect(
    collector: _Collector,
    prediction: np.ndarray,
    targets: np.ndarray,
    shapes: list[tuple],
    size: tuple[int, int],
) -> None:
    """Adds one batch: prediction (N, 4 + nc, A), targets (n, 6), size (H, W)."""
    height, width = size
    for i, (cells, shape) in enumerate(zip(prediction, shapes, strict=True)):
        found = detections(cells, limit=MAX_DETECTIONS)
        found[:, :4] = _to_image(found[:, :4], shape)
        mine = targets[targets[:, 0] == i, 1:].astype(np.float64)
        centre, half = mine[:, 1:3], mine[:, 3:5] / 2
        corners = np.concatenate((centre - half, centre + half), 1)
        corners = _to_image(corners * [width, height, width, height], shape)
        collector.add(np.concatenate((mine[:, :1], corners), 1), found)


@torch.no_grad()
def predict(
    model: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    loss: Callable | None,
    device: torch.device,
    autocast: dict,
) -> tuple[np.ndarray, torch.Tensor | None]:
    """(N, 4 + nc, A) of a model in eval mode for uint8 images, and (box, cls, dfl)."""
    images = images.to(device, non_blocking=True).float().div_(255)
    with torch.autocast(device.type, **autocast):
        prediction, levels = model(images)
    parts = None if loss is None else loss(levels, targets)[1].cpu()
    return prediction.float().cpu().numpy(), parts


@torch.no_grad()
def validate(
    model: nn.Module,
    loader: torch.utils.data.DataLoader,
    loss: Callable | None,
    device: torch.device,
    autocast: dict,
    quiet: bool = False,
) -> Metrics:
    """Metrics of a model over a loader of (images, targets, paths, shapes).

    The model's training flag is restored; autocast: arguments of torch.autocast.
    """
    training = model.training
    model.eval()
    collector, total, batches = _Collector(), torch.zeros(3), 0
    bar = tqdm(loader, desc="validation".rjust(11), disable=quiet, leave=False)
    for images, targets, _, shapes in bar:
        prediction, parts = predict(model, images, targets, loss, device, autocast)
        if parts is not None:
            total += parts
            batches += 1
        _collect(collector, prediction, targets.numpy(), shapes, images.shape[2:])
    model.train(training)
    nc = prediction.shape[1] - 4
    metrics = evaluate(collector, nc)
    metrics.losses = tuple((total / max(batches, 1)).tolist())
    return metrics
