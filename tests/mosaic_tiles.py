# SPDX-License-Identifier: MIT
"""Small tiles, labels and a polygon for the tests of the mosaic."""

import numpy as np

SIZE = 64


def make_tiles(count=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(SIZE, 40), (50, SIZE), (SIZE, SIZE), (33, SIZE)]
    return [
        rng.integers(0, 256, (*shapes[i % 4], 3), dtype=np.uint8) for i in range(count)
    ]


def make_labels(count=4):
    box = np.array([[1, 0.5, 0.5, 0.5, 0.5]], np.float32)
    return [box.copy() for _ in range(count)]


TRIANGLE = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.7]], np.float32)
