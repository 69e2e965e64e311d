# SPDX-License-Identifier: MIT
"""Samples from an object with the fields of YOLOv9's LoadImagesAndLabels."""

import random

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="the reference chain is made of OpenCV calls")

from mosaic_data import STRONG, make_data, seed  # noqa: E402
from official_chain import Chain, jitter, why_not_equal  # noqa: E402

from yolov9mem.augment import Mosaic, official_item, official_sample  # noqa: E402

if why_not_equal():
    pytest.skip(why_not_equal(), allow_module_level=True)


class NoAlbumentations:
    """The official wrapper where the package is not installed."""

    transform = None

    def __call__(self, image, labels):
        return image, labels


class Inverting:
    """Stands for Albumentations: draws, inverts the image, drops the last label."""

    transform = "any"

    def __call__(self, image, labels):
        random.random()
        assert image.flags.c_contiguous
        return 255 - image, labels[:-1]


class LookAlike:
    """The fields that official_item reads, around the data of a Chain."""

    def __init__(self, chain, augment=True):
        self.chain = chain
        self.hyp = chain.hyp
        self.img_size = chain.size
        self.augment = augment
        self.mosaic = augment
        self.mosaic_border = [-chain.size // 2, -chain.size // 2]
        self.rect = False
        self.labels = chain.labels
        self.segments = chain.segments
        self.n = len(chain.images)
        self.indices = range(self.n)
        self.albumentations = NoAlbumentations()

    def load_image(self, index):
        image = self.chain.images[index]
        return image, (2 * image.shape[0], 2 * image.shape[1]), image.shape[:2]


def make(polygons, hyp=STRONG, size=64):
    data = make_data(np.random.default_rng(polygons), size, polygons)
    return Chain(*data, size, dict(hyp))


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("mosaic", [1.0, 0.5, 0.0])
def test_official_sample_equals_chain(mosaic, polygons):
    chain = make(polygons, STRONG | {"mosaic": mosaic})
    dataset = LookAlike(chain)
    for number in range(12):
        index = number % dataset.n
        seed(number)
        image, labels = chain.sample(index)
        seed(number)
        our_image, our_labels = official_sample(dataset, index)
        np.testing.assert_array_equal(our_image, image)
        np.testing.assert_allclose(our_labels, labels, atol=1e-6, rtol=0)


def test_indices_are_looked_up():
    chain = make(True)
    dataset = LookAlike(chain)
    dataset.indices = [3] * dataset.n
    dataset.hyp["mosaic"] = 0.0
    seed(1)
    expected, _ = chain.sample(3)
    seed(1)
    np.testing.assert_array_equal(official_sample(dataset, 0)[0], expected)


def test_shapes_come_with_letterboxed_images_only():
    dataset = LookAlike(make(True))
    dataset.mosaic = False
    *_, shapes = official_item(dataset, 1)
    height, width = dataset.chain.images[1].shape[:2]
    assert shapes[0] == (2 * height, 2 * width)
    assert shapes[1][0] == (0.5, 0.5)
    dataset.mosaic = True
    dataset.hyp["mosaic"] = 1.0
    assert official_item(dataset, 1)[2] is None


def test_without_augmentation_nothing_is_drawn():
    dataset = LookAlike(make(False), augment=False)
    dataset.rect = True
    dataset.batch = np.zeros(dataset.n, int)
    dataset.batch_shapes = np.array([[64, 96]])
    seed(5)
    before = random.getstate()
    image, labels, _ = official_item(dataset, 2)
    assert random.getstate() == before
    assert image.shape == (3, 64, 96)
    tile = dataset.chain.images[2]
    x, y = (96 - tile.shape[1]) // 2, (64 - tile.shape[0]) // 2
    window = image[::-1, y : y + tile.shape[0], x : x + tile.shape[1]]
    np.testing.assert_array_equal(window.transpose(1, 2, 0), tile)
    assert len(labels) == len(dataset.labels[2])


def test_albumentations_run_between_mixup_and_colours():
    plain = STRONG | {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "flipud": 0.0}
    chain = make(True, plain | {"fliplr": 0.0})
    dataset = LookAlike(chain)
    seed(3)
    image, labels = chain.sample(1)
    before = np.random.get_state()
    dataset.albumentations = Inverting()
    dataset.hyp = chain.hyp | {"hsv_h": 0.3, "hsv_s": 0.7, "hsv_v": 0.4, "fliplr": 1.0}
    seed(3)
    our_image, our_labels = official_sample(dataset, 1)
    expected = 255 - np.ascontiguousarray(image[::-1].transpose(1, 2, 0))
    np.random.set_state(before)
    jitter(expected, dataset.hyp)
    expected = expected[:, ::-1].transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(our_image, expected)
    assert our_labels.dtype == np.float32
    labels = labels[:-1]
    labels[:, 1] = 1 - labels[:, 1]
    np.testing.assert_allclose(our_labels, labels, atol=1e-6, rtol=0)


def outlines(labels):
    """The corners of each box, written out."""
    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [
        np.array([((x + i * w / 2), (y + j * h / 2)) for i, j in corners], np.float32)
        for _, x, y, w, h in labels
    ]


@pytest.mark.parametrize("nine", [False, True], ids=["four", "nine"])
@pytest.mark.parametrize("part", [0.0, 1.0], ids=["plain", "copy_paste"])
def test_boxes_among_polygons_are_outlined(part, nine):
    """Where the image asked for has polygons, the others' boxes are polygons too."""
    hyp = STRONG | {"copy_paste": part, "mosaic": 1.0, "mixup": 0.0}
    chain = make(True, hyp)
    chain.nine = nine
    given = [s if i % 3 == 0 else [] for i, s in enumerate(chain.segments)]
    chain.segments = [
        s or outlines(x) for s, x in zip(given, chain.labels, strict=True)
    ]
    ours = Mosaic(chain.images, chain.labels, given, image_size=64, hyp=hyp, nine=nine)
    for number in range(40):
        index = number % 3 * 3
        seed(number)
        image, labels = chain.sample(index)
        seed(number)
        our_image, our_labels = ours.sample(index)
        np.testing.assert_array_equal(our_image, image)
        np.testing.assert_allclose(our_labels, labels, atol=1e-6, rtol=0)
