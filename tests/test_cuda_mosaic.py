# SPDX-License-Identifier: MIT
"""The CUDA mosaic kernel, emulated on the CPU: byte for byte the "ref" backend's."""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest

NONE, AFFINE, PERSPECTIVE = range(3)
SIZE = (37, 75)  # of the image: two whole blocks of 32 columns and a rest


class Tile(C.Structure):
    _fields_ = [("pixels", C.c_void_p), ("row_bytes", C.c_int64)]
    _fields_ += [(name, C.c_int32) for name in ("x", "y", "height", "width")]


class Scene(C.Structure):
    _fields_ = [
        ("tile", Tile * 9),
        ("tile_count", C.c_int32),
        ("height", C.c_int32),
        ("width", C.c_int32),
        ("warp", C.c_int),
        ("inverse", C.c_double * 9),
        ("paste", C.c_void_p),
        ("paste_row_bytes", C.c_int64),
    ]


class Job(C.Structure):
    _fields_ = [
        ("scene", Scene * 2),
        ("scene_count", C.c_int32),
        ("ratio", C.c_double),
        ("hsv", C.c_void_p),
        ("flip_vertical", C.c_bool),
        ("flip_horizontal", C.c_bool),
        ("out", C.c_void_p),
        ("height", C.c_int32),
        ("width", C.c_int32),
        ("simd", C.c_int),
    ]


class Batch:
    """Random jobs of every kind; the arrays live as long as this does."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.arrays: list[np.ndarray] = []
        kinds = [
            (NONE, 1),
            (AFFINE, 1),
            (PERSPECTIVE, 1),
            (AFFINE, 2),
            (PERSPECTIVE, 2),
        ]
        self.jobs = (Job * len(kinds))()
        for job, (warp, scenes) in zip(self.jobs, kinds, strict=True):
            self.fill(job, warp, scenes)

    def bytes(self, *shape: int) -> np.ndarray:
        made = self.random.integers(0, 256, shape, dtype=np.uint8)
        self.arrays.append(made)
        return made

    def fill(self, job: Job, warp: int, scenes: int) -> None:
        job.height, job.width = SIZE
        job.scene_count, job.ratio = scenes, self.random.random()
        job.flip_vertical, job.flip_horizontal = self.random.random(2) < 0.5
        for scene in job.scene[:scenes]:
            self.fill_scene(scene, warp)
        if self.random.random() < 0.8:
            hsv = self.bytes(3, 256)
            hsv[0] %= 180
            job.hsv = hsv.ctypes.data

    def fill_scene(self, scene: Scene, warp: int) -> None:
        scene.warp = warp
        h, w = SIZE if warp == NONE else (2 * SIZE[0], 2 * SIZE[1])
        scene.height, scene.width, scene.tile_count = h, w, 4
        for tile in scene.tile[:4]:
            height, width = (int(self.random.integers(1, s + 1)) for s in (h, w))
            pixels = self.bytes(height, width, 3)
            tile.pixels, tile.row_bytes = pixels.ctypes.data, width * 3
            tile.height, tile.width = height, width
            tile.y = int(self.random.integers(0, h - height + 1))
            tile.x = int(self.random.integers(0, w - width + 1))
        turn, size = self.random.normal(0, 0.4), self.random.uniform(0.5, 3)
        cos, sin = size * np.cos(turn), size * np.sin(turn)
        low = self.random.normal(0, 2e-3, 2) if warp == PERSPECTIVE else (0, 0)
        scene.inverse[:] = (cos, -sin, 20.3, sin, cos, -15.7, *low, 1)
        if self.random.random() < 0.5:
            paste = self.bytes(h, (w + 7) // 8)
            scene.paste, scene.paste_row_bytes = paste.ctypes.data, paste.shape[1]

    def outputs(self) -> np.ndarray:
        """New memory for all images."""
        out = np.full((len(self.jobs), 3, *SIZE), 7, np.uint8)
        for job, image in zip(self.jobs, out, strict=True):
            job.out = image.ctypes.data
        return out


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_in_one_launch(seed: int) -> None:
    batch = Batch(seed)
    truth = batch.outputs()
    for job in batch.jobs:
        ce.call("ref_mosaic", C.byref(job))
    made = batch.outputs()
    scratch = ce.scratch_bytes("cuda_mosaic", len(batch.jobs))
    ce.call("cuda_mosaic_batch", batch.jobs, len(batch.jobs), scratch=scratch)
    np.testing.assert_array_equal(made, truth)
    assert len(np.unique(made)) > 100


def test_a_captured_stream_is_refused() -> None:
    batch = Batch(0)
    made = batch.outputs()
    scratch = ce.scratch_bytes("cuda_mosaic", 1)
    ce.library().ym_emulation_capture(1)
    try:
        with pytest.raises(ce.Failed, match="being captured.*before the capture"):
            ce.call("cuda_mosaic_batch", batch.jobs, 1, scratch=scratch)
    finally:
        ce.library().ym_emulation_capture(0)
    assert (made == 7).all()
