# SPDX-License-Identifier: MIT
"""Augmentation code run on pictures: the bits of arrays, drawn in one pass."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import official_chain
import pytest
import torch
from official_chain import Chain

from yolov9mem.launch import dataset, pictures, recording

NO_EQUAL_BITS = official_chain.why_not_equal()
HYP = {
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10.0, "translate": 0.1,
    "scale": 0.5, "shear": 3.0, "perspective": 0.0, "flipud": 0.4, "fliplr": 0.5,
    "mosaic": 0.8, "mixup": 0.5, "copy_paste": 0.6,
}  # fmt: skip
SIZE = 96


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    dataset.restore_all()
    assert official_chain.cv2 is cv2 and official_chain.np is np


class Other(torch.utils.data.Dataset):
    """A data set of another code base: its own fields, the same kind of chain."""

    def __init__(self, **hyp: float) -> None:
        draw = np.random.default_rng(5)
        self.augment, self.im_files = True, [f"{i}.png" for i in range(6)]
        self.buffer: list[int] = []
        images, self.labels, segments = [], [], []
        for i in range(6):
            shape = (SIZE, 70 + i) if i % 2 else (61 + i, SIZE)
            images.append(draw.integers(0, 256, (*shape, 3), dtype=np.uint8))
            boxes = draw.uniform((0.3, 0.3, 0.1, 0.1), (0.7, 0.7, 0.5, 0.5), (3, 4))
            self.labels.append(np.hstack((np.ones((3, 1)), boxes)).astype(np.float32))
            segments.append([draw.random((7, 2), np.float32) for _ in range(3)])
        self.chain = Chain(images, self.labels, segments, SIZE, {**HYP, **hyp})

    def load_image(self, index: int) -> np.ndarray:
        return self.chain.images[index]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.buffer.append(index)
        image, labels = self.chain.sample(index)
        return {"img": torch.from_numpy(image), "labels": labels, "shape": image.shape}


def samples(data: Any, count: int = 30) -> list[Any]:
    random.seed(3)
    np.random.seed(4)
    made = [data[i % len(data)] for i in range(count)]
    return [*made, random.random(), np.random.random()]


def same(a: list[Any], b: list[Any]) -> bool:
    return dataset.trials._equal(a, b)


@pytest.mark.parametrize("hyp", [{}, {"perspective": 4e-4}, {"copy_paste": 0.0}])
def test_another_code_base_gets_one_pass_pictures(
    monkeypatch: pytest.MonkeyPatch, hyp: dict[str, float]
) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    data = Other(**hyp)
    stock = samples(data)
    assert dataset.swap(data) is None
    assert dataset.way_of(Other) is dataset.recorded
    assert data.buffer == [i % 6 for i in range(30)]  # the trials left no trace
    drawn = []

    def pixels(self: Any) -> Any:
        drawn.append(self)
        raise AssertionError("drawn too early")

    monkeypatch.setattr(pictures.Picture, "pixels", pixels)
    assert same(samples(data), stock)
    assert not drawn


def test_what_a_picture_cannot_stand_in_for_is_made_as_it_was() -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)

    class Blurred(Other):
        def __getitem__(self, index: int) -> dict[str, Any]:
            image, labels = self.chain.warped(index)
            if len(self.buffer) > 9 and random.random() < 0.5:  # no trial meets it
                image = official_chain.cv2.GaussianBlur(image, (5, 5), 0)
            self.buffer.append(index)
            return {"img": torch.from_numpy(np.ascontiguousarray(image))}

    data = Blurred()
    assert dataset.swap(data) is None
    ours = samples(data)
    dataset.restore_all()
    data.buffer.clear()
    assert same(ours, samples(data))


class Official(Other):
    """The fields of the official data set; every other image is a mirrored view."""

    load_mosaic = None

    def __init__(self) -> None:
        super().__init__()
        chain = self.chain
        self.img_size, self.hyp, self.n = (
            SIZE,
            {**HYP, "mosaic": 1.0, "copy_paste": 0.2},
            6,
        )
        self.mosaic, self.rect, self.albumentations = True, False, None
        self.mosaic_border, self.indices = [-SIZE // 2, -SIZE // 2], range(6)
        self.segments, chain.hyp = chain.segments, self.hyp
        chain.images = [x[:, ::-1] if i % 2 else x for i, x in enumerate(chain.images)]

    def load_image(self, index: int) -> Any:
        image = self.chain.images[index]
        return image, image.shape[:2], image.shape[:2]

    def __getitem__(self, index: int) -> Any:
        image, labels = self.chain.sample(index)
        numbered = torch.zeros((len(labels), 6))
        numbered[:, 1:] = torch.from_numpy(labels)
        return torch.from_numpy(image), numbered, self.im_files[index], None


def outcomes(data: Any, way: Any) -> list[Any]:
    """Samples with the random states after them, or what they raised."""
    made: list[Any] = []
    for seed in range(120):
        random.seed(seed)
        np.random.seed(seed)
        try:
            made.append([way(data, seed % 6), random.random(), np.random.random()])
        except Exception as error:
            made.append(type(error).__name__)
    return made


def test_where_our_mosaic_raises_the_stock_code_goes_on() -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    data = Official()
    stock = outcomes(data, Official.__getitem__)
    strict = outcomes(data, dataset._strictly_sampled)
    dataset.swap_class(Official, dataset.sample)
    ours = outcomes(data, Official.__getitem__)
    raised = [i for i, sample in enumerate(strict) if isinstance(sample, str)]
    assert any(isinstance(stock[i], list) for i in raised)
    assert any(isinstance(sample, list) for sample in strict)
    for mine, theirs in zip(ours, stock, strict=True):
        if isinstance(theirs, str):
            assert mine == theirs
            continue
        # Images and draws are the same; the last bits of labels are NumPy's matter.
        (image, labels, *rest), *draws = mine
        assert torch.equal(image, theirs[0][0])
        torch.testing.assert_close(labels, theirs[0][1], rtol=0, atol=1e-6)
        assert [rest, draws] == [list(theirs[0][2:]), theirs[1:]]


def test_one_without_opencv_stays_as_it_is() -> None:
    class Plain(Other):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"img": torch.from_numpy(self.chain.images[index].copy())}

    reason = dataset.swap(Plain())
    assert reason == "it makes no canvas and no warp with OpenCV"
    assert dataset.way_of(Plain) is None
    assert official_chain.cv2 is cv2


def test_one_that_fails_on_pictures_stays_as_it_is() -> None:
    class Typed(Other):
        def __getitem__(self, index: int) -> dict[str, Any]:
            image, _ = self.chain.warped(index)
            if type(image) is not np.ndarray:
                raise TypeError("wants an array")
            return {"img": image}

    reason = dataset.swap(Typed())
    assert reason == "a trial sample raised TypeError: wants an array"
    assert len(samples(Typed(), 2)) == 4


# Steps in any order


def canvas(draw: np.random.Generator) -> Any:
    made = recording.stand_in("numpy").full((40, 50, 3), 114, dtype=np.uint8)
    for _ in range(3):
        y, x = draw.integers(0, 20, 2)
        h, w = draw.integers(1, 20, 2)
        made[y : y + h, x : x + w] = draw.integers(0, 256, (h, w, 3), dtype=np.uint8)
    return made


def warp(image: Any, draw: np.random.Generator) -> Any:
    matrix = np.eye(3)
    matrix[:2] += draw.normal(0, 0.1, (2, 3)) * [1, 1, 40]
    height, width = image.shape[:2]
    stand_in = recording.stand_in("cv2")
    grey = (114, 114, 114)
    return stand_in.warpAffine(image, matrix[:2], (width, height), borderValue=grey)


def blend(image: Any, draw: np.random.Generator) -> Any:
    r = draw.random()
    return (image * r + warp(canvas(draw), draw) * (1 - r)).astype(np.uint8)


def recolour(image: Any, draw: np.random.Generator) -> Any:
    stand_in = recording.stand_in("cv2")
    image = np.copy(image)
    tables = draw.integers(0, 180, (1, 256, 3), dtype=np.uint8)
    hsv = stand_in.LUT(stand_in.cvtColor(image, cv2.COLOR_BGR2HSV), tables)
    stand_in.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=image)
    return image


def flip(image: Any, draw: np.random.Generator) -> Any:
    return (np.flipud, np.fliplr)[draw.integers(2)](image)


def paste(image: Any, draw: np.random.Generator) -> Any:
    stand_in = recording.stand_in("cv2")
    mask = (draw.random(image.shape[:2]) < 0.3).astype(np.uint8)
    image = np.copy(image)
    if draw.random() < 0.5:
        return stand_in.copyTo(stand_in.flip(image, 1), mask, image)
    where = mask.astype(bool)
    image[where] = stand_in.flip(image, 1)[where]
    return image


def write(image: Any, draw: np.random.Generator) -> Any:
    image = np.copy(image)
    image[3:9, 5:12] = draw.integers(0, 256, 3, dtype=np.uint8)
    return image


def cut(image: Any, draw: np.random.Generator) -> Any:
    other = canvas(draw)
    other[2:30, 4:25] = image[2:30, 4:25]
    return other


STEPS = (warp, blend, recolour, flip, paste, write, cut)


@pytest.mark.parametrize("seed", range(40))
def test_steps_in_any_order_have_the_bits_of_arrays(seed: int) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    made = []
    for is_on in (False, True):
        draw = np.random.default_rng(seed)
        order = draw.integers(0, len(STEPS), draw.integers(1, 7))
        image: Any
        if is_on:
            with recording.recording():
                image = canvas(draw)
                assert isinstance(image, pictures.Picture)
                for step in order:
                    image = STEPS[step](image, draw)
                made.append(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]))
        else:
            image = canvas(draw)
            assert type(image) is np.ndarray
            for step in order:
                image = STEPS[step](image, draw)
            made.append(np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]))
    assert np.array_equal(made[0], made[1]), [STEPS[i].__name__ for i in order]


def test_a_picture_answers_as_an_array() -> None:
    draw = np.random.default_rng(0)
    with recording.recording():
        picture = canvas(draw)
    array = np.array(picture)
    assert picture.shape == array.shape and len(picture) == 40
    assert picture.dtype == np.uint8 and picture.ndim == 3
    assert picture.mean() == array.mean()
    assert np.array_equal(picture + 1, array + 1)
    assert np.array_equal(2 * picture, 2 * array)
    assert np.array_equal(picture.transpose(1, 0, 2), array.transpose(1, 0, 2))
    other = picture.copy()
    other[0, 0] = 7
    assert other[0, 0].tolist() == [7, 7, 7] and np.array_equal(picture, array)
    changed = picture
    changed += 1
    assert np.array_equal(picture, array + 1)  # in place
    array[0, 0] = 9  # np.array gave a copy
    assert picture[0, 0].tolist() != [9, 9, 9]
