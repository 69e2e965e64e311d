# SPDX-License-Identifier: MIT
"""What a detection loss is made of and called with: each error names value and rule."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loss_by_loops import HYP
from loss_cases import head, make_case

from yolov9mem.torch import DetectionLoss

NAN, INF = math.nan, math.inf


def levels_of(seed: int) -> list[torch.Tensor]:
    return [torch.tensor(z).float() for z in make_case(seed)[0]]


def made(head_values=(), hyp=(), **settings):
    changed = SimpleNamespace(**{**vars(head(3)), **dict(head_values)})
    return DetectionLoss(changed, {**HYP, **dict(hyp)}, **settings)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nc": 0}, "head: nc: is 0, must be a whole number of at least 1"),
        ({"nc": 2.5}, "head: nc: is 2.5, must be a whole number"),
        ({"reg_max": 1}, "head: reg_max: is 1, must be at least 2"),
        ({"reg_max": INF}, "head: reg_max: is inf, must be a whole number"),
        (
            {"stride": torch.zeros(3)},
            r"head: stride: is \[0.0, 0.0, 0.0\], must be fin",
        ),
        ({"stride": [8.0, NAN]}, r"head: stride: is \[8.0, nan\], must be finite"),
        ({"stride": 8}, "head: stride: is 8, must be a number of pixels for each"),
    ],
)
def test_heads_that_have_no_such_loss(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        made(change)


def test_values_of_a_head_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="head: nc: expected a number, got str: '3'"):
        made({"nc": "3"})
    with pytest.raises(TypeError, match="head: stride: is None, must be a number"):
        made({"stride": None})


@pytest.mark.parametrize("name", ["box", "cls", "dfl", "cls_pw", "fl_gamma"])
def test_gains_are_finite_numbers(name) -> None:
    """A file of hyper-parameters may have 1e-3, which YAML reads as text."""
    with pytest.raises(TypeError, match=f"hyp: {name}: expected a number, got str"):
        made(hyp={name: "1e-3"})
    for value in (NAN, INF, 10**400):
        with pytest.raises(ValueError, match=f"hyp: {name}: is .*, must be finite"):
            made(hyp={name: value})


def test_gains_are_in_a_mapping() -> None:
    with pytest.raises(
        TypeError, match="hyp: is a NoneType, must map names to numbers"
    ):
        DetectionLoss(head(3), None)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"topk": 0}, "topk: is 0, must be a whole number of at least 1"),
        ({"topk": 1.5}, "topk: is 1.5, must be a whole number"),
        ({"topk": INF}, "topk: is inf, must be a whole number"),
        ({"alpha": NAN}, "alpha: is nan, must be finite and at least 0"),
        ({"beta": -1}, "beta: is -1, must be finite and at least 0"),
    ],
)
def test_settings_of_the_assigner(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)


def test_numbers_may_be_numpys_or_tensors() -> None:
    levels, targets = levels_of(1), torch.tensor(make_case(1)[1]).float()
    plain = made()(levels, targets)
    strides = vars(head(3))["stride"]
    other = made(
        {"nc": torch.tensor(3), "stride": np.asarray(strides)},
        {name: np.float64(gain) for name, gain in HYP.items()},
        topk=np.int8(10),
        alpha=torch.tensor(0.5),
        beta=6,
    )(levels, targets)
    for one, same in zip(plain, other, strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize("output", [None, 5, "abc", {0: 1}, torch.zeros(2, 67, 12, 12)])
def test_output_that_is_no_list(output) -> None:
    with pytest.raises(TypeError, match="output: is a .*, must be a list or tuple"):
        made()(output, torch.zeros(0, 6))


def test_levels_that_are_no_dense_tensors_of_one_device() -> None:
    row = torch.zeros(0, 6)
    with pytest.raises(ValueError, match=r"output\[0\]: has 0 levels, the head 3"):
        made()([], row)
    for place in range(3):
        levels = levels_of(1)
        levels[place] = None
        with pytest.raises(
            TypeError, match=rf"\[0\]\[{place}\]: is a NoneType, must be"
        ):
            made()(levels, row)
        levels = levels_of(1)
        levels[place] = levels[place].to_sparse()
        with pytest.raises(ValueError, match=r"is torch.sparse_coo, must be dense"):
            made()(levels, row)
    levels = levels_of(1)
    levels[1] = levels[1].to("meta")
    with pytest.raises(ValueError, match=r"output\[0\]\[1\]: is on meta, beside cpu"):
        made()(levels, row)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_targets_are_real_numbers(dtype) -> None:
    with pytest.raises(ValueError, match=f"targets: is {dtype}, must be real numbers"):
        made()(levels_of(1), torch.zeros(1, 6, dtype=dtype))
