# SPDX-License-Identifier: MIT
"""Mosaics whose batches the CPU and a GPU make alike."""

from __future__ import annotations

import random

import numpy as np

from yolov9mem.augment import Mosaic

SIZE = 32
HYPS = {
    "affine": {"scale": 0.9, "degrees": 20.0, "shear": 5.0},
    "perspective": {"perspective": 1e-3, "scale": 0.5},
    "mixup and copy-paste": {"mixup": 1.0, "copy_paste": 1.0, "flipud": 0.5},
    "letterbox": {"mosaic": 0.0, "degrees": 30.0},
}


def make_mosaic(hyp: dict, nine: bool = False) -> Mosaic:
    draw = np.random.default_rng(3)
    images, labels, segments = [], [], []
    for _ in range(8):
        h, w = (int(n) for n in draw.integers(SIZE // 3, SIZE + 1, 2))
        images.append(draw.integers(0, 256, (h, w, 3), dtype=np.uint8))
        boxes = draw.uniform(0.3, 0.6, (3, 5)).astype(np.float32)
        boxes[:, 0] = draw.integers(0, 5, 3)
        labels.append(boxes)
        segments.append(
            [draw.uniform(0.1, 0.9, (6, 2)).astype(np.float32) for _ in boxes]
        )
    return Mosaic(images, labels, segments, image_size=SIZE, hyp=hyp, nine=nine)


def samples(data, count: int = 4):
    random.seed(5)
    np.random.seed(5)
    return data.collate_fn([data[i] for i in range(count)])
