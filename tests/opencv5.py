# SPDX-License-Identifier: MIT
"""warpAffine and warpPerspective of OpenCV 5 in NumPy: 8-bit, bilinear, grey border.

Written from what cv2 5.0 gives on a CPU with AVX2, to which it is equal byte for byte
(test_mosaic_opencv5.py, where that is installed): so that its arithmetic is tested where
it is not.
"""

import numpy as np

F32 = np.float32
GROUP = 16  # columns; what is left over of a row is added up in another order


def fused(a, b, c):
    """a * b + c with one rounding: doubles hold products of floats exactly."""
    return (np.multiply(a, b, dtype=np.float64) + c).astype(F32)


def product(row, x, y, tail):
    """A row of the inverse matrix times (x, y, 1), as (height, width) float32."""
    slope, of_y, offset = (F32(value) for value in row)
    if tail:
        return fused(x, slope, y * of_y) + offset
    return fused(slope, x, y * of_y + offset)


def positions(inverse, size, perspective):
    """x and y on the canvas of each pixel of an image (height, width)."""
    x = np.arange(size[1], dtype=F32)[None]
    y = np.arange(size[0], dtype=F32)[:, None]
    rows = np.reshape(inverse, (3, 3))
    first = size[1] - size[1] % GROUP
    made = [
        np.concatenate(
            (
                product(row, x[:, :first], y, False),
                product(row, x[:, first:], y, True),
            ),
            1,
        )
        for row in (rows if perspective else rows[:2])
    ]
    if perspective:
        made = [made[0] / made[2], made[1] / made[2]]
    return made


def look_up(canvas, x, y, fill=114):
    """Pixels (h, w, 3) as float32."""
    height, width = canvas.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = canvas[y.clip(0, height - 1), x.clip(0, width - 1)].astype(F32)
    found[~inside] = fill
    return found


def warp(canvas, inverse, size, perspective):
    """The image (height, width, 3) uint8."""
    at_x, at_y = positions(inverse, size, perspective)
    x, y = (np.floor(at).astype(np.int64) for at in (at_x, at_y))
    fx, fy = ((at - c.astype(F32))[..., None] for at, c in ((at_x, x), (at_y, y)))
    upper, upper_right = look_up(canvas, x, y), look_up(canvas, x + 1, y)
    lower, lower_right = look_up(canvas, x, y + 1), look_up(canvas, x + 1, y + 1)
    upper = fused(fx, upper_right - upper, upper)
    lower = fused(fx, lower_right - lower, lower)
    return np.rint(fused(fy, lower - upper, upper)).astype(np.uint8)
