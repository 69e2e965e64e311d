# SPDX-License-Identifier: MIT
"""Samples from a YOLOv9 data set object (LoadImagesAndLabels), bit for bit its own.

The object's fields are read at every call, so what a script changes on it holds:
img_size, hyp, augment, mosaic, mosaic_border, rect, batch, batch_shapes, indices, n,
labels, segments, load_image, albumentations.
"""

import random
from typing import Any

import numpy as np

from yolov9mem._checks import check_image
from yolov9mem.draws import (
    Picture,
    Source,
    draw_letterbox_picture,
    draw_mosaic_picture,
    finish_picture,
    finish_recipe,
)
from yolov9mem.labels import normalise_labels
from yolov9mem.letterbox import letterbox_fit
from yolov9mem.mosaic import finish_labels, flip_labels
from yolov9mem.scene import Canvas, Scene, render

Shapes = tuple[Any, tuple[tuple[float, float], tuple[float, float]]]
"""Original (h, w), and the resize ratios (h, w) with the padding (x, y)."""


def _load(dataset: Any, index: int) -> Any:
    """What the object's load_image gives: the image, the original (h, w), its own."""
    loaded = dataset.load_image(index)
    check_image(f"image {index}", loaded[0])
    return loaded


def _source(dataset: Any) -> Source:
    return Source(
        lambda index: _load(dataset, index)[0],
        dataset.labels,
        dataset.segments,
        dataset.indices,
        dataset.img_size,
        dataset.mosaic_border,
        dataset.hyp,
        dataset.n,
    )


def _letterbox(dataset: Any, index: int) -> tuple[Picture, Shapes]:
    image, (height0, width0), (height, width) = _load(dataset, index)
    size = dataset.img_size
    if dataset.rect:
        size = dataset.batch_shapes[dataset.batch[index]]
    # NumPy integers stay what they are: they make the label arithmetic float64.
    shape = (size, size) if np.ndim(size) == 0 else (size[0], size[1])
    hyp = dataset.hyp if dataset.augment else None
    scale_up = bool(dataset.augment)
    fit = letterbox_fit((height, width), shape, scale_up=scale_up)
    picture = draw_letterbox_picture(
        image, dataset.labels[index], shape, hyp, scale_up=scale_up
    )
    ratios = (height / height0, width / width0)
    return picture, ((height0, width0), (ratios, (fit.gap_x, fit.gap_y)))


def _finish_with_albumentations(
    dataset: Any, picture: Picture
) -> tuple[np.ndarray, np.ndarray]:
    """Albumentations wants the picture before its colours, so it is made twice."""
    planes = render(
        picture.scene, picture.size, partner=picture.partner, ratio=picture.ratio
    )
    image = np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))
    labels = normalise_labels(picture.labels, *picture.size)
    image, labels = dataset.albumentations(image, labels)
    image = np.ascontiguousarray(image)
    size = image.shape[:2]
    labels = np.asarray(labels).reshape(-1, 5)
    flat = Scene(Canvas([(image, 0, 0)], size, labels, []), None, None, labels)
    recipe = finish_recipe(Picture(flat, None, 1.0, labels, size), dataset.hyp)
    flip_labels(labels, recipe.flip_vertical, recipe.flip_horizontal)
    planes = recipe.image(planes if planes.shape[1:] == size else None)
    return planes, labels.astype(np.float32, copy=False)


def _has_albumentations(dataset: Any) -> bool:
    """Whether its Albumentations object does anything (the package may be missing)."""
    transforms = dataset.albumentations
    return transforms is not None and getattr(transforms, "transform", True) is not None


def official_item(
    dataset: Any, index: int
) -> tuple[np.ndarray, np.ndarray, Shapes | None]:
    """What dataset[index] of the official code is made of, without torch.

    Returns the image (3, H, W) uint8 RGB, labels (n, 5) float32 of class and normalised
    xywh, and the shapes (None for a mosaic). The random draws are the official ones.
    Where only some images of a mosaic have polygons, which the official code gives to
    other images' labels, the boxes of the others are outlined.
    """
    index = dataset.indices[index]
    shapes = None
    if dataset.mosaic and random.random() < dataset.hyp["mosaic"]:
        picture = draw_mosaic_picture(_source(dataset), index)
    else:
        picture, shapes = _letterbox(dataset, index)
    if not dataset.augment:
        image = render(picture.scene, picture.size)
        return image, finish_labels(picture.labels, picture.size, False, False), shapes
    if _has_albumentations(dataset):
        image, labels = _finish_with_albumentations(dataset, picture)
    else:
        image, labels = finish_picture(picture, dataset.hyp)
    return image, labels, shapes


def official_sample(dataset: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (3, H, W) uint8 RGB and labels (n, 5) float32 of `official_item`."""
    image, labels, _ = official_item(dataset, index)
    return image, labels
