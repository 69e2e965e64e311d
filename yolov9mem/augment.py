# SPDX-License-Identifier: MIT
"""YOLOv9's training augmentation: random draws in its order, pixels in one pass."""

import operator
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from yolov9mem._checks import (
    as_float,
    check_flag,
    check_real,
    check_sequence,
    check_whole,
)
from yolov9mem.draws import (
    Recipe,
    Source,
    draw_letterbox_picture,
    draw_mosaic_picture,
    finish_recipe,
)
from yolov9mem.images import MAX_SIDE, read_image, resize_to_fit
from yolov9mem.labels import check_labels, check_segments
from yolov9mem.official import official_item, official_sample
from yolov9mem.warp import HYP_SCRATCH_HIGH

__all__ = ["HYP_SCRATCH_HIGH", "Mosaic", "official_item", "official_sample"]


_LARGEST = 1e9  # of a gain: nothing that is drawn or worked out from it overflows


def _check_hyp(hyp: Any) -> dict[str, float]:
    """With what is missing; entries that augmentation does not read are not looked at."""
    if hyp is not None and not isinstance(hyp, Mapping):
        raise TypeError(f"hyp: is a {type(hyp).__name__}, must map names to numbers")
    given = {**HYP_SCRATCH_HIGH, **(hyp or {})}
    gains = {}
    for name in HYP_SCRATCH_HIGH:
        check_real(f"hyp: {name}", given[name])
        gains[name] = as_float(given[name])  # a draw between -3 and 3 of uint8 wraps
        if not abs(gains[name]) <= _LARGEST:
            raise ValueError(
                f"hyp: {name}: is {given[name]}, must be finite and at most "
                f"{_LARGEST:g} from 0"
            )
    if not 0 <= gains["copy_paste"] <= 1:
        raise ValueError(f"hyp: copy_paste: is {given['copy_paste']}, must be 0 to 1")
    return given | gains


def _load_nothing(index: int) -> np.ndarray:
    raise NotImplementedError


class Mosaic:
    """YOLOv9's training samples from images and labels.

    Args:
        images: file names, arrays (h, w, 3) uint8 BGR, or a function from an index to
            either; arrays are resized to `image_size` on the long side where they are
            not, file names are decoded at every use.
        labels: for each image (n, 5): class and normalised xywh.
        segments: for each image a list of normalised polygons (points, 2), one per
            label, or an empty list; None if there are none at all. In a mosaic with
            polygons those of images without are the corners of their boxes.
        image_size: of the result, pixels, even.
        hyp: augmentation, see HYP_SCRATCH_HIGH; what is missing is taken from there.
        nine: nine tiles instead of four.

    `mosaic` may be set to False for the last epochs (--close-mosaic): images are then
    letterboxed. Draws come from `random` and `numpy.random`. Raises ValueError or
    TypeError naming what breaks a rule; images are looked at when they are loaded.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray | str] | Callable[[int], np.ndarray | str],
        labels: Sequence[np.ndarray],
        segments: Sequence[Sequence[np.ndarray]] | None = None,
        *,
        image_size: int = 640,
        hyp: Mapping[str, float] | None = None,
        nine: bool = False,
    ) -> None:
        image_size = check_whole("image_size", image_size, 2, MAX_SIDE // 2)
        if image_size % 2:
            raise ValueError(f"image_size: is {image_size}, must be even, at least 2")
        check_flag("nine", nine)
        check_sequence("labels", labels)
        if not callable(images):
            check_sequence("images", images)
        if segments is not None:
            check_sequence("segments", segments)
        if not callable(images) and len(images) != len(labels):
            raise ValueError(f"{len(images)} images but {len(labels)} arrays of labels")
        if segments is not None and len(segments) != len(labels):
            raise ValueError(
                f"{len(segments)} lists of segments but {len(labels)} arrays of labels"
            )
        if len(labels) == 0:
            raise ValueError("labels: is empty, must be of at least one image")
        checked = [
            check_labels(x, f"labels of image {i}") for i, x in enumerate(labels)
        ]
        polygons: Sequence[Sequence[np.ndarray]] = [[] for _ in checked]
        if segments is not None:
            polygons = [
                check_segments(s, len(x), f"segments of image {i}")
                for i, (s, x) in enumerate(zip(segments, checked, strict=True))
            ]
        self.images = images
        self.mosaic = True
        self.nine = nine
        half = image_size // 2
        # Without what loads a tile: that would be bound to this object for ever, also in
        # a copy with other images, and the images would outlive it until a collection.
        self._source = Source(
            _load_nothing,
            checked,
            polygons,
            range(len(checked)),
            image_size,
            (-half, -half),
            _check_hyp(hyp),
            len(checked),
        )

    def __len__(self) -> int:
        return len(self._source.labels)

    @property
    def image_size(self) -> int:
        """Side of the result, pixels."""
        return self._source.image_size

    @property
    def hyp(self) -> Mapping[str, float]:
        """The augmentation in force."""
        return self._source.hyp

    def load(self, index: int) -> np.ndarray:
        """A tile, (h, w, 3) uint8 BGR, its long side image_size."""
        index = self._whole(index)
        image = self.images(index) if callable(self.images) else self.images[index]
        name = f"image {index}"
        if isinstance(image, str | os.PathLike):
            name += f" ({os.fspath(image)})"
            image = read_image(image)
        return resize_to_fit(image, self._source.image_size, name)

    def sample(
        self, index: int, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """An augmented image (3, image_size, image_size) uint8 RGB and its labels.

        Labels are (n, 5) float32, class and normalised xywh. out: written if given.
        """
        recipe = self.recipe(index)
        return recipe.image(out), recipe.labels()

    def recipe(self, index: int) -> Recipe:
        """The same sample, drawn but not rendered."""
        index = self._whole(index)
        source = replace(self._source, load=self.load)
        if self.mosaic and random.random() < source.hyp["mosaic"]:
            picture = draw_mosaic_picture(source, index, nine=self.nine)
        else:
            size = (source.image_size, source.image_size)
            picture = draw_letterbox_picture(
                self.load(index), source.labels[index], size, source.hyp
            )
        return finish_recipe(picture, source.hyp)

    def _whole(self, index: Any) -> int:
        """The number of an image. Raises IndexError, which ends a loop, beyond the last."""
        try:
            number = operator.index(index)  # a sampler may give NumPy's or a tensor's
        except TypeError:
            raise TypeError(f"index: is {index!r}, must be a whole number") from None
        if not 0 <= number < len(self):
            raise IndexError(f"image {number}, must be 0 to {len(self) - 1}")
        return number
