# SPDX-License-Identifier: MIT
"""Non-maximum suppression in NumPy."""

import numpy as np

MAX_CANDIDATES = 30000


def suppress(
    boxes: np.ndarray, scores: np.ndarray, threshold: float, limit: int
) -> np.ndarray:
    """Indices of the boxes that stay, best first, at most `limit`.

    boxes (n, 4) xyxy, scores (n,). A box goes when its IoU with a better one that
    stays is above `threshold`.
    """
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    x1, y1, x2, y2 = boxes[order].astype(np.float64).T
    area = (x2 - x1) * (y2 - y1)
    alive = np.ones(len(order), dtype=bool)
    keep: list[int] = []
    at = 0
    while len(keep) < limit:
        rest = np.flatnonzero(alive[at:])
        if len(rest) == 0:
            break
        at += int(rest[0])
        keep.append(at)
        width = np.minimum(x2[at:], x2[at]) - np.maximum(x1[at:], x1[at])
        height = np.minimum(y2[at:], y2[at]) - np.maximum(y1[at:], y1[at])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        union = area[at:] + area[at] - overlap
        alive[at:] &= overlap <= threshold * union
        alive[at] = False
    return order[keep]


def detections(
    prediction: np.ndarray,
    confidence: float = 0.001,
    threshold: float = 0.7,
    limit: int = 300,
) -> np.ndarray:
    """(4 + nc, A) xywh and class scores of one image -> (n, 6) xyxy, score, class.

    A cell may give several classes; boxes of different classes do not suppress each
    other. Values that are not finite are dropped.
    """
    prediction = prediction[:, np.isfinite(prediction).all(0)]
    label, cell = np.nonzero(prediction[4:] > confidence)
    if len(cell) == 0:
        return np.zeros((0, 6), dtype=np.float32)
    x, y, w, h = prediction[:4, cell]
    boxes = np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1)
    scores = prediction[4 + label, cell]
    apart = label[:, None] * (boxes.max() - boxes.min() + 1.0)
    keep = suppress(boxes + apart, scores, threshold, limit)
    return np.concatenate((boxes, scores[:, None], label[:, None]), 1)[keep]
