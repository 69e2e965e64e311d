# SPDX-License-Identifier: MIT
"""Data sets of other code bases, whose fields have other names, in a launch."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import official_chain
import pytest
import torch
from official_chain import Chain
from torch.utils.data import DataLoader, Dataset

from yolov9mem.launch import dataset
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch

NO_EQUAL_BITS = official_chain.why_not_equal()
SIZE = 64
HYP = {
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10.0, "translate": 0.1,
    "scale": 0.5, "shear": 3.0, "perspective": 0.0, "flipud": 0.4, "fliplr": 0.5,
    "mosaic": 0.8, "mixup": 0.5, "copy_paste": 0.0,
}  # fmt: skip


class Foreign(Dataset[Any]):
    """No attribute `mosaic`: the chance alone says whether there is one."""

    def __init__(self, augment: bool = True, **hyp: float) -> None:
        draw = np.random.default_rng(5)
        self.augment, self.hyp = augment, {**HYP, **hyp}
        shape = (SIZE, SIZE, 3)
        self.pixels = [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(6)]
        boxes = draw.uniform((0.3, 0.3, 0.1, 0.1), (0.7, 0.7, 0.5, 0.5), (6, 3, 4))
        self.boxes = [np.hstack((np.ones((3, 1)), b)).astype(np.float32) for b in boxes]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        if not self.augment:
            return self.pixels[index]
        segments: list[Any] = [[] for _ in self.pixels]
        chain = Chain(self.pixels, self.boxes, segments, SIZE, self.hyp)
        image, labels = chain.sample(index)
        return torch.from_numpy(image), torch.from_numpy(labels)


class Official(Dataset[Any]):
    """The fields of the official data set.

    outlined: the images with polygons, all with as many objects but those of `empty`.
    """

    load_mosaic = None

    def __init__(self, outlined: range, empty: range = range(0), n: int = 64) -> None:
        draw = np.random.default_rng(6)
        self.augment, self.mosaic, self.rect, self.n = True, True, False, n
        self.hyp, self.img_size = {**HYP, "mosaic": 1.0}, SIZE
        self.mosaic_border, self.indices = [-SIZE // 2, -SIZE // 2], range(n)
        self.albumentations, self.im_files = None, [f"{i}.png" for i in range(n)]
        self.pixels = draw.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
        boxes = draw.uniform((0.3, 0.3, 0.1, 0.1), (0.7, 0.7, 0.5, 0.5), (n, 3, 4))
        labels = np.concatenate((np.ones((n, 3, 1)), boxes), 2).astype(np.float32)
        self.labels = [x[:0] if i in empty else x for i, x in enumerate(labels)]
        points = draw.random((n, 3, 7, 2), np.float32)
        self.segments = [list(x) if i in outlined else [] for i, x in enumerate(points)]

    def __len__(self) -> int:
        return self.n

    def load_image(self, index: int) -> Any:
        return self.pixels[index], (SIZE, SIZE), (SIZE, SIZE)

    def __getitem__(self, index: int) -> Any:
        chain = Chain(self.pixels, self.labels, self.segments, SIZE, self.hyp)
        chain.mosaic = self.mosaic
        image, labels = chain.sample(index)
        numbered = torch.zeros((len(labels), 6))
        numbered[:, 1:] = torch.from_numpy(labels)
        whole = (SIZE, SIZE), ((1.0, 1.0), (0.0, 0.0))
        shapes = None if self.mosaic else whole
        return torch.from_numpy(image), numbered, self.im_files[index], shapes


class Gathered(Foreign):
    """Its hyper-parameters are the class's."""

    hyp: ClassVar[dict[str, float]] = dict(HYP)

    def __init__(self) -> None:
        super().__init__()
        del self.hyp


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    dataset.restore_all()


def samples(data: Any) -> list[Any]:
    random.seed(3)
    np.random.seed(4)
    made = [data[i % len(data)] for i in range(24)]
    return [*made, random.random(), np.random.random()]


@pytest.mark.parametrize("kind", [Foreign, Gathered])
def test_fields_of_other_names_are_no_reason_to_stay_stock(kind: type[Foreign]) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    data = kind()
    stock = samples(data)
    assert dataset.why_unknown(data) is None
    assert dataset.swap(data) is None
    assert dataset.way_of(kind) is dataset.recorded
    assert data.hyp == HYP and not hasattr(data, "mosaic")  # the trials left no trace
    assert dataset.trials._equal(samples(data), stock)


@pytest.mark.parametrize(
    ("outlined", "empty"),
    [(range(0), range(0)), (range(64), range(0)), (range(40), range(40, 64))],
    ids=["boxes", "polygons", "polygons and empty"],
)
def test_official_labels_of_one_kind_are_swapped(outlined: range, empty: range) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    data = Official(outlined, empty)
    stock = samples(data)
    assert dataset.swap(data) is None
    assert dataset.way_of(Official) is dataset.sample
    assert dataset.trials._equal(samples(data), stock)


def of_boxes_and_polygons() -> Official:
    """Where ours differ from stock's, which four samples of a trial do not meet."""
    assert dataset.swap(Official(range(64))) is None
    few = Official(range(50, 52))
    ours = dataset._strictly_sampled
    random.seed(3)
    assert dataset.trials.difference(few, dataset._stock[Official], ours) is None
    random.seed(3)
    return few


def test_boxes_among_polygons_keep_their_own_labels() -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    few = of_boxes_and_polygons()
    stock = copy.copy(few)
    stock.__class__ = type(
        "Stock", (Official,), {"__getitem__": dataset._stock[Official]}
    )
    assert dataset.swap(few) is None
    assert dataset.way_of(Official) is dataset.recorded
    assert dataset.trials._equal(samples(few), samples(stock))


def test_boxes_among_polygons_are_told_of_where_they_stay_stock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    few = of_boxes_and_polygons()
    monkeypatch.setattr(dataset, "_strictly_recorded", lambda data, index: None)
    assert str(dataset.swap(few)).startswith("62 of its 64 images with boxes alone")
    assert dataset.way_of(Official) is None  # though another one was swapped
    launch = launched(Settings(mosaic=0.5), few)
    (line,) = (text for name, text in launch.lines if name == "data set, stock")
    assert line.startswith("Official: 62 of its 64 images with boxes alone, others")
    assert line.endswith("polygons in all label files, or in none")
    assert few.hyp["mosaic"] == 0.5 and launch.applied == {"mosaic"}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("PIL.Image",), "its pixels are PIL's, whose resizing has other bits than"),
        (("PIL.Image", "cv2"), "not one of the official kind"),
        ((), "not one of the official kind"),
    ],
)
def test_pil_beside_opencv_is_not_where_the_pixels_come_from(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], reason: str
) -> None:
    module = types.ModuleType("foreign_data")
    for name in names:
        setattr(module, name.rpartition(".")[2], types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    plain = type("Plain", (), {"__module__": module.__name__})
    assert str(dataset.why_unknown(plain())).startswith(reason)


def launched(settings: Settings, *made: Any) -> Launch:
    """A launch in which a script makes a loader of each."""
    launch = Launch(settings)
    launch.start()
    try:
        for data in made:
            DataLoader(data)
    finally:
        launch.stop()
    return launch


def test_mosaic_reaches_fields_of_other_names() -> None:
    data, held_out = Foreign(), Foreign(augment=False)
    launch = launched(Settings(mosaic=0.25, mixup=0.0), data, held_out)
    assert (data.hyp["mosaic"], data.hyp["mixup"]) == (0.25, 0.0)
    assert launch.applied >= {"mosaic", "mixup"}
    assert held_out.hyp == HYP


def test_a_mosaic_that_the_script_closes_stays_closed() -> None:
    """As where it makes its data set anew for the last epochs."""
    first, closed, again = Foreign(), Foreign(mosaic=0.0, mixup=0.0), Foreign()
    launched(Settings(mosaic=0.25, mixup=0.75), first, closed, again)
    chances = [(data.hyp["mosaic"], data.hyp["mixup"]) for data in (first, again)]
    assert chances == [(0.25, 0.75)] * 2
    assert (closed.hyp["mosaic"], closed.hyp["mixup"]) == (0.0, 0.0)


def test_mosaic_switches_on_what_the_script_never_had() -> None:
    made = [Foreign(mosaic=0.0), Foreign(mosaic=0.0)]
    launched(Settings(mosaic=0.25), *made)
    assert [data.hyp["mosaic"] for data in made] == [0.25, 0.25]
