# SPDX-License-Identifier: MIT
"""The parts of the mosaic by themselves: resize, polygons, warps, look-up tables."""

import os
import random
import zlib

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the parts are compared with OpenCV")

from official_chain import segment_boxes, why_not_equal  # noqa: E402

from yolov9mem import _core  # noqa: E402
from yolov9mem.images import read_image, resize_image, resize_to_fit  # noqa: E402
from yolov9mem.letterbox import letterbox_fit  # noqa: E402
from yolov9mem.warp import HYP_SCRATCH_HIGH, draw_hsv, draw_warp, hsv_tables  # noqa: E402

if why_not_equal():
    pytest.skip(why_not_equal(), allow_module_level=True)


def test_resize_equals_opencv():
    rng = np.random.default_rng(0)
    for number in range(200):
        height, width, new_height, new_width = (int(v) for v in rng.integers(1, 90, 4))
        if number % 5 == 0:
            height, width = 2 * new_height, 2 * new_width
        if number % 7 == 0:
            height = 2 * new_height
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        before = image.copy()
        expected = cv2.resize(image, (new_width, new_height))
        np.testing.assert_array_equal(
            resize_image(image, new_height, new_width), expected
        )
        np.testing.assert_array_equal(image, before)


def test_resize_reads_windows():
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    window = image[10:41, 20:63]
    expected = cv2.resize(window, (50, 70))
    np.testing.assert_array_equal(resize_image(window, 70, 50), expected)


def test_resize_to_fit_truncates_as_yolov9():
    image = np.zeros((480, 639, 3), np.uint8)
    assert resize_to_fit(image, 640).shape == (480, 640, 3)
    assert resize_to_fit(image, 639) is image
    assert resize_to_fit(np.zeros((3, 1000, 3), np.uint8), 640).shape == (1, 640, 3)
    with pytest.raises(ValueError, match="sides must be at least 1"):
        resize_to_fit(np.zeros((1, 1000, 3), np.uint8), 640)
    with pytest.raises(
        TypeError, match=r"image_size: is 640\.5, must be a whole number"
    ):
        resize_to_fit(image, 640.5)


def filled(points, height, width):
    bits = np.zeros((height, (width + 7) // 8), np.uint8)
    _core.polygon_fill(bits, width, [points])
    return np.unpackbits(bits, axis=1, bitorder="little")


@pytest.mark.parametrize("kind", ["inside", "border", "outside", "round", "dots"])
def test_polygon_fill_equals_draw_contours(kind):
    rng = np.random.default_rng(len(kind))
    for number in range(300):
        height, width = (int(v) for v in rng.integers(1, 120, 2))
        count = int(rng.integers(1, 30))
        if kind == "inside":
            points = rng.uniform(0, 1, (count, 2)) * [width, height]
        elif kind == "dots":
            points = rng.integers(0, 6, (count, 2))
        elif kind == "round":
            angle = np.sort(rng.uniform(0, 2 * np.pi, count))
            radius = rng.uniform(5, 90, (count, 1))
            points = 60 + radius * np.stack((np.cos(angle), np.sin(angle)), 1)
            points = points.clip(0, [width, height])
        else:
            points = rng.uniform(-60, 180, (count, 2))
            if kind == "border":
                points = points.clip(0, [width, height])
        points = points.astype(np.float32 if number % 2 else np.float64)
        expected = np.zeros((height, width), np.uint8)
        cv2.drawContours(expected, [points.astype(np.int32)], -1, 1, cv2.FILLED)
        bits = filled(points, height, width)
        np.testing.assert_array_equal(bits[:, :width], expected, err_msg=str(points))
        assert not bits[:, width:].any()


@pytest.mark.parametrize("perspective", [False, True])
def test_polygon_boxes(perspective):
    rng = np.random.default_rng(3)
    for _ in range(40):
        outlines = [
            rng.uniform(-50, 1400, (n, 2)).clip(0, 1280).astype(np.float32)
            for n in rng.integers(1, 80, 5)
        ]
        matrix = np.eye(3)
        matrix[:2] = rng.normal(0, 1, (2, 3)) * [1, 1, 300]
        if perspective:
            matrix[2, :2] = rng.normal(0, 1e-4, 2)
        expected = segment_boxes(outlines, matrix, perspective, 640, len(outlines))
        boxes = _core.polygon_boxes(
            outlines, tuple(matrix.ravel()), perspective, 640, 640
        )
        np.testing.assert_allclose(boxes, expected, atol=1e-9, rtol=0)


def test_polygon_that_left_the_image_has_no_box():
    outline = np.array([[10, 10], [20, 10], [15, 20]], np.float32)
    away = (1.0, 0, 5000, 0, 1, 0, 0, 0, 1)
    assert _core.polygon_boxes([outline], away, False, 640, 640) == [(0, 0, 0, 0)]


def test_warp_draws_eight_numbers_even_if_all_gains_are_zero():
    hyp = dict.fromkeys(HYP_SCRATCH_HIGH, 0.0)
    random.seed(4)
    warp = draw_warp(hyp, (128, 128), (64, 64))
    after = random.random()
    random.seed(4)
    for _ in range(8):
        random.random()
    assert random.random() == after
    expected = [[1, 0, -32], [0, 1, -32], [0, 0, 1]]
    np.testing.assert_array_equal(warp.matrix, expected)
    assert not warp.perspective
    assert draw_warp(hyp, (64, 64), (64, 64)).is_identity()


def test_hsv_tables():
    identity = np.arange(256)
    tables = hsv_tables(np.ones(3))
    np.testing.assert_array_equal(tables[0], identity % 180)
    np.testing.assert_array_equal(tables[1:], [identity] * 2)
    assert hsv_tables(np.array([1, 2, 2.0])).max() == 255
    np.random.seed(0)
    before = np.random.get_state()[2]
    assert draw_hsv(dict.fromkeys(HYP_SCRATCH_HIGH, 0.0)) is None
    assert np.random.get_state()[2] == before


@pytest.mark.parametrize("gains", [[1, 1], [1, np.nan, 1], ["a"] * 3, np.ones((3, 2))])
def test_hsv_tables_are_of_three_finite_gains(gains):
    with pytest.raises(ValueError, match=r"gains: [\s\S]* 3 "):
        hsv_tables(gains)


def test_letterbox_gaps_may_be_halves():
    fit = letterbox_fit((100, 201), (640, 640))
    assert (fit.height, fit.width, fit.gap_y) == (318, 640, 161.0)
    fit = letterbox_fit((101, 200), (640, 640))
    assert (fit.height, fit.gap_y) == (323, 158.5)
    assert letterbox_fit((50, 50), (640, 640), scale_up=False).ratio == 1.0


def test_read_image(tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image)
    np.testing.assert_array_equal(read_image(file), image)
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        read_image(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match="image .* is no file"):
        read_image(tmp_path)
    broken = tmp_path / "c.jpg"
    broken.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ValueError, match=r"c\.jpg"):
        read_image(broken)


def test_a_file_name_may_be_any_bytes(tmp_path):
    """cv2.imread ends the process where a name is no UTF-8, as from an old archive."""
    image = np.random.default_rng(2).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    plain, odd = tmp_path / "a.png", tmp_path / os.fsdecode(b"\xe4\xff.png")
    cv2.imwrite(str(plain), image)
    odd.write_bytes(plain.read_bytes())
    np.testing.assert_array_equal(read_image(odd), image)
    for content in (b"", b"no image"):
        odd.write_bytes(content)
        with pytest.raises(ValueError, match="OpenCV can't read it"):
            read_image(odd)


@pytest.mark.parametrize("decoder", ["cv2", "PIL"])
def test_an_image_beyond_the_decoder_s_limit_is_named(tmp_path, monkeypatch, decoder):
    pytest.importorskip(decoder)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.zeros((8, 8, 3), np.uint8))
    content = bytearray(file.read_bytes())
    content[16:24] = (10**5).to_bytes(4, "big") * 2  # width and height of its header
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    file.write_bytes(content)
    if decoder == "PIL":
        monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match=r"image .*a\.png.* can't read it"):
        read_image(file)


def test_read_image_without_opencv(tmp_path, monkeypatch):
    pytest.importorskip("PIL", reason="Pillow is the other decoder")
    image = np.random.default_rng(2).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    np.testing.assert_array_equal(read_image(file), image)
    file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="Pillow can't read it"):
        read_image(file)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match="neither is installed"):
        read_image(file)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_without_opencv_are_as_with_it(tmp_path, monkeypatch, name):
    pytest.importorskip("PIL", reason="Pillow is the other decoder")
    file = tmp_path / name
    cv2.imwrite(str(file), np.arange(65536, dtype=np.uint16).reshape(512, 128))
    expected = read_image(file)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    np.testing.assert_array_equal(read_image(file), expected)
    assert read_image(file).flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused_with_and_without_opencv(tmp_path, monkeypatch, dtype):
    image = pytest.importorskip("PIL.Image", reason="Pillow is the other decoder")
    file = tmp_path / "a.tif"
    image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8)).save(file)
    with pytest.raises(ValueError, match=r"a\.tif: OpenCV can't read it"):
        read_image(file)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match=r"a\.tif: has 32 bits a sample, must have"):
        read_image(file)
