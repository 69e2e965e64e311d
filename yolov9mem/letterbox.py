# SPDX-License-Identifier: MIT
"""One image on grey, as in the epochs after --close-mosaic and in validation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolov9mem._checks import check_image
from yolov9mem.images import resize_image
from yolov9mem.labels import boxes_to_pixels
from yolov9mem.scene import Canvas, Scene, make_scene
from yolov9mem.warp import Warp


@dataclass(frozen=True)
class Fit:
    """How an image is letterboxed: resized to (height, width), gaps left and above.

    A gap may end in a half: the labels count it, the pixels can't.
    """

    height: int
    width: int
    ratio: float
    gap_x: float
    gap_y: float


def letterbox_fit(
    image: tuple[int, int], size: Sequence[int], *, scale_up: bool = True
) -> Fit:
    """Fits an image (height, width) into `size` (height, width). Source: letterbox."""
    ratio = min(size[0] / image[0], size[1] / image[1])
    if not scale_up:
        ratio = min(ratio, 1.0)
    height, width = round(image[0] * ratio), round(image[1] * ratio)
    return Fit(height, width, ratio, (size[1] - width) / 2, (size[0] - height) / 2)


def letterbox_canvas(
    image: np.ndarray,
    labels: np.ndarray,
    size: Sequence[int],
    *,
    scale_up: bool = True,
) -> Canvas:
    """An image resized to fit and centred on a canvas of `size` (height, width).

    image: (h, w, 3) uint8 BGR. labels: (n, 5) float32, class and normalised xywh.
    """
    check_image("image", image)
    height, width = image.shape[:2]
    fit = letterbox_fit((height, width), size, scale_up=scale_up)
    if (fit.height, fit.width) != (height, width):
        image = resize_image(image, fit.height, fit.width)
    tile = (image, round(fit.gap_x - 0.1), round(fit.gap_y - 0.1))
    labels = labels.copy()
    if labels.size:
        labels[:, 1:] = boxes_to_pixels(
            labels[:, 1:], fit.ratio * width, fit.ratio * height, fit.gap_x, fit.gap_y
        )
    return Canvas([tile], (int(size[0]), int(size[1])), labels, [])


def letterbox_scene(
    image: np.ndarray,
    labels: np.ndarray,
    size: Sequence[int],
    warp: Warp | None = None,
    *,
    scale_up: bool = True,
) -> Scene:
    """A letterboxed image as a scene; a warp that moves nothing is left out.

    size: (height, width) of canvas and image. The boxes go through the warp even then.
    """
    canvas = letterbox_canvas(image, labels, size, scale_up=scale_up)
    scene = make_scene(canvas, warp, canvas.size)
    if warp is not None and warp.is_identity():
        scene.warp = None
    return scene
