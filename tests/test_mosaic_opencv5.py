# SPDX-License-Identifier: MIT
"""Warps by the floats of OpenCV 5, byte for byte against NumPy, and that against cv2."""

import sys
import types

import numpy as np
import opencv5
import pytest

from yolov9mem import _core, warp

NAMES = ["ref", "cpu-plain", "cpu", "cpu-avx2", "cpu-avx512"]
# Height, width: whole groups of columns, some left over, and only those.
SIZES = [(40, 640), (33, 648), (21, 671), (50, 15)]
AFFINE, PERSPECTIVE = warp.AFFINE + warp.FLOAT, warp.PERSPECTIVE + warp.FLOAT


def canvas(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 130, 3), np.uint8)


def matrix(seed: int, perspective: bool) -> np.ndarray:
    """Canvas to image; most pixels see the canvas, some see beyond it."""
    random = np.random.default_rng(seed)
    made = np.eye(3)
    made[:2] = random.normal([[4, 0, 9], [0, 0.5, 3]], [[1, 0.3, 9], [0.1, 0.1, 5]])
    made[2, :2] = random.normal(0, 5e-4, 2) if perspective else 0
    return made


def inverse(forward: np.ndarray, perspective: bool) -> np.ndarray:
    """By OpenCV's formulas, in their order; 9 float64."""
    m = forward.ravel()
    if not perspective:
        d = 1 / (m[0] * m[4] - m[1] * m[3])
        a, b, c, e = m[4] * d, m[1] * -d, m[3] * -d, m[0] * d
        rest = (-a * m[2] - b * m[5], -c * m[2] - e * m[5])
        return np.array([a, b, rest[0], c, e, rest[1], 0, 0, 1])
    minor = [
        m[4] * m[8] - m[5] * m[7],
        m[2] * m[7] - m[1] * m[8],
        m[1] * m[5] - m[2] * m[4],
        m[5] * m[6] - m[3] * m[8],
        m[0] * m[8] - m[2] * m[6],
        m[2] * m[3] - m[0] * m[5],
        m[3] * m[7] - m[4] * m[6],
        m[1] * m[6] - m[0] * m[7],
        m[0] * m[4] - m[1] * m[3],
    ]
    d = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6])
    d += m[2] * (m[3] * m[7] - m[4] * m[6])
    return np.array(minor) * (1 / d)


def rendered(backend: str, forward: np.ndarray, size, kind: int, seed: int):
    """BGR (height, width, 3)."""
    tile = canvas(seed)
    scene = (((tile, 0, 0),), tile.shape[:2], kind, tuple(forward.ravel()), None)
    out = np.zeros((3, *size), np.uint8)
    try:
        _core.mosaic_render(out, (scene,), backend=backend)
    except NotImplementedError as error:
        pytest.skip(str(error))
    return out[::-1].transpose(1, 2, 0)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("perspective", [False, True])
def test_floats(backend: str, size: tuple[int, int], perspective: bool) -> None:
    kind = PERSPECTIVE if perspective else AFFINE
    for seed in range(3):
        forward = matrix(seed, perspective)
        made = rendered(backend, forward, size, kind, seed)
        back = inverse(forward, perspective)
        expected = opencv5.warp(canvas(seed), back, size, perspective)
        np.testing.assert_array_equal(made, expected)
        assert len(np.unique(made)) > 50


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("perspective", [False, True])
def test_the_oracle_is_opencv_s(size: tuple[int, int], perspective: bool) -> None:
    cv2 = pytest.importorskip("cv2", reason="the warps of OpenCV 5 itself")
    if not cv2.__version__.startswith("5."):
        pytest.skip(f"OpenCV {cv2.__version__} is installed, not 5")
    for seed in range(3):
        forward = matrix(seed, perspective)
        call = cv2.warpPerspective if perspective else cv2.warpAffine
        given = forward if perspective else forward[:2]
        border = (114, 114, 114)
        truth = call(canvas(seed), given, dsize=size[::-1], borderValue=border)
        back = inverse(forward, perspective)
        made = opencv5.warp(canvas(seed), back, size, perspective)
        np.testing.assert_array_equal(made, truth)


@pytest.mark.parametrize(
    "version, kinds",
    [(None, (1, 2)), ("4.11.0", (1, 2)), ("5.0.0", (3, 4)), ("6.1.0-dev", (3, 4))],
)
def test_warps_are_those_of_the_opencv_that_is_there(
    monkeypatch, version: str | None, kinds: tuple[int, int]
) -> None:
    module = types.SimpleNamespace(__version__=version) if version else None
    monkeypatch.setitem(sys.modules, "cv2", module)  # None: it can't be imported
    warp.opencv_major.cache_clear()
    try:
        made = [warp.Warp(np.eye(3), perspective=p).kind() for p in (False, True)]
    finally:
        warp.opencv_major.cache_clear()
    assert tuple(made) == kinds


def test_positions_beyond_all_numbers_are_grey() -> None:
    """The third row makes some of them infinite, some no number."""
    forward = np.array([[1e-3, 0, 0], [0, 1e30, 0], [0, 0, 1.0]])
    made = rendered("cpu", forward, (20, 40), PERSPECTIVE, 0)
    again = rendered("ref", forward, (20, 40), PERSPECTIVE, 0)
    np.testing.assert_array_equal(made, again)
    flat = np.array([[1, 0, 0], [0, 1, 0], [1.0, 0, 0.0]])
    made = rendered("cpu", flat, (20, 40), PERSPECTIVE, 0)
    np.testing.assert_array_equal(made, rendered("ref", flat, (20, 40), PERSPECTIVE, 0))
