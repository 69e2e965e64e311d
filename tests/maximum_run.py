# SPDX-License-Identifier: MIT
"""Maxima by NumPy, and in plans on torch's tensors, emulated or on a GPU: the same bits,
for what is chosen is never rounded.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from kernel_cases import CASES, Case
from kernel_oracle import draw
from tensor_run import LIMIT, TensorRun

MAXIMA = [case for case in CASES if case.name.startswith("maximum ")]
DTYPES = tuple(LIMIT)


def with_ties(values: np.ndarray, seed: int) -> np.ndarray:
    """A few whole numbers, zeros of both signs; in places infinities and NaNs."""
    random = np.random.default_rng(seed)
    made = np.clip(np.trunc(values * 1.4), -2, 2).astype(np.float32)
    rare = random.random(made.shape)
    made[rare < 2 / max(1000, made.size // 10)] = np.nan
    made[(rare > 0.5) & (rare < 0.52)] = -np.inf
    # Nothing else over all pixels of a channel, nor over all channels of a pixel.
    made[-1, ..., -1] = made[-1, -1, -1] = made[-1, :, -1, -1] = -np.inf
    return made


def by_numpy(x: np.ndarray, dy: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The maxima of x (N, H, W, C) over some of "hwc", the first of equals but the last
    NaN, and the gradient of x that dy makes."""
    sides = tuple("nhwc".index(axis) for axis in axes)
    last = tuple(range(-len(sides), 0))
    moved = np.moveaxis(x, sides, last)
    flat = moved.reshape(*moved.shape[: -len(sides)], -1)
    nans = np.isnan(flat)
    last_nan = flat.shape[-1] - 1 - nans[..., ::-1].argmax(-1)
    place = np.where(nans.any(-1), last_nan, flat.argmax(-1))[..., None]
    dx = np.zeros_like(flat)
    np.put_along_axis(dx, place, np.moveaxis(dy, sides, last).reshape(place.shape), -1)
    y = np.take_along_axis(flat, place, -1)[..., 0]
    return np.expand_dims(y, sides), np.moveaxis(dx.reshape(moved.shape), last, sides)


def assert_same(made: np.ndarray, truth: np.ndarray, what: object = "") -> None:
    """The signs of zeros too; one NaN is as good as another."""
    np.testing.assert_array_equal(made, truth, err_msg=str(what))
    known = ~np.isnan(truth)
    signs = np.signbit(made)[known], np.signbit(truth)[known]
    np.testing.assert_array_equal(*signs, err_msg=f"{what}: signs")


def check_maxima(case: Case, dtype: torch.dtype, backend: str, ties: bool) -> None:
    """Output and input gradient, and their bits when it runs again."""
    graph, arrays = draw(case, dtype)
    if ties:
        x = with_ties(arrays.inputs[0].numpy(), 5)
        arrays.inputs = [torch.from_numpy(x)]
    given = SimpleNamespace(graph=graph, inputs=arrays.inputs, params=[], norms=[])
    run = TensorRun(given, backend, dtype, "all")
    images = [x.permute(0, 2, 3, 1).numpy() for x in (*arrays.inputs, arrays.grad)]
    truth = by_numpy(*images, case.name.split()[-1])
    first = [x.cpu() for x in run.run([arrays.grad])]
    for mine, again, exact in zip(first, run.run([arrays.grad]), truth, strict=True):
        assert_same(mine.float().numpy(), exact, case.name)
        assert_same(again.cpu().float().numpy(), exact, f"{case.name} again")
