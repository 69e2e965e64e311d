# SPDX-License-Identifier: MIT
"""Samples of a data set drawn twice from the same random states, and compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Sample = Callable[[Any, int], Any]

# (mosaic switched on, hyper-parameters forced) of the samples compared.
TRIALS: tuple[tuple[bool, dict[str, float]], ...] = (
    (True, {"mosaic": 1.0, "mixup": 1.0}),
    (True, {"mosaic": 1.0, "mixup": 0.0}),
    (True, {}),
    (False, {}),
)
# Of a chain of transforms: the class that draws, by its hyper-parameter.
DRAWING = {"Mosaic": "mosaic", "MixUp": "mixup"}
# What a data set notes down while it makes a sample.
NOTED = ("buffer", "ims", "im_hw0", "im_hw")


def difference(dataset: Any, stock: Sample, ours: Sample) -> str | None:
    """Why our samples are not those of the data set; None: they are the same bits."""
    for number, (mosaic, hyp) in enumerate(TRIALS):
        try:
            index = number % len(dataset)
            with _changed(dataset, mosaic, hyp):
                theirs = stock(dataset, index), *_states()
            with _changed(dataset, mosaic, hyp):
                made = ours(dataset, index), *_states()
        except Exception as error:  # whatever it is: the stock code stays
            return f"a trial sample raised {type(error).__name__}: {error}"
        if not _equal(theirs, made):
            return "samples from the same random states have other bits"
    return None


@contextmanager
def kept_states() -> Iterator[Callable[[], None]]:
    """Gives a function that sets the random states to what they were on entry."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def restore() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    yield restore


@contextmanager
def _changed(dataset: Any, mosaic: bool, hyp: dict[str, float]) -> Iterator[None]:
    """The data set with other probabilities, for once; it and the random states are
    as they were afterwards."""
    noted = {n: list(v) for n in NOTED if isinstance(v := getattr(dataset, n, 0), list)}
    with kept_states() as restore, _forced(dataset, mosaic, hyp):
        try:
            yield
        finally:
            restore()
            for name, value in noted.items():
                setattr(dataset, name, value)


@contextmanager
def _forced(dataset: Any, mosaic: bool, hyp: dict[str, float]) -> Iterator[None]:
    if isinstance(getattr(dataset, "hyp", None), dict):
        names = [name for name in ("mosaic", "hyp") if hasattr(dataset, name)]
        before = {name: getattr(dataset, name) for name in names}
        switch = {"mosaic": 0.0, "mixup": 0.0}  # of one that has no attribute for it
        if "mosaic" in before:
            dataset.mosaic, switch = mosaic and before["mosaic"], {}
        dataset.hyp = {**dataset.hyp, **hyp, **({} if mosaic else switch)}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(dataset, name, value)
        return
    drawing = [t for t in _transforms(dataset) if type(t).__name__ in DRAWING]
    kept = [t.p for t in drawing]
    for transform in drawing:
        forced = hyp.get(DRAWING[type(transform).__name__], transform.p)
        transform.p = forced if mosaic else 0.0
    try:
        yield
    finally:
        for transform, p in zip(drawing, kept, strict=True):
            transform.p = p


def _transforms(dataset: Any) -> list[Any]:
    """Every transform of `dataset.transforms`, those within others too."""
    waiting = [getattr(dataset, "transforms", None)]
    found: list[Any] = []
    while waiting:
        transform = waiting.pop()
        if transform is None or any(transform is known for known in found):
            continue
        found.append(transform)
        inner = getattr(transform, "transforms", None)
        waiting += inner if isinstance(inner, list) else []
        waiting.append(getattr(transform, "pre_transform", None))
    return [t for t in found if hasattr(t, "p")]


def _states() -> tuple[Any, ...]:
    _, keys, position, *rest = np.random.get_state()
    return random.getstate(), keys, position, rest


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b)
    if isinstance(a, dict):
        same = isinstance(b, dict) and a.keys() == b.keys()
        return same and all(_equal(value, b[name]) for name, value in a.items())
    if isinstance(a, (tuple, list)):
        return (
            isinstance(b, (tuple, list))
            and len(a) == len(b)
            and all(_equal(x, y) for x, y in zip(a, b, strict=True))
        )
    return bool(a == b)
