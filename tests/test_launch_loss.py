# SPDX-License-Identifier: MIT
"""The loss of a script, as the launcher swaps it: tried first, and another one's stays."""

from __future__ import annotations

import copy
import re
import types
from types import SimpleNamespace
from typing import Any

import per_image_loss
import pytest
import torch
from loss_cases import make_case

from yolov9mem.launch import loss
from yolov9mem.launch.patches import Patches

NC = 3


class ComputeLoss:
    """As that of the official script: one image at a time here, see per_image_loss.py."""

    branches, gain = 2, 7.5

    def __init__(self, model: Any) -> None:
        self.nc, self.reg_max = model.nc, 16
        self.stride = torch.tensor(per_image_loss.STRIDES)
        self.hyp = {"cls_pw": 1.0, "fl_gamma": 0.0}
        self.assigner = SimpleNamespace(topk=10, alpha=0.5, beta=6.0)
        for number in range(2, self.branches + 1):
            setattr(self, f"assigner{number}", self.assigner)
        self.calls = 0

    def __call__(
        self, p: Any, targets: torch.Tensor, img: Any = None, epoch: int = 0
    ) -> Any:
        self.calls += 1
        p = p[1] if isinstance(p, tuple) else p
        branches = p if self.branches > 1 else [p]
        weights = [0.25] * (self.branches - 1) + [1.0]
        return per_image_loss.loss(branches, weights, targets, [self.gain, 0.5, 1.5])


class Single(ComputeLoss):
    branches = 1


class OtherGain(ComputeLoss):
    gain = 7.4


class Triple(ComputeLoss):
    branches = 3


class Weighted(ComputeLoss):
    def __call__(
        self, p: Any, targets: torch.Tensor, img: Any = None, weight: float = 1.0
    ) -> Any:
        total, parts = super().__call__(p, targets)
        return total * weight, parts


class Old:
    """As YOLOv5's."""

    def __init__(self, model: Any) -> None:
        self.nc = model.nc

    def __call__(self, p: Any, targets: torch.Tensor) -> Any:
        return sum(x.sum() for x in p), torch.zeros(3)


class Masked(ComputeLoss):
    """As that of segmentation."""

    def __call__(self, p: Any, targets: torch.Tensor, masks: Any) -> Any:
        return super().__call__(p, targets)


class Failing(ComputeLoss):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyError("image sizes")


class Launched:
    """A module that defines the class as ComputeLoss, watched."""

    def __init__(self, base: type) -> None:
        self.module = types.ModuleType("utils.loss_tal_dual")
        self.cls: Any = type(
            "ComputeLoss", (base,), {"__module__": self.module.__name__}
        )
        self.module.ComputeLoss = self.cls  # type: ignore[attr-defined]
        self.lines: list[tuple[str, str]] = []
        self.patches = Patches()
        loss.watch(self.module, self.patches, self.lines.append)

    def made(self) -> Any:
        return self.cls(SimpleNamespace(nc=NC))


def output(branches: int) -> tuple[Any, torch.Tensor]:
    made = [make_case(seed, nc=NC) for seed in range(branches)]
    levels = [[torch.tensor(z).float() for z in case[0]] for case in made]
    return levels if branches > 1 else levels[0], torch.tensor(made[0][1]).float()


@pytest.mark.parametrize("base", [ComputeLoss, Single, Triple])
def test_the_same_loss_is_swapped(base: type) -> None:
    launched = Launched(base)
    made = launched.made()
    text = "ComputeLoss(outputs, targets) swapped: no float32 copy of the outputs"
    assert launched.lines == [("loss", text)]
    p, targets = output(base.branches)  # type: ignore[attr-defined]
    tried = made.calls
    found = made(p, targets)
    in_evaluation = made((torch.zeros(1), p), targets)
    assert made.calls == tried > 0
    truth = base(SimpleNamespace(nc=NC))(p, targets)
    for a, b, e in zip(found, in_evaluation, truth, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, e, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "base, reason",
    [
        (OtherGain, "its loss differs by [0-9.e-]+ where ours was tried"),
        (Old, "has no reg_max"),
        (Masked, "takes masks beside outputs and targets"),
        (Failing, "a trial raised KeyError: 'image sizes'"),
    ],
)
def test_another_loss_stays_and_is_named(base: type, reason: str) -> None:
    launched = Launched(base)
    made = launched.made()
    ((name, text),) = launched.lines
    assert name == "loss, stock"
    assert re.fullmatch(f"ComputeLoss: {reason}", text)
    if base is not Failing:
        p, targets = output(2)
        calls = getattr(made, "calls", None)
        more = (None,) if base is Masked else ()
        made(p[0] if base is Old else p, targets, *more)
        assert calls is None or made.calls == calls + 1


def test_a_call_with_more_arguments_is_stock() -> None:
    launched = Launched(Weighted)
    made, truth = launched.made(), Weighted(SimpleNamespace(nc=NC))
    assert launched.lines[-1][0] == "loss"
    p, targets = output(2)
    for more, named in [((None, 0.5), {}), ((), {"weight": 2.0})]:
        found, wanted = (
            made(p, targets, *more, **named),
            truth(p, targets, *more, **named),
        )
        assert torch.equal(found[0], wanted[0])
    assert torch.equal(made(p=p, targets=targets)[0], truth(p, targets)[0])


def test_each_object_is_tried_by_itself() -> None:
    launched = Launched(ComputeLoss)
    launched.made()
    launched.cls.gain = 1.0
    launched.made()
    assert [name for name, _ in launched.lines] == ["loss", "loss, stock"]


def test_what_is_changed_afterwards_is_tried_again() -> None:
    launched = Launched(ComputeLoss)
    made, other = launched.made(), launched.made()
    p, targets = output(2)
    before = made(p, targets)[0]
    made.gain = 15.0
    changed = made(p, targets)[0]
    assert changed > before + 5 and launched.lines[-1][0] == "loss, stock"
    other.assigner = SimpleNamespace(topk=3, alpha=0.5, beta=6.0)
    tried = len(launched.lines)  # this stand-in does not look at its assigner
    torch.testing.assert_close(other(p, targets)[0], before, rtol=1e-5, atol=0)
    assert [name for name, _ in launched.lines[tried:]] == ["loss, stock"]


def test_a_copy_is_tried_as_well() -> None:
    launched = Launched(ComputeLoss)
    made = copy.deepcopy(launched.made())
    p, targets = output(2)
    made(p, targets)
    calls = made.calls
    made(p, targets)
    assert made.calls == calls and launched.lines[-1][0] == "loss"


def test_random_numbers_and_patches_are_as_before() -> None:
    state = torch.get_rng_state()
    launched = Launched(ComputeLoss)
    launched.made()
    assert torch.equal(torch.get_rng_state(), state)
    launched.patches.undo()
    assert launched.made().calls == 0


def test_only_the_module_that_defines_it_is_watched() -> None:
    module = types.ModuleType("train_dual")
    module.ComputeLoss = ComputeLoss  # type: ignore[attr-defined]
    before = ComputeLoss.__call__
    loss.watch(module, Patches(), print)
    assert ComputeLoss.__call__ is before
