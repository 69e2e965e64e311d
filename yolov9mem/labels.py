# SPDX-License-Identifier: MIT
"""Boxes and polygons through mosaic and warp, in float32 as YOLOv9 keeps them.

Labels are (n, 5): class, then a box. Boxes are xywh normalised to the image (centre and
size, 0 to 1) or xyxy in pixels. Source: utils/general.py and utils/augmentations.py of
WongKinYiu/yolov9; the order of operations is theirs, so results are equal bit for bit.
"""

from collections.abc import Sequence

import numpy as np

from yolov9mem import _core
from yolov9mem._checks import check_sequence
from yolov9mem.warp import Warp


def check_labels(labels: np.ndarray, name: str = "labels") -> np.ndarray:
    """`labels` as (n, 5) float32: class and normalised xywh.

    Raises ValueError for another shape, values that are not finite, negative, or boxes
    beyond 1; TypeError for what is no array of numbers.
    """
    try:
        array = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: are no array (n, 5): {error}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: dtype is {array.dtype}, must be numbers")
    if array.size == 0:
        return np.zeros((0, 5), np.float32)
    if array.ndim != 2 or array.shape[1] != 5:
        raise ValueError(f"{name}: shape is {array.shape}, must be (n, 5)")
    with np.errstate(over="ignore"):  # an infinity is refused below
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"{name}: row {row} has {array[row, column]}, must be finite")
    if (array < 0).any():
        raise ValueError(f"{name}: smallest value is {array.min()}, must be at least 0")
    if (array[:, 1:] > 1).any():
        worst = array[:, 1:].max()
        raise ValueError(f"{name}: a coordinate is {worst}, must be at most 1")
    return array


def check_segments(
    segments: Sequence[np.ndarray], count: int, name: str = "segments"
) -> list[np.ndarray]:
    """Polygons, (points, 2) each, as float32; none at all or one per label.

    Raises ValueError for another count or shape, or values that are not finite.
    """
    check_sequence(name, segments)
    if len(segments) not in (0, count):
        raise ValueError(f"{name}: {len(segments)} polygons for {count} labels")
    checked = []
    for i, given in enumerate(segments):
        try:
            array = np.asarray(given)
            if array.dtype.kind not in "fiu":  # text, times, the real part of a complex
                raise TypeError(f"its dtype is {array.dtype}, must be numbers")
            with np.errstate(over="ignore"):  # an infinity is refused below
                polygon = array.astype(np.float32, copy=False)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{name}: polygon {i} is no array (points, 2): {error}"
            ) from error
        checked.append(polygon)
        if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 1:
            raise ValueError(
                f"{name}: polygon {i} has shape {polygon.shape}, must be (points, 2)"
            )
        if not np.isfinite(polygon).all():
            worst = polygon[~np.isfinite(polygon)][0]
            raise ValueError(f"{name}: polygon {i} has {worst}, must be finite")
    return checked


def split_points(points: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """Views of the polygons that `points` is made of."""
    polygons, start = [], 0
    for length in lengths:
        polygons.append(points[start : start + length])
        start += length
    return polygons


def boxes_to_pixels(
    boxes: np.ndarray, width: float, height: float, left: float, top: float
) -> np.ndarray:
    """xywh normalised (n, 4) to xyxy pixels of an image placed at (left, top)."""
    pixels = np.copy(boxes)
    half_width, half_height = boxes[:, 2] / 2, boxes[:, 3] / 2
    pixels[:, 0] = width * (boxes[:, 0] - half_width) + left
    pixels[:, 1] = height * (boxes[:, 1] - half_height) + top
    pixels[:, 2] = width * (boxes[:, 0] + half_width) + left
    pixels[:, 3] = height * (boxes[:, 1] + half_height) + top
    return pixels


def outline_boxes(labels: np.ndarray) -> list[np.ndarray]:
    """The corners of each box within its image, (4, 2) normalised, of the labels' dtype.

    labels: (n, 5), class and normalised xywh.
    """
    boxes = boxes_to_pixels(labels[:, 1:5], 1, 1, 0, 0).clip(0, 1)
    return list(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))


def _clip_boxes(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """xyxy boxes (n, 4) cut off at the image; a new array of the same dtype."""
    limits = np.array((width, height, width, height), boxes.dtype)
    return np.minimum(np.maximum(boxes, 0), limits)


def normalise_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """xyxy pixels (n, 5) to normalised xywh, clipped to the image less 0.001 pixel."""
    boxes = _clip_boxes(labels[:, 1:5], width - 1e-3, height - 1e-3)
    low, high = boxes[:, :2], boxes[:, 2:]
    size = np.array((width, height), boxes.dtype)
    normal = np.copy(labels)
    normal[:, 1:3] = ((low + high) / 2) / size
    normal[:, 3:5] = (high - low) / size
    return normal


def _warp_boxes(boxes: np.ndarray, warp: Warp, height: int, width: int) -> np.ndarray:
    """The box around the four moved corners, (n, 4) float64, clipped to the image."""
    count = len(boxes)
    corners = np.ones((count * 4, 3))
    corners[:, :2] = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(count * 4, 2)
    moved = corners @ warp.matrix.T
    if warp.perspective:
        moved[:, :2] /= moved[:, 2:3]
    x = moved[:, 0].reshape(count, 4)
    y = moved[:, 1].reshape(count, 4)
    new = np.stack((x.min(1), y.min(1), x.max(1), y.max(1)), axis=1)
    return _clip_boxes(new, width, height)


def _warp_segments(
    segments: Sequence[np.ndarray], warp: Warp, height: int, width: int, count: int
) -> np.ndarray:
    """The box around what is inside the image of each polygon, (count, 4) float64."""
    if len(segments) != count:
        raise ValueError(f"segments: {len(segments)} polygons for {count} labels")
    matrix = tuple(warp.matrix.ravel().tolist())
    return np.array(
        _core.polygon_boxes(list(segments), matrix, warp.perspective, height, width)
    )


def _survives(
    before: np.ndarray, after: np.ndarray, smallest_part: float
) -> np.ndarray:
    """Which boxes, (4, n) before and after, are still worth learning from: (n,) bool.

    Both sides above 2 pixels, more than `smallest_part` of the area left, sides at most
    100 to 1. Source: box_candidates.
    """
    tiny = 1e-16
    width, height = after[2] - after[0], after[3] - after[1]
    old_area = (before[2] - before[0]) * (before[3] - before[1])
    aspect = np.maximum(width / (height + tiny), height / (width + tiny))
    kept = (width > 2) & (height > 2) & (aspect < 100)
    return kept & (width * height / (old_area + tiny) > smallest_part)


def warp_labels(
    labels: np.ndarray,
    segments: Sequence[np.ndarray],
    warp: Warp,
    image: tuple[int, int],
) -> np.ndarray:
    """Labels (n, 5) float32, xyxy canvas pixels, to those of the image.

    image: (height, width). With polygons, one per label, the new box is theirs, else that
    of the box's corners; boxes that mostly left the image are dropped.
    """
    count = len(labels)
    if count == 0:
        return labels
    height, width = image
    by_segments = any(s.any() for s in segments)
    if by_segments:
        new = _warp_segments(segments, warp, height, width, count)
    else:
        new = _warp_boxes(labels[:, 1:5], warp, height, width)
    kept = _survives(
        labels[:, 1:5].T * warp.scale, new.T, 0.01 if by_segments else 0.10
    )
    labels = labels[kept]
    labels[:, 1:5] = new[kept]
    return labels
