# SPDX-License-Identifier: MIT
"""Random warps and colour tables, drawn in YOLOv9's order.

The draws come from Python's ``random`` and NumPy's legacy global generator, as in
utils/augmentations.py of WongKinYiu/yolov9, so that a seed gives the same picture.
"""

import functools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yolov9mem._checks import as_float, check_array, check_flag, check_real

HYP_SCRATCH_HIGH: Mapping[str, float] = {
    "hsv_h": 0.015,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "degrees": 0.0,
    "translate": 0.1,
    "scale": 0.9,
    "shear": 0.0,
    "perspective": 0.0,
    "flipud": 0.0,
    "fliplr": 0.5,
    "mosaic": 1.0,
    "mixup": 0.15,
    "copy_paste": 0.3,
}
"""Augmentation of YOLOv9's hyp.scratch-high.yaml."""


NO_WARP = 0
AFFINE, PERSPECTIVE = 1, 2
"""Kinds of `_core.mosaic_render`, by the integers of OpenCV 4."""
FLOAT = 2
"""Added to them: by the floats of OpenCV 5."""


@functools.cache
def opencv_major() -> int:
    """Whose warps ours equal, 4 or 5: this Python's cv2; 4 where there is none.

    From 5.0 on warpAffine and warpPerspective weigh in float; earlier ones round
    positions to 1/32 pixel.
    """
    try:
        import cv2
    except ImportError:
        return 4
    return 5 if int(cv2.__version__.partition(".")[0]) >= 5 else 4


_LARGEST_SCALE = 1e12  # the area of a scaled box stays within float32
_LARGEST_GAIN = 1e300  # 255 times it is finite


@dataclass(frozen=True)
class Warp:
    """How a canvas becomes an image.

    matrix: (3, 3) float64, canvas pixels to image pixels. scale: the zoom drawn, by
    which a source box is scaled before its area is compared. perspective: whether the
    third row counts.
    """

    matrix: np.ndarray
    scale: float = 1.0
    perspective: bool = False

    def check(self) -> None:
        """Raises TypeError or ValueError naming what breaks a rule."""
        check_array("warp: matrix", self.matrix)
        if self.matrix.shape != (3, 3):
            raise ValueError(
                f"warp: matrix has shape {self.matrix.shape}, must be (3, 3)"
            )
        if self.matrix.dtype.kind not in "fiu":
            raise TypeError(
                f"warp: matrix has dtype {self.matrix.dtype}, must be numbers"
            )
        if not np.isfinite(self.matrix).all():
            worst = self.matrix[~np.isfinite(self.matrix)][0]
            raise ValueError(f"warp: matrix has {worst}, must be finite")
        check_flag("warp: perspective", self.perspective)
        check_real("warp: scale", self.scale)
        if not abs(as_float(self.scale)) <= _LARGEST_SCALE:
            raise ValueError(
                f"warp: scale is {self.scale}, must be finite and at most "
                f"{_LARGEST_SCALE:g} from 0"
            )

    def kind(self) -> int:
        """As `_core.mosaic_render` takes it."""
        made = PERSPECTIVE if self.perspective else AFFINE
        return made + FLOAT if opencv_major() >= 5 else made

    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return bool((self.matrix == np.eye(3)).all())


def _rotation(degrees: float, scale: float) -> np.ndarray:
    """(3, 3): cv2.getRotationMatrix2D about the origin."""
    angle = degrees * (math.pi / 180)
    alpha, beta = math.cos(angle) * scale, math.sin(angle) * scale
    return np.array([[alpha, beta, 0.0], [-beta, alpha, 0.0], [0.0, 0.0, 1.0]])


def draw_warp(
    hyp: Mapping[str, float], canvas: tuple[int, int], image: tuple[int, int]
) -> Warp:
    """Draws perspective, rotation, zoom, shear and shift: eight numbers, always.

    hyp: gains "perspective", "degrees", "scale", "shear", "translate". canvas, image:
    (height, width) in pixels. Source: random_perspective.
    """

    def around(middle: float, gain: float) -> float:
        return random.uniform(middle - gain, middle + gain)

    center = np.eye(3)
    center[0, 2], center[1, 2] = -canvas[1] / 2, -canvas[0] / 2
    tilt = np.eye(3)
    tilt[2, 0] = around(0, hyp["perspective"])
    tilt[2, 1] = around(0, hyp["perspective"])
    degrees = around(0, hyp["degrees"])
    scale = around(1, hyp["scale"])
    shear = np.eye(3)
    shear[0, 1] = math.tan(around(0, hyp["shear"]) * math.pi / 180)
    shear[1, 0] = math.tan(around(0, hyp["shear"]) * math.pi / 180)
    shift = np.eye(3)
    shift[0, 2] = around(0.5, hyp["translate"]) * image[1]
    shift[1, 2] = around(0.5, hyp["translate"]) * image[0]
    matrix = shift @ shear @ _rotation(degrees, scale) @ tilt @ center
    return Warp(matrix, scale, bool(hyp["perspective"]))


def hsv_tables(gains: np.ndarray) -> np.ndarray:
    """(3, 256) uint8: new hue, saturation and value for factors `gains` (3,).

    NumPy's own float64 arithmetic, then truncated. Source: augment_hsv. Raises
    ValueError for other shapes and for what is no number up to 1e300 from 0.
    """
    try:
        factors = np.asarray(gains, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"gains: must be 3 numbers: {error}") from error
    if factors.shape != (3,) or not (abs(factors) <= _LARGEST_GAIN).all():
        raise ValueError(
            f"gains: are {gains!r}, must be 3 finite numbers, at most "
            f"{_LARGEST_GAIN:g} from 0"
        )
    tables = np.arange(256) * factors[:, None]
    tables[0] %= 180
    np.clip(tables[1:], 0, 255, out=tables[1:])
    return tables.astype(np.uint8)


def draw_hsv(hyp: Mapping[str, float]) -> np.ndarray | None:
    """Draws the colour tables; None, and no draw, if all three gains are 0."""
    gains = [hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"]]
    if not any(gains):
        return None
    return hsv_tables(np.random.uniform(-1, 1, 3) * gains + 1)
