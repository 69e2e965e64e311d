# SPDX-License-Identifier: MIT
"""Copy-paste: objects mirrored within the canvas, as one bit a pixel."""

import random
from collections.abc import Sequence

import numpy as np

from yolov9mem import _core
from yolov9mem.labels import split_points


def mirror_boxes(labels: np.ndarray, width: int) -> np.ndarray:
    """(n, 4) xyxy of each box of labels (n, 5) mirrored in a canvas of this width."""
    left, right = width - labels[:, 3], width - labels[:, 1]
    return np.stack((left, labels[:, 2], right, labels[:, 4]), axis=-1)


def _covered_part(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m): the part of each of `others` (m, 4) that a box of `boxes` hides."""

    def overlap(low: int, high: int) -> np.ndarray:
        upper = np.minimum(boxes[:, high, None], others[:, high])
        return (upper - np.maximum(boxes[:, low, None], others[:, low])).clip(0)

    area = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1]) + 1e-7
    return overlap(0, 2) * overlap(1, 3) / area


def draw_paste(labels: np.ndarray, width: int, part: float) -> list[int]:
    """Draws which objects to paste: `part` of those that hide little when mirrored.

    labels: (n, 5) float32, xyxy canvas pixels. Source: copy_paste of YOLOv9.
    """
    covered = _covered_part(mirror_boxes(labels, width), labels[:, 1:5])
    free = np.nonzero((covered < 0.30).all(1))[0].tolist()
    return random.sample(free, k=round(part * len(free)))


def paste_objects(
    labels: np.ndarray,
    segments: Sequence[np.ndarray],
    chosen: Sequence[int],
    canvas: tuple[int, int],
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """Labels and polygons with the mirrored objects added, and the mask of the objects.

    segments: one polygon (points, 2) in canvas pixels per label. canvas: (height,
    width). Mask: (height, ceil(width / 8) + 8) uint8, lowest bit first, of the objects
    where they are (not mirrored); None if none was chosen. Raises ValueError if a
    chosen label has no polygon.
    """
    segments = list(segments)
    if len(chosen) == 0:
        return labels, segments, None
    if min(chosen) < 0:
        raise ValueError(f"copy_paste: label is {min(chosen)}, must be at least 0")
    if max(chosen) >= len(segments):
        raise ValueError(
            f"copy_paste: label {max(chosen)} has no polygon, there are {len(segments)}"
            f" for {len(labels)} labels"
        )
    height, width = canvas
    chosen = list(chosen)  # NumPy reads a tuple as a place in several dimensions
    outlines = [segments[i] for i in chosen]
    mask = np.zeros((height, (width + 7) // 8 + 8), np.uint8)
    _core.polygon_fill(mask, width, outlines)
    mirrored = np.concatenate(outlines)
    mirrored[:, 0] = width - mirrored[:, 0]
    segments += split_points(mirrored, [len(outline) for outline in outlines])
    added = np.concatenate(
        (labels[chosen, :1], mirror_boxes(labels, width)[chosen]), axis=1
    )
    return np.concatenate((labels, added)), segments, mask
