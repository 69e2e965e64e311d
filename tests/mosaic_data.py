# SPDX-License-Identifier: MIT
"""Random tiles with labels and polygons for the tests of the mosaic, beside OpenCV."""

import random

import cv2
import numpy as np

from yolov9mem.augment import HYP_SCRATCH_HIGH

STRONG = HYP_SCRATCH_HIGH | {
    "degrees": 45.0,
    "shear": 20.0,
    "mixup": 0.5,
    "flipud": 0.5,
    "copy_paste": 0.6,
}


def make_segment(rng):
    """A polygon of 3 to 40 points, normalised, (points, 2) float32."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
    radius = rng.uniform(0.03, 0.4) * rng.uniform(0.4, 1, len(angle))
    middle = rng.uniform(0, 1, 2)
    points = middle + radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
    return points.clip(0, 1).astype(np.float32)


def make_data(rng, size, polygons, count=7):
    """Tiles (long side `size`), labels and segments."""
    images, labels, segments = [], [], []
    for i in range(count):
        short = int(rng.integers(max(size // 3, 2), size + 1))
        shape = (size, short) if i % 2 else (short, size)
        noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        noise[rng.random(shape) < 0.1] = rng.choice([0, 255])
        images.append(noise if i % 3 else cv2.blur(noise, (5, 5)))
        outlines = [make_segment(rng) for _ in range(rng.integers(0, 8))]
        low = np.array([s.min(0) for s in outlines], np.float32).reshape(-1, 2)
        high = np.array([s.max(0) for s in outlines], np.float32).reshape(-1, 2)
        kinds = rng.integers(0, 80, (len(outlines), 1)).astype(np.float32)
        labels.append(np.concatenate((kinds, (low + high) / 2, high - low), 1))
        segments.append(outlines if polygons else [])
    return images, labels, segments


def seed(number):
    random.seed(number)
    np.random.seed(number)
