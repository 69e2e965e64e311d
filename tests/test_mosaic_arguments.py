# SPDX-License-Identifier: MIT
"""What looks like a flag, a sequence or a gain and is none; and the largest gains."""

import random

import numpy as np
import pytest
from mosaic_tiles import SIZE, make_labels, make_tiles

from yolov9mem.augment import Mosaic
from yolov9mem.mosaic import mosaic, mosaic_scene
from yolov9mem.warp import HYP_SCRATCH_HIGH, Warp, hsv_tables

BEYOND = 10**400  # all floats


def make_mosaic(**changes):
    arguments = {"images": make_tiles(), "labels": make_labels(), "image_size": SIZE}
    return Mosaic(**(arguments | changes))


@pytest.mark.parametrize("name", ["flip_horizontal", "flip_vertical"])
@pytest.mark.parametrize("value", ["False", 0, None])
def test_a_flip_is_a_flag(name, value):
    with pytest.raises(TypeError, match=f"{name}: is {value!r}, must be True or False"):
        mosaic(make_tiles(), image_size=SIZE, **{name: value})
    picture, _ = mosaic(make_tiles(), image_size=SIZE, **{name: np.bool_(False)})
    np.testing.assert_array_equal(picture, mosaic(make_tiles(), image_size=SIZE)[0])


def test_nine_tiles_are_asked_for_by_a_flag():
    with pytest.raises(TypeError, match="nine: is 'False', must be True or False"):
        make_mosaic(nine="False")


@pytest.mark.parametrize("name", ["images", "labels", "segments", "center", "paste"])
def test_an_array_without_dimensions_is_no_sequence(name):
    text = rf"{name}: is a ndarray of shape \(\), must be a sequence"
    with pytest.raises(TypeError, match=text):
        mosaic(**{"images": make_tiles(), "image_size": SIZE, name: np.array(5)})
    if name not in ("center", "paste"):
        with pytest.raises(TypeError, match=text):
            make_mosaic(**{name: np.array(5)})


@pytest.mark.parametrize(
    "value", [1e308, -1.1e9, 10**400, np.inf], ids=["huge", "negative", "whole", "inf"]
)
@pytest.mark.parametrize("name", ["degrees", "shear", "hsv_h", "fliplr"])
def test_a_gain_is_not_so_large_that_it_overflows(name, value):
    with pytest.raises(ValueError, match=f"hyp: {name}: is .* at most 1e.09 from 0"):
        make_mosaic(hyp={name: value})


@pytest.mark.parametrize("scale", [BEYOND, 1e300, np.inf, np.nan, -2e12])
def test_a_zoom_that_would_overflow_or_drop_all_labels(scale):
    warp = Warp(np.eye(3), scale)
    with pytest.raises(ValueError, match="warp: scale"):
        mosaic(make_tiles(), make_labels(4), image_size=SIZE, warp=warp)


def test_a_part_beyond_all_floats():
    partner = mosaic_scene(make_tiles(), image_size=SIZE)
    with pytest.raises(ValueError, match="ratio is 1000.* must be 0 to 1"):
        mosaic(make_tiles(), image_size=SIZE, partner=partner, ratio=BEYOND)
    alone, _ = mosaic(make_tiles(), image_size=SIZE, ratio=BEYOND)
    np.testing.assert_array_equal(alone, mosaic(make_tiles(), image_size=SIZE)[0])


def test_a_zoom_of_few_bits():
    makes = mosaic(make_tiles(), image_size=SIZE, warp=Warp(np.eye(3), np.float16(1)))
    plain = mosaic(make_tiles(), image_size=SIZE, warp=Warp(np.eye(3)))
    np.testing.assert_array_equal(makes[0], plain[0])


@pytest.mark.parametrize("gain", [1e308, -1e308, BEYOND])
@pytest.mark.parametrize("place", range(3))
def test_factors_of_colours_that_would_overflow(place, gain):
    factors = [1, 1, 1]
    factors[place] = gain
    with pytest.raises(ValueError, match="gains: "):
        hsv_tables(factors)


@pytest.mark.parametrize("value", [1e300, BEYOND])
def test_labels_and_polygons_beyond_float32(value):
    if value < BEYOND:
        with pytest.raises(ValueError, match="labels of tile 0: row 0 has inf"):
            mosaic(make_tiles(), [[[value, 0.5, 0.5, 0.1, 0.1]]] * 4, image_size=SIZE)
    with pytest.raises(ValueError, match="segments of tile 0: polygon 0"):
        mosaic(
            make_tiles(),
            [[[0, 0.5, 0.5, 0.1, 0.1]]] * 4,
            [[[[value, 0.5]]]] * 4,
            image_size=SIZE,
        )


@pytest.mark.parametrize("name", ["degrees", "scale", "translate"])
def test_a_gain_of_few_bits_does_not_wrap(name):
    samples = []
    for gain in (3, np.uint8(3), np.int8(3), np.float16(3)):
        random.seed(0)
        np.random.seed(0)
        samples.append(make_mosaic(hyp={name: gain}).sample(0)[0])
    for found in samples[1:]:
        np.testing.assert_array_equal(found, samples[0])


@pytest.mark.parametrize("name", HYP_SCRATCH_HIGH)
@pytest.mark.parametrize("close", [False, True], ids=["mosaic", "letterbox"])
def test_the_largest_gains_give_samples(close, name):
    augment = make_mosaic(hyp={name: 1.0 if name == "copy_paste" else 1e9})
    augment.mosaic = not close
    random.seed(0)
    np.random.seed(0)
    for index in range(4):
        image, labels = augment.sample(index)
        assert image.shape == (3, SIZE, SIZE)
        assert np.isfinite(labels).all()
