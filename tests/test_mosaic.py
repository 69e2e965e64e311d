# SPDX-License-Identifier: MIT
"""Mosaic, letterbox and all that follows, byte for byte against OpenCV and NumPy."""

import random

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the reference chain is made of OpenCV calls")

from mosaic_data import STRONG, make_data, seed  # noqa: E402
from official_chain import Chain, why_not_equal  # noqa: E402

from yolov9mem import _core  # noqa: E402
from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic  # noqa: E402

if why_not_equal():
    pytest.skip(why_not_equal(), allow_module_level=True)

PLAIN = dict.fromkeys(HYP_SCRATCH_HIGH, 0.0) | {"mosaic": 1.0}
CASES = {
    "official": HYP_SCRATCH_HIGH,
    "plain": PLAIN,
    "strong": STRONG,
    "perspective": STRONG | {"perspective": 0.001},
    "steep": STRONG | {"perspective": 0.02, "degrees": 180.0},
    "tiny": PLAIN | {"scale": 0.999, "hsv_h": 0.5},
    "huge": PLAIN | {"scale": 20.0, "translate": 5.0},
    "mixup": PLAIN | {"mixup": 1.0, "scale": 0.5},
    "hsv": PLAIN | {"hsv_h": 0.9, "hsv_s": 0.9, "hsv_v": 0.9},
    "half": STRONG | {"mosaic": 0.5},
}


def assert_equal_samples(chain, ours, count, first_seed=0):
    for i in range(count):
        index = i % len(chain.images)
        seed(first_seed + i)
        image, labels = chain.sample(index)
        after = random.random(), np.random.random()
        seed(first_seed + i)
        our_image, our_labels = ours.sample(index)
        assert (random.random(), np.random.random()) == after, "draws differ"
        np.testing.assert_array_equal(
            our_image, image, err_msg=f"seed {first_seed + i}"
        )
        assert our_labels.dtype == np.float32
        np.testing.assert_allclose(our_labels, labels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("polygons", [False, True], ids=["boxes", "polygons"])
@pytest.mark.parametrize("case", CASES)
def test_equals_official_chain(case, polygons):
    rng = np.random.default_rng(len(case))
    hyp = dict(CASES[case])
    for size in (64, 90):
        data = make_data(rng, size, polygons)
        ours = Mosaic(*data, image_size=size, hyp=hyp)
        assert_equal_samples(Chain(*data, size, hyp), ours, 8)


@pytest.mark.parametrize("case", ["official", "strong", "perspective"])
def test_nine_tiles_equal(case):
    rng = np.random.default_rng(9)
    data = make_data(rng, 64, True)
    hyp = dict(CASES[case])
    ours = Mosaic(*data, image_size=64, hyp=hyp, nine=True)
    assert_equal_samples(Chain(*data, 64, hyp, nine=True), ours, 12)


@pytest.mark.parametrize("case", ["official", "plain", "perspective"])
def test_letterbox_after_close_mosaic_equals(case):
    rng = np.random.default_rng(3)
    data = make_data(rng, 96, True)
    hyp = dict(CASES[case])
    ours = Mosaic(*data, image_size=96, hyp=hyp)
    ours.mosaic = False
    assert_equal_samples(Chain(*data, 96, hyp, mosaic=False), ours, 10)


def test_full_size_equals():
    rng = np.random.default_rng(5)
    data = make_data(rng, 640, True)
    hyp = dict(STRONG)
    ours = Mosaic(*data, image_size=640, hyp=hyp)
    assert_equal_samples(Chain(*data, 640, hyp), ours, 3)


@pytest.mark.parametrize("size", [2, 6, 14, 30, 32, 34, 62, 322, 350])
def test_awkward_sizes_equal(size):
    rng = np.random.default_rng(size)
    data = make_data(rng, size, True)
    for hyp in (STRONG, STRONG | {"perspective": 0.002}):
        ours = Mosaic(*data, image_size=size, hyp=hyp)
        assert_equal_samples(Chain(*data, size, dict(hyp)), ours, 4)


def random_scene(rng, image, warp_kind):
    """Overlapping and tiny tiles, a paste mask, any matrix: what no data set has."""
    height, width = (int(v) for v in rng.integers(1, 90, 2))
    if rng.random() < 0.05:
        width = 2700  # too wide for the way by rows
    if warp_kind == 0:
        height, width = image
    tiles = []
    for _ in range(rng.integers(0, 10)):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        tiles.append((rng.integers(0, 256, (h, w, 3), dtype=np.uint8), x, y))
    paste = None
    if rng.random() < 0.5:
        paste = rng.integers(0, 256, (height, (width + 7) // 8 + 8), dtype=np.uint8)
        paste[rng.random(paste.shape) < 0.5] = 255
    matrix = np.eye(3)
    matrix[:2] += rng.normal(0, 1, (2, 3)) * [1, 1, 30]
    matrix[2, :2] = rng.normal(0, 0.02, 2)
    if rng.random() < 0.5:
        matrix[0, 1] = matrix[1, 0] = 0  # rows stay level
    if rng.random() < 0.2:
        matrix *= rng.choice([1e-7, 1e7, 0.0])
    return (tuple(tiles), (height, width), warp_kind, tuple(matrix.ravel()), paste)


@pytest.mark.parametrize("backend", ["cpu", "cpu-plain", "cpu-avx2", "cpu-avx512"])
def test_backends_agree(backend):
    rng = np.random.default_rng(17)
    for number in range(240):
        image = tuple(int(v) for v in rng.integers(1, 400 if number < 10 else 80, 2))
        kind = number % 3
        scenes = tuple(random_scene(rng, image, kind) for _ in range(1 + number % 2))
        hsv = rng.integers(0, 180, (3, 256), dtype=np.uint8) if number % 4 else None
        ratio, flips = rng.random(), rng.integers(0, 2, 2).tolist()
        expected = np.empty((3, *image), np.uint8)
        _core.mosaic_render(expected, scenes, ratio, hsv, *flips, "ref")
        guarded = np.full(expected.size + 128, 77, np.uint8)
        out = guarded[64:-64].reshape(expected.shape)
        try:
            _core.mosaic_render(out, scenes, ratio, hsv, *flips, backend)
        except NotImplementedError as error:
            pytest.skip(str(error))
        np.testing.assert_array_equal(out, expected, err_msg=f"case {number}")
        assert (guarded[:64] == 77).all() and (guarded[-64:] == 77).all()


def every_colour(first_blue, blues=32):
    """An image (blues * 32, 2048, 3) of all colours with these values of blue."""
    counted = np.arange(first_blue << 16, (first_blue + blues) << 16, dtype=np.uint32)
    planes = np.stack((counted >> 16, counted >> 8, counted), -1)
    return planes.astype(np.uint8).reshape(-1, 2048, 3)


@pytest.mark.parametrize("backend", ["cpu-plain", "cpu-avx2", "cpu-avx512"])
def test_every_colour_equals_opencv(backend):
    """As it is, and with tables that reach what no picture's own values do."""
    ramp = np.arange(256)
    tables = [
        np.stack((ramp % 180, ramp, ramp)),
        np.stack(((ramp * 77 + 5) % 180, 255 - ramp, (ramp * 91 + 3) % 256)),
    ]
    for first_blue in range(0, 256, 32):
        image = every_colour(first_blue)
        planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
        scene = (((image, 0, 0),), image.shape[:2], 0, None, None)
        for table in tables:
            table = table.astype(np.uint8)
            new = cv2.merge([cv2.LUT(p, t) for p, t in zip(planes, table, strict=True)])
            expected = cv2.cvtColor(new, cv2.COLOR_HSV2BGR).transpose(2, 0, 1)[::-1]
            out = np.empty(expected.shape, np.uint8)
            try:
                _core.mosaic_render(out, (scene,), 1.0, table, False, False, backend)
            except NotImplementedError as error:
                pytest.skip(str(error))
            assert np.array_equal(out, expected), first_blue


def test_ends_of_rows_equal_opencv():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    hsv = np.stack([np.arange(256, dtype=np.uint8) % 180, *[np.arange(256)] * 2])
    hsv = hsv.astype(np.uint8)
    for width in (512, 500, 33, 31, 1):
        part = np.ascontiguousarray(image[:, :width])
        expected = cv2.cvtColor(part, cv2.COLOR_BGR2HSV)
        expected = cv2.cvtColor(expected, cv2.COLOR_HSV2BGR).transpose(2, 0, 1)[::-1]
        for backend in ("ref", "cpu", "cpu-plain"):
            out = np.empty((3, 512, width), np.uint8)
            scene = (((part, 0, 0),), (512, width), 0, None, None)
            _core.mosaic_render(out, (scene,), 1.0, hsv, False, False, backend)
            np.testing.assert_array_equal(out, expected)
