# SPDX-License-Identifier: MIT
"""The CUDA mosaic kernel, emulated on the CPU: byte for byte the "ref" backend's."""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest

from yolov9mem import _core

NONE, AFFINE, PERSPECTIVE = range(3)
LAUNCHES, WAITS = range(2)  # of ym_emulation_count
FLOAT = 2  # added to a kind: by the floats of OpenCV 5
SIZE = (37, 75)  # of the image: two whole blocks of 32 columns and a rest


@ce.mirrors("ym_tile")
class Tile(C.Structure):
    _fields_ = [("pixels", C.c_void_p), ("row_bytes", C.c_int64)]
    _fields_ += [(name, C.c_int32) for name in ("x", "y", "height", "width")]


@ce.mirrors("ym_scene")
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


@ce.mirrors("ym_mosaic_job")
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
            (AFFINE + FLOAT, 1),
            (PERSPECTIVE + FLOAT, 2),
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
        tilted = warp in (PERSPECTIVE, PERSPECTIVE + FLOAT)
        low = self.random.normal(0, 2e-3, 2) if tilted else (0, 0)
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


def test_a_large_batch_does_not_wait() -> None:
    """A table of more than 64 KB, which a driver copies in its own time at once."""
    few, count = Batch(7), 150
    many = (Job * count)(*(few.jobs[i % len(few.jobs)] for i in range(count)))
    made = np.full((count, 3, *SIZE), 7, np.uint8)
    for job, image in zip(many, made, strict=True):
        job.out = image.ctypes.data
    scratch = ce.scratch_bytes("cuda_mosaic", count)
    assert scratch > 65536
    before = [ce.library().ym_emulation_count(what) for what in (LAUNCHES, WAITS)]
    ce.call("cuda_mosaic_batch", many, count, scratch=scratch)
    after = [ce.library().ym_emulation_count(what) for what in (LAUNCHES, WAITS)]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0]
    truth = few.outputs()
    for job in few.jobs:
        ce.call("ref_mosaic", C.byref(job))
    for i, image in enumerate(made):
        np.testing.assert_array_equal(image, truth[i % len(few.jobs)])


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


def placed(array: np.ndarray, device: int = 0) -> tuple:
    """The array as the extension takes memory of a device; the emulated GPU's is ours."""
    strides = tuple(step // array.itemsize for step in array.strides)
    return array.ctypes.data, str(array.dtype), array.shape, strides, device


class Placed:
    """`placed`, and the arrays live as long as this does."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def __call__(self, array: np.ndarray) -> tuple:
        self.arrays.append(array)
        return placed(array)


def python_job(place, out: np.ndarray, /, **changes: object) -> tuple:
    """A job as Python gives it, of arrays that `place` puts where they belong."""
    random = np.random.default_rng(3)
    tile = random.integers(0, 256, (20, 30, 3), np.uint8)[:, :24]  # rows lie apart
    parts = {
        "out": place(out),
        "tile": (place(tile), 5, 7),
        "warp": AFFINE,
        "matrix": (0.9, 0.2, 3.0, -0.2, 0.9, 8.0, 0.0, 0.0, 1.0),
        "paste": place(random.integers(0, 256, (64, 16), np.uint8)),
        "hsv": place(random.integers(0, 180, (3, 256), np.uint8)),
    } | changes
    view = (parts["warp"], parts["matrix"], parts["paste"])
    scene = ((parts["tile"],), (64, 64), *view)
    return parts["out"], (scene,), 1.0, parts["hsv"], True, False


def launch(job: object) -> None:
    scratch = np.zeros(ce.scratch_bytes("cuda_mosaic", 1), np.uint8)
    ce.extension().mosaic_batch((job,), placed(scratch), 0)


def test_the_extension_takes_the_jobs_of_the_core() -> None:
    """Both parse them by the same code, csrc/python/mosaic_arguments.c."""
    expected, out = (np.zeros((3, 48, 40), np.uint8) for _ in range(2))
    place = Placed()
    _core.mosaic_render(*python_job(np.asarray, expected))
    launch(python_job(place, out))
    np.testing.assert_array_equal(out, expected)
    assert len(np.unique(out)) > 50


PIXELS = np.zeros((8, 8, 3), np.uint8)
BAD_JOBS = {
    "a number": ({}, TypeError, "a job must be a tuple"),
    "tile elsewhere": (
        {"tile": (placed(PIXELS, -1), 0, 0)},
        ValueError,
        "tile 0: is on device -1, must be on 0",
    ),
    "tile as an array": (
        {"tile": (PIXELS, 0, 0)},
        ValueError,
        "tile 0: is on device -1",
    ),
    "tile as a number": ({"tile": 5}, TypeError, "tile 0: must be a tuple"),
    "tile off the canvas": ({"tile": (placed(PIXELS), 60, 0)}, ValueError, "canvas"),
    "out elsewhere": (
        {"out": placed(np.zeros((3, 8, 8), np.uint8), 1)},
        ValueError,
        "out: is on device 1, must be on 0",
    ),
    "out of another type": (
        {"out": placed(np.zeros((3, 8, 8), np.float32))},
        TypeError,
        "out: dtype is float32, must be uint8",
    ),
    "hsv of another shape": (
        {"hsv": placed(np.zeros((3, 255), np.uint8))},
        ValueError,
        "hsv: shape is",
    ),
    "eight numbers": (
        {"matrix": (1.0,) * 8},
        TypeError,
        "matrix: must be a tuple of 9",
    ),
    "warp": ({"warp": 5}, ValueError, "warp is 5"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_bad_jobs(name: str) -> None:
    changes, error, message = BAD_JOBS[name]
    out = np.full((3, 48, 40), 7, np.uint8)
    place = Placed()
    with pytest.raises(error, match=message):
        launch(python_job(place, out, **changes) if changes else 5)
    assert (out == 7).all()
