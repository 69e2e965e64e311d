# SPDX-License-Identifier: MIT
"""Scenes: tiles on a canvas that is never made, and their labels.

A scene becomes pixels in `render`, one pass from the tiles to the finished image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolov9mem import _core
from yolov9mem._checks import check_bytes, check_flag, check_real, check_text
from yolov9mem.copy_paste import paste_objects
from yolov9mem.labels import outline_boxes, warp_labels
from yolov9mem.warp import NO_WARP, Warp

Tile = tuple[np.ndarray, int, int]
"""An image (h, w, 3) uint8 BGR and where its first pixel lies: x, y."""


@dataclass
class Canvas:
    """Tiles and what they show.

    tiles: wholly on the canvas; later ones hide earlier ones. size: (height, width).
    labels: (n, 5) float32, class and xyxy canvas pixels. segments: polygons (points, 2)
    in canvas pixels.
    """

    tiles: list[Tile]
    size: tuple[int, int]
    labels: np.ndarray
    segments: list[np.ndarray]


@dataclass
class Scene:
    """A canvas seen through a warp.

    warp: None if the canvas is the image. paste: bits of what is mirrored, see
    `paste_objects`. labels: (n, 5) float32, class and xyxy image pixels.
    """

    canvas: Canvas
    warp: Warp | None
    paste: np.ndarray | None
    labels: np.ndarray

    def packed(self) -> tuple[object, ...]:
        """The form that `_core.mosaic_render` takes."""
        kind, matrix = NO_WARP, None
        if self.warp is not None:
            kind = self.warp.kind()
            matrix = tuple(self.warp.matrix.ravel().tolist())
        return (tuple(self.canvas.tiles), self.canvas.size, kind, matrix, self.paste)


def put_tile(image: np.ndarray, x: int, y: int, size: tuple[int, int]) -> list[Tile]:
    """The part of an image placed at (x, y) that a canvas (height, width) shows.

    A view, not a copy; an empty list if nothing is seen.
    """
    height, width = image.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size[1]), min(y + height, size[0])
    if right <= left or bottom <= top:
        return []
    return [(image[top - y : bottom - y, left - x : right - x], left, top)]


def _one_per_label(
    labels: Sequence[np.ndarray], segments: Sequence[Sequence[np.ndarray]]
) -> Sequence[Sequence[np.ndarray]]:
    """The polygons, and outlines of boxes for images without where another has some.

    They are joined, and a label is matched with its polygon by its place among all.
    """
    if not any(map(len, segments)):
        return segments
    return [
        outlines if len(outlines) else outline_boxes(boxes)
        for boxes, outlines in zip(labels, segments, strict=True)
    ]


def place_labels(
    labels: Sequence[np.ndarray],
    segments: Sequence[Sequence[np.ndarray]],
    images: Sequence[np.ndarray],
    places: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Normalised labels and polygons of images placed at (x, y), in canvas pixels.

    Returns all labels, (n, 5) float32 xyxy, the points of all polygons, (m, 2) float32,
    and how many points each polygon has. If any image has polygons, the boxes of images
    without are outlined, so that each label has its own.
    """
    segments = _one_per_label(labels, segments)
    # An image without labels keeps its polygons as they are, as there.
    frames = np.array(
        [
            (*tile.shape[1::-1], *at) if len(boxes) else (1, 1, 0, 0)
            for tile, boxes, at in zip(images, labels, places, strict=True)
        ],
        np.float32,
    )
    joined = np.concatenate(labels)
    if len(joined):
        frame = frames.repeat([len(boxes) for boxes in labels], axis=0)
        scale, shift = frame[:, :2], frame[:, 2:]
        middle, half = joined[:, 1:3].copy(), joined[:, 3:5] / 2
        joined[:, 1:3] = scale * (middle - half) + shift
        joined[:, 3:5] = scale * (middle + half) + shift
    counts = [[len(outline) for outline in outlines] for outlines in segments]
    lengths = [length for of_tile in counts for length in of_tile]
    points = np.zeros((0, 2), np.float32)
    if lengths:
        frame = frames.repeat([sum(of_tile) for of_tile in counts], axis=0)
        points = np.concatenate(
            [outline for outlines in segments for outline in outlines]
        )
        points = frame[:, :2] * points + frame[:, 2:]
    return joined, points, lengths


def make_scene(
    canvas: Canvas, warp: Warp | None, image: tuple[int, int], paste: Sequence[int] = ()
) -> Scene:
    """Pastes the chosen objects and warps the labels. image: (height, width)."""
    labels, segments, mask = paste_objects(
        canvas.labels, canvas.segments, paste, canvas.size
    )
    if warp is not None:
        labels = warp_labels(labels, segments, warp, image)
    return Scene(canvas, warp, mask, labels)


def render(
    scene: Scene,
    image: tuple[int, int],
    *,
    partner: Scene | None = None,
    ratio: float = 0.5,
    hsv: np.ndarray | None = None,
    flip_vertical: bool = False,
    flip_horizontal: bool = False,
    out: np.ndarray | None = None,
    backend: str = "cpu",
) -> np.ndarray:
    """The finished picture, (3, height, width) uint8 RGB.

    partner: blended in (mixup), `ratio` being the part of `scene`. hsv: (3, 256) uint8
    tables, see `hsv_tables`. out: written and returned, made if None. Raises ValueError
    or TypeError naming the tile or argument that breaks a rule, such as an `out` that
    shares memory with what is read.
    """
    if out is None:
        out = np.empty((3, *image), np.uint8)
    check_bytes("out", out)
    if out.shape != (3, *image):
        raise ValueError(f"out: shape is {out.shape}, must be {(3, *image)}")
    if hsv is not None:
        check_bytes("hsv", hsv)
    check_real("ratio", ratio)
    if partner is not None and not 0 <= ratio <= 1:
        raise ValueError(f"mosaic: the mixup ratio is {ratio}, must be 0 to 1")
    check_flag("flip_vertical", flip_vertical)
    check_flag("flip_horizontal", flip_horizontal)
    check_text("backend", backend)
    scenes = tuple(s.packed() for s in (scene, partner) if s is not None)
    part = 1.0 if partner is None else float(ratio)
    _core.mosaic_render(out, scenes, part, hsv, flip_vertical, flip_horizontal, backend)
    return out
