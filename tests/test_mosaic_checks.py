# SPDX-License-Identifier: MIT
"""What the mosaic refuses: each message names tile, image or argument and the rule."""

import random

import numpy as np
import pytest
from mosaic_tiles import SIZE, TRIANGLE, make_labels, make_tiles

from yolov9mem import _core
from yolov9mem.augment import Mosaic
from yolov9mem.mosaic import mosaic, mosaic_scene
from yolov9mem.warp import Warp


def bad_tile(change):
    tiles = make_tiles()
    tiles[2] = change(tiles[2])
    return {"images": tiles}


NAN_MATRIX = np.full((3, 3), np.nan)
READ_ONLY = np.zeros((3, SIZE, SIZE), np.uint8)
READ_ONLY.setflags(write=False)
BAD_LABELS = {
    "shape": np.zeros((1, 4), np.float32),
    "nan": np.full((1, 5), np.nan, np.float32),
    "outside": np.array([[0, 1.5, 0.5, 0.1, 0.1]], np.float32),
    "negative": np.array([[-1, 0.5, 0.5, 0.1, 0.1]], np.float32),
}

BAD = {
    "three images": ({"images": make_tiles(3)}, ValueError, "3 images, must be 4 or 9"),
    "no array": (
        bad_tile(lambda t: t.tolist()),
        TypeError,
        "tile 2: expected a NumPy array, got list",
    ),
    "float tile": (bad_tile(lambda t: t.astype(np.float32)), TypeError, "float32"),
    "uint16 tile": (
        bad_tile(lambda t: t.astype(np.uint16)),
        TypeError,
        "tile 2: dtype is uint16, must be uint8",
    ),
    "a tile that is not seen": (
        bad_tile(lambda t: t.astype(np.uint16)) | {"center": (0, 2 * SIZE)},
        TypeError,
        "tile 2: dtype is uint16, must be uint8",
    ),
    "the third of four where two are not seen": (
        bad_tile(lambda t: t.astype(np.uint16)) | {"center": (SIZE, 0)},
        TypeError,
        "tile 2: dtype is uint16, must be uint8",
    ),
    "empty tile": (bad_tile(lambda t: t[:0]), ValueError, "tile 2: shape is .* empty"),
    "no images": ({"images": None}, TypeError, "images: is a NoneType, must be a seq"),
    "no labels": ({"labels": 5}, TypeError, "labels: is a int, must be a sequence"),
    "uneven labels": (
        {"labels": [[[1, 2], [3]]] * 4},
        ValueError,
        "labels of tile 0: are no array",
    ),
    "no segments": ({"segments": 5}, TypeError, "segments: is a int, must be a seq"),
    "no segments of a tile": (
        {"segments": [None] * 4},
        TypeError,
        "segments of tile 0: is a NoneType",
    ),
    "no polygon": (
        {"labels": make_labels(), "segments": [["ab"]] * 4},
        ValueError,
        "segments of tile 0: polygon 0 is no array",
    ),
    "center of floats": (
        {"center": (1.5, 2)},
        TypeError,
        r"center: is \(1.5, 2\), must be whole numbers",
    ),
    "center of one": ({"center": (1,)}, ValueError, r"center: is \(1,\), must be"),
    "center far out": (
        {"center": (2**40, 0)},
        ValueError,
        "center: is .*1099511627776",
    ),
    "image_size float": (
        {"image_size": 64.0},
        TypeError,
        "image_size: is 64.0, must be a whole number",
    ),
    "image_size beyond all": ({"image_size": 2**80}, ValueError, "image_size: is 1208"),
    "warp no Warp": ({"warp": np.eye(3)}, TypeError, "warp: is a ndarray, must be a W"),
    "warp list": ({"warp": Warp([[1]])}, TypeError, "warp: matrix: expected a NumPy"),
    "warp complex": (
        {"warp": Warp(np.eye(3) * 1j)},
        TypeError,
        "matrix has dtype comp",
    ),
    "warp scale": ({"warp": Warp(np.eye(3), "a")}, TypeError, "warp: scale: is 'a'"),
    "paste number": ({"paste": 3}, TypeError, "paste: is a int, must be a sequence"),
    "paste float": ({"paste": [1.0]}, TypeError, r"paste: is \[1.0\], must be whole"),
    "paste bool": ({"paste": [True]}, TypeError, r"paste: is \[True\], must be whole"),
    "partner": ({"partner": 5}, TypeError, "partner: is a int, must be a Scene"),
    "ratio text": ({"ratio": "a"}, TypeError, "ratio: is 'a', must be a number"),
    "backend type": ({"backend": None}, TypeError, "backend: is None, must be a str"),
    "hsv address": (
        {"hsv": (64, "uint8", (3, 256), (256, 1), -1)},
        TypeError,
        "hsv: expected a NumPy array, got tuple",
    ),
    "partner of another size": (
        {"partner": mosaic_scene(make_tiles(), image_size=SIZE // 2)},
        ValueError,
        f"partner: image_size is {SIZE // 2}, must be {SIZE}",
    ),
    "grey tile": (bad_tile(lambda t: t[..., 0]), ValueError, "tile 2"),
    "four channels": (
        bad_tile(lambda t: np.concatenate((t, t[..., :1]), 2)),
        ValueError,
        "shape",
    ),
    "RGB view": (bad_tile(lambda t: t[..., ::-1]), ValueError, "strides of a pixel"),
    "every other column": (bad_tile(lambda t: t[:, ::2]), ValueError, "strides"),
    "big endian": (
        bad_tile(lambda t: t.astype(">u2")),
        (TypeError, ValueError),
        "tile",
    ),
    "image_size 0": ({"image_size": 0}, ValueError, "image_size: is 0"),
    "huge image": ({"image_size": 20000}, ValueError, "must be 1 to 16383"),
    "NaN matrix": (
        {"warp": Warp(NAN_MATRIX)},
        ValueError,
        "warp: matrix has nan, must",
    ),
    "warp perspective": (
        {"warp": Warp(np.eye(3), perspective="False")},
        TypeError,
        "warp: perspective: is 'False', must be True or False",
    ),
    "short matrix": (
        {"warp": Warp(np.eye(2, 3))},
        ValueError,
        r"warp: matrix has shape \(2, 3\), must be \(3, 3\)",
    ),
    "ratio": (
        {"partner": mosaic_scene(make_tiles(), image_size=SIZE), "ratio": 1.5},
        ValueError,
        "ratio is 1.5",
    ),
    "hue": ({"hsv": np.full((3, 256), 200, np.uint8)}, ValueError, "below 180"),
    "hsv shape": ({"hsv": np.zeros((3, 255), np.uint8)}, ValueError, "hsv: shape"),
    "hsv dtype": (
        {"hsv": np.zeros((3, 256))},
        TypeError,
        "hsv: dtype is float64, must be uint8$",
    ),
    "out shape": ({"out": np.zeros((3, 8, 8), np.uint8)}, ValueError, "out: shape"),
    "out dtype": (
        {"out": np.zeros((3, SIZE, SIZE), np.int8)},
        TypeError,
        "out: dtype is int8, must be uint8$",
    ),
    "out no array": ({"out": [1]}, TypeError, "out: expected a NumPy array"),
    "out read-only": ({"out": READ_ONLY}, ValueError, "out: is read-only"),
    "out strides": (
        {"out": np.zeros((3, SIZE, 2 * SIZE), np.uint8)[:, :, ::2]},
        ValueError,
        "packed",
    ),
    "backend": ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    "label count": ({"labels": make_labels(3)}, ValueError, "3 arrays of labels"),
    "paste without polygon": (
        {"labels": make_labels(), "paste": [1]},
        ValueError,
        "has no polygon",
    ),
    "paste below 0": (
        {"labels": make_labels(), "segments": [[TRIANGLE]] * 4, "paste": [-1]},
        ValueError,
        "label is -1",
    ),
    "polygon count": (
        {"labels": make_labels(), "segments": [[TRIANGLE] * 2] * 4},
        ValueError,
        "2 polygons for 1 labels",
    ),
    "polygon shape": (
        {"labels": make_labels(), "segments": [[np.zeros((3, 3))]] * 4},
        ValueError,
        "polygon 0 has shape",
    ),
    "polygon of text": (
        {"labels": make_labels(), "segments": [[TRIANGLE.astype(str)]] * 4},
        ValueError,
        "segments of tile 0: polygon 0 .*: its dtype is <U32, must be numbers",
    ),
    "polygon complex": (
        {"labels": make_labels(), "segments": [[TRIANGLE * 1j]] * 4},
        ValueError,
        "segments of tile 0: polygon 0 .*: its dtype is complex64, must be numbers",
    ),
    "polygon NaN": (
        {"labels": make_labels(), "segments": [[TRIANGLE * np.nan]] * 4},
        ValueError,
        "polygon 0 has nan, must be finite",
    ),
} | {
    f"labels {name}": ({"labels": [array] * 4}, ValueError, "labels of tile 0")
    for name, array in BAD_LABELS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, error, text = BAD[name]
    arguments = {"images": make_tiles(), "image_size": SIZE} | changes
    with pytest.raises(error, match=text):
        mosaic(**arguments)


def test_empty_tile_is_refused():
    out = np.zeros((3, 8, 8), np.uint8)
    for shape in ((0, 4, 3), (4, 0, 3)):
        scene = (((np.zeros(shape, np.uint8), 0, 0),), (8, 8), 0, None, None)
        with pytest.raises(ValueError, match="must be 1 to"):
            _core.mosaic_render(out, (scene,))


@pytest.mark.parametrize(
    ("scene", "error"),
    [
        (((make_tiles()[0], -1, 0),), ValueError),
        (((make_tiles()[0], 2**31, 0),), OverflowError),
        (((make_tiles()[0], 50, 0),), ValueError),
        (((make_tiles()[0],),), TypeError),
        ((5,), TypeError),
    ],
)
def test_tiles_off_the_canvas_are_refused(scene, error):
    out = np.zeros((3, SIZE, SIZE), np.uint8)
    with pytest.raises(error):
        _core.mosaic_render(out, ((scene, (SIZE, SIZE), 0, None, None),))


@pytest.mark.parametrize("row, rule", [(8, "at least 16"), (2**25, "at most 33554431")])
def test_paste_masks_of_other_sizes_are_refused(row, rule):
    out = np.zeros((3, SIZE, SIZE), np.uint8)
    mask = np.zeros((SIZE, row), np.uint8)  # memory that nobody touches
    with pytest.raises(ValueError, match=f"paste mask has {row} bytes, .* {rule}"):
        _core.mosaic_render(out, (((), (SIZE, SIZE), 0, None, mask),))


def test_mosaic_checks_its_data():
    with pytest.raises(ValueError, match="must be even"):
        Mosaic(make_tiles(), make_labels(), image_size=63)
    with pytest.raises(ValueError, match="4 images but 3"):
        Mosaic(make_tiles(), make_labels(3))
    with pytest.raises(ValueError, match="labels of image 0"):
        Mosaic(make_tiles(1), [BAD_LABELS["outside"]])
    wrong = np.array([[0, 0.5, 0.5, 0.2, 0.2], [0, 0.5, np.inf, 0.2, 0.2]])
    with pytest.raises(ValueError, match="image 0: row 1 has inf, must be finite"):
        Mosaic(make_tiles(1), [wrong])
    with pytest.raises(ValueError, match="labels: is empty"):
        Mosaic([], [])
    with pytest.raises(IndexError, match="image 4"):
        Mosaic(make_tiles(), make_labels()).sample(4)


BAD_MOSAIC = {
    "images": (
        {"images": None},
        TypeError,
        "images: is a NoneType, must be a sequence",
    ),
    "labels": (
        {"labels": None},
        TypeError,
        "labels: is a NoneType, must be a sequence",
    ),
    "segments": ({"segments": 5}, TypeError, "segments: is a int, must be a sequence"),
    "image_size": (
        {"image_size": 64.0},
        TypeError,
        "image_size: is 64.0, must be a whole number",
    ),
    "huge": ({"image_size": 2**40}, ValueError, "image_size: is 1099511627776, must"),
    "hyp": ({"hyp": 5}, TypeError, "hyp: is a int, must map names"),
    "hyp text": ({"hyp": {"mixup": "a"}}, TypeError, "hyp: mixup: is 'a', must be a n"),
    "hyp nan": ({"hyp": {"degrees": np.nan}}, ValueError, "hyp: degrees: is nan, must"),
    "copy_paste": (
        {"hyp": {"copy_paste": 3}},
        ValueError,
        "copy_paste: is 3, must be 0",
    ),
}


@pytest.mark.parametrize("name", BAD_MOSAIC)
def test_bad_mosaic(name):
    changes, error, text = BAD_MOSAIC[name]
    arguments = {"images": make_tiles(), "labels": make_labels(), "image_size": SIZE}
    with pytest.raises(error, match=text):
        Mosaic(**(arguments | changes))


@pytest.mark.parametrize("close", [False, True], ids=["mosaic", "letterbox"])
@pytest.mark.parametrize(
    ("image", "error", "text"),
    [
        (np.zeros((30, 20, 4), np.uint8), ValueError, r"shape is \(30, 20, 4\)"),
        (np.zeros((30, 20), np.uint8), ValueError, r"shape is \(30, 20\), must be"),
        (np.zeros((SIZE, 20, 3)), TypeError, "dtype is float64, must be uint8"),
        (np.zeros((30, 20, 3))[::2], TypeError, "dtype is float64, must be uint8"),
        (np.zeros((0, 20, 3), np.uint8), ValueError, "shape is .* not empty"),
        (make_tiles()[0][..., ::-1], ValueError, "strides of a pixel"),
        (np.zeros((1, 900, 3), np.uint8), ValueError, "900x1 resized to a long side"),
        (np.zeros((1, 32767, 3), np.uint8), ValueError, "32767x1 resized to"),
        (None, TypeError, "expected a NumPy array, got NoneType"),
    ],
)
def test_the_image_that_is_wrong_is_named(close, image, error, text):
    augment = Mosaic([*make_tiles(1), image], make_labels(2), image_size=SIZE)
    augment.mosaic = not close
    random.seed(0)
    with pytest.raises(error, match=f"image 1: {text}"):
        augment.sample(1)


def test_the_file_that_is_wrong_is_named(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="writes the file")
    path = tmp_path / "thin.png"
    cv2.imwrite(str(path), np.zeros((1, 900, 3), np.uint8))
    for given in (path, str(path)):
        augment = Mosaic(lambda i, given=given: given, make_labels(1), image_size=SIZE)
        with pytest.raises(ValueError, match=r"image 0 \(.*thin.png\): 900x1"):
            augment.sample(0)


@pytest.mark.parametrize("index", [1.5, None, "a"])
def test_an_index_is_a_whole_number(index):
    augment = Mosaic(make_tiles(), make_labels(), image_size=SIZE)
    with pytest.raises(TypeError, match="index: is .*, must be a whole number"):
        augment.sample(index)
    with pytest.raises(TypeError, match="index: is .*, must be a whole number"):
        augment.load(index)
    with pytest.raises(IndexError, match="image -1, must be 0 to 3"):
        augment.load(-1)
    assert augment.sample(np.int64(1))[0].shape == (3, SIZE, SIZE)
