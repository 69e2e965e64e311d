# SPDX-License-Identifier: MIT
"""The mosaic of a data set, made by yolov9mem in one pass.

There are two ways. A data set with the official fields gets its samples from
`yolov9mem.augment`. Any other that augments with OpenCV runs its own code on pictures
(recording.py), whatever the names of its fields. Before either, samples of both are
drawn from the same random states and compared bit for bit; a data set that does anything
else stays as it is. One with labels that our mosaic would mend (`why_mixed`), which the
few samples compared may not show, keeps its own code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from yolov9mem.augment import official_item

from . import recording, trials
from .pictures import plain

FIELDS = (
    "img_size", "augment", "hyp", "rect", "mosaic", "mosaic_border", "indices", "n",
    "labels", "segments", "im_files", "albumentations",
)  # fmt: skip
METHODS = ("load_image", "load_mosaic")
AUGMENTING = ("augment", "im_files", "labels", "load_image")

Way = Callable[[Any, int], Any]

_stock: dict[type, Way] = {}  # __getitem__ of swapped classes


def is_official(dataset: Any) -> bool:
    """Has it the fields of the official training data set?"""
    return all(hasattr(dataset, name) for name in FIELDS + METHODS) and isinstance(
        getattr(dataset, "hyp", None), dict
    )


def why_unknown(dataset: Any) -> str | None:
    """Why there is nothing to try; None: it is a data set that may augment."""
    cls = type(dataset)
    if all(hasattr(dataset, name) for name in AUGMENTING):
        return None
    if hasattr(dataset, "augment") and _makes_mosaics(getattr(dataset, "hyp", None)):
        return None
    own = getattr(sys.modules.get(cls.__module__), "__dict__", {})
    # Beside OpenCV it is there for what a file says of itself.
    if _is_pil(own.get("Image")) and "cv2" not in own:
        return "its pixels are PIL's, whose resizing has other bits than OpenCV's"
    return "not one of the official kind"


def _makes_mosaics(hyp: Any) -> bool:
    """Are they hyper-parameters of an augmentation with mosaics?"""
    return isinstance(hyp, dict) and "mosaic" in hyp


def _is_pil(value: Any) -> bool:
    return getattr(value, "__name__", "") == "PIL.Image"


def why_mixed(dataset: Any) -> str | None:
    """Why an official data set's labels are not ours in some mosaics; None: they are.

    There labels and polygons of the tiles are joined and matched by their places, so
    that labels get polygons of other objects where some have none; ours outlines boxes.
    """
    try:
        pairs = list(zip(dataset.labels, dataset.segments))
        without = sum(len(outlines) < len(boxes) for boxes, outlines in pairs)
        if not without or not any(len(outlines) for _, outlines in pairs):
            return None
    except TypeError:  # something else under these names: a trial tells
        return None
    return (
        f"{without} of its {len(pairs)} images with boxes alone, others with polygons: "
        "in mosaics of both its own code gives labels the polygons of other objects, "
        "drops labels or fails; what helps is polygons in all label files, or in none"
    )


# The two ways


def sample(dataset: Any, index: int) -> Any:
    """dataset[index] by our mosaic; by the stock code where ours raises.

    Ours refuses what the official code takes now and then: an image whose pixels are not
    packed, say, as a load_image that mirrors gives it.
    """
    return _or_stock(_strictly_sampled, dataset, index)


def _strictly_sampled(dataset: Any, index: int) -> tuple[Any, ...]:
    """Image, labels (n, 6) with a free first column, file, shapes."""
    image, labels, shapes = official_item(dataset, index)
    numbered = torch.zeros((len(labels), 6))
    if len(labels):
        numbered[:, 1:] = torch.from_numpy(labels)
    file = dataset.im_files[dataset.indices[index]]
    return torch.from_numpy(image), numbered, file, shapes


def recorded(dataset: Any, index: int) -> Any:
    """dataset[index] by its own code, its image drawn in one pass.

    A step that no picture can stand in for raises, and the sample is made anew.
    """
    made = _or_stock(_strictly_recorded, dataset, index)
    if isinstance(made, dict):
        return {name: plain(value) for name, value in made.items()}
    return tuple(map(plain, made)) if isinstance(made, tuple) else plain(made)


def _strictly_recorded(dataset: Any, index: int) -> Any:
    with recording.recording():
        return _stock_getitem(dataset)(dataset, index)


def _or_stock(way: Way, dataset: Any, index: int) -> Any:
    """The sample of a way; if it raises, the stock one from the same random states."""
    with trials.kept_states() as restore:
        try:
            return way(dataset, index)
        except Exception:  # the stock code raises it again, if it is its own
            restore()
            return _stock_getitem(dataset)(dataset, index)


def _stock_getitem(dataset: Any) -> Way:
    """Its class's own, also where that was swapped."""
    way: Way = _stock.get(type(dataset), type(dataset).__getitem__)
    return way


# Swapping


def swap(dataset: Any) -> str | None:
    """Makes the data set's class use our mosaic; the reason if it must not."""
    cls = type(dataset)
    stock = _stock_getitem(dataset)
    reason = None
    if is_official(dataset):
        reason = why_mixed(dataset)
        reason = reason or trials.difference(dataset, stock, _strictly_sampled)
        if reason is None:
            swap_class(cls, sample)
            return None
    recording.install(cls)
    made = recording.pictures_made()
    other = trials.difference(dataset, stock, _strictly_recorded)
    if other is None and recording.pictures_made() == made:
        other = "it makes no canvas and no warp with OpenCV"
    if other is None:
        swap_class(cls, recorded)
        return None
    if cls in _stock:  # another data set of its class was swapped
        restore(cls)
    if not any(way_of(known) is recorded for known in _stock):
        recording.uninstall()
    return reason or other


def swap_class(cls: Any, way: Way) -> None:
    """Without a comparison: for a loader's worker, after the parent has compared."""
    if way is recorded:
        recording.install(cls)
    if cls in _stock:
        restore(cls)
    stock = _stock[cls] = cls.__getitem__

    def __getitem__(self: Any, index: int) -> Any:  # noqa: N807
        if type(self) is not cls or not self.augment:
            return stock(self, index)
        return way(self, index)

    __getitem__.way = way
    cls.__getitem__ = __getitem__


def way_of(cls: Any) -> Way | None:
    """How the samples of a class are made; None: as they were."""
    return getattr(cls.__getitem__, "way", None)


def what(cls: Any) -> str:
    """What a swapped class does, in words."""
    if way_of(cls) is recorded:
        return "its own augmentation code, its pictures drawn in one pass"
    return "mosaic to CHW image in one pass"


def restore(cls: Any) -> None:
    """The class as it was."""
    stock = _stock.pop(cls)
    del cls.__getitem__
    if cls.__getitem__ is not stock:  # else it is inherited
        cls.__getitem__ = stock


def restore_all() -> None:
    for cls in list(_stock):
        restore(cls)
    recording.uninstall()


class WorkerInit:
    """worker_init_fn that swaps the data set of a loader's worker, then runs the stock
    one: a worker that was not forked has imported the data set's class anew."""

    def __init__(self, stock: Callable[[int], Any] | None, way: Way | None) -> None:
        self.stock, self.way = stock, way

    def __call__(self, worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        if info is not None and self.way is not None:
            cls = type(info.dataset)
            if cls not in _stock:
                swap_class(cls, self.way)
        if self.stock is not None:
            self.stock(worker)
