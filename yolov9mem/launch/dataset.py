# SPDX-License-Identifier: MIT
"""The mosaic of a data set with the official fields, made by yolov9mem.

Such a data set is known by its fields. Before it is swapped, samples of both are drawn
from the same random states and compared bit for bit; one that does anything else (other
augmentation, masks besides) stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from yolov9mem.augment import official_item

FIELDS = (
    "img_size", "augment", "hyp", "rect", "mosaic", "mosaic_border", "indices", "n",
    "labels", "segments", "im_files", "albumentations",
)  # fmt: skip
METHODS = ("load_image", "load_mosaic")
# (mosaic switched on, hyper-parameters forced) of the samples compared.
TRIALS: tuple[tuple[bool, dict[str, float]], ...] = (
    (True, {"mosaic": 1.0, "mixup": 1.0}),
    (True, {"mosaic": 1.0, "mixup": 0.0}),
    (True, {}),
    (False, {}),
)

_stock: dict[type, Callable[[Any, int], Any]] = {}  # __getitem__ of swapped classes


def is_official(dataset: Any) -> bool:
    """Has it the fields of the official training data set?"""
    return all(hasattr(dataset, name) for name in FIELDS + METHODS) and isinstance(
        getattr(dataset, "hyp", None), dict
    )


def sample(dataset: Any, index: int) -> tuple[Any, ...]:
    """dataset[index]: image, labels (n, 6) with a free first column, file, shapes."""
    image, labels, shapes = official_item(dataset, index)
    numbered = torch.zeros((len(labels), 6))
    if len(labels):
        numbered[:, 1:] = torch.from_numpy(labels)
    file = dataset.im_files[dataset.indices[index]]
    return torch.from_numpy(image), numbered, file, shapes


def swap(dataset: Any) -> str | None:
    """Makes the data set's class use our mosaic; the reason if it must not."""
    cls = type(dataset)
    reason = difference(dataset, _stock.get(cls, cls.__getitem__))
    if reason is None:
        swap_class(cls)
    elif cls in _stock:
        restore(cls)
    return reason


def swap_class(cls: Any) -> None:
    """Without a comparison: for a loader's worker, after the parent has compared."""
    if cls in _stock:
        return
    stock = _stock[cls] = cls.__getitem__

    def __getitem__(self: Any, index: int) -> Any:  # noqa: N807
        if type(self) is not cls or not self.augment:
            return stock(self, index)
        return sample(self, index)

    cls.__getitem__ = __getitem__


def restore(cls: Any) -> None:
    """The class as it was."""
    cls.__getitem__ = _stock.pop(cls)


def restore_all() -> None:
    for cls in list(_stock):
        restore(cls)


@contextmanager
def _changed(dataset: Any, mosaic: bool, hyp: dict[str, Any]) -> Iterator[None]:
    """The data set with another `mosaic` and `hyp`, and the random states, for once."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = dataset.mosaic, dataset.hyp
    dataset.mosaic = mosaic and before[0]
    dataset.hyp = {**before[1], **hyp}
    try:
        yield
    finally:
        dataset.mosaic, dataset.hyp = before
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def difference(dataset: Any, stock: Callable[[Any, int], Any]) -> str | None:
    """Why our samples are not those of the data set; None: they are the same bits."""
    for number, (mosaic, hyp) in enumerate(TRIALS):
        index = number % len(dataset)
        try:
            with _changed(dataset, mosaic, hyp):
                theirs = stock(dataset, index), *_states()
            with _changed(dataset, mosaic, hyp):
                ours = sample(dataset, index), *_states()
        except Exception as error:  # whatever it is: the stock code stays
            return f"a trial sample raised {type(error).__name__}: {error}"
        if not _equal(theirs, ours):
            return "its samples are not those of the official chain"
    return None


def _states() -> tuple[Any, ...]:
    _, keys, position, *rest = np.random.get_state()
    return random.getstate(), keys, position, rest


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, (tuple, list)):
        return (
            isinstance(b, (tuple, list))
            and len(a) == len(b)
            and all(_equal(x, y) for x, y in zip(a, b, strict=True))
        )
    return bool(a == b)


class WorkerInit:
    """worker_init_fn that swaps the data set of a loader's worker, then runs the stock
    one: a worker that was not forked has imported the data set's class anew."""

    def __init__(self, stock: Callable[[int], Any] | None) -> None:
        self.stock = stock

    def __call__(self, worker: int) -> None:
        info = torch.utils.data.get_worker_info()
        if info is not None and is_official(info.dataset):
            swap_class(type(info.dataset))
        if self.stock is not None:
            self.stock(worker)
