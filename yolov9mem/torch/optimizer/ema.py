# SPDX-License-Identifier: MIT
"""The exponential moving average of a model, as YOLOv9 trains with."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from yolov9mem._checks import as_float, check_names, check_whole
from yolov9mem.sgd import is_finite

from ..checks import check_module
from .averages import AveragePairs, unwrap
from .step_table import StepTable


class ModelEMA:
    """Averages every floating-point entry of a model's state_dict.

    With d = decay(updates): average = average * d + model * (1 - d), bit-equal to the
    official class, in one pass over memory. Integer entries stay as they were.

    Hand it to `AccumulatingSGD(..., ema=ema, model=model)` and the average moves within
    the optimizer step; then do not call `update`.

    Args:
        model: copied; the copy is `ema`, in eval mode, without gradients.
        decay: final decay, in [0, 1].
        tau: updates after which the decay is 63 % of the final one; above 0.
        updates: number of updates already made, at least 0.

    Raises:
        TypeError: model is no module, decay or tau no number, or updates no whole one.
        ValueError: decay, tau or updates breaks its rule.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        tau: float = 2000,
        updates: int = 0,
    ) -> None:
        check_module("model", model)
        for name, value in (("decay", decay), ("tau", tau)):
            is_finite(name, value)  # raises for what is no number
        if not 0 <= decay <= 1:
            raise ValueError(f"decay: is {decay}, must be in [0, 1]")
        if not tau > 0:
            raise ValueError(f"tau: is {tau}, must be above 0")
        updates = check_whole("updates", updates, 0, 2**63 - 1)
        self.ema = copy.deepcopy(unwrap(model)).eval()
        self.ema.requires_grad_(False)
        self.updates = updates
        self._final_decay, self._tau = as_float(decay), as_float(tau)

    def decay(self, updates: int) -> float:
        """The decay of update number `updates` (1 is the first)."""
        return self._final_decay * (1 - math.exp(-(updates / self._tau)))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Counts one update and moves the average towards the model.

        Raises:
            TypeError: model is no module.
            ValueError: it has not the average's tensors.
        """
        decay = self.decay(self.updates + 1)
        pairs = AveragePairs(self.ema, model)
        StepTable([], {}, pairs).move_averages(decay)
        self.updates += 1

    def update_attr(
        self,
        model: nn.Module,
        include: Iterable[str] = (),
        exclude: Iterable[str] = ("process_group", "reducer"),
    ) -> None:
        """Copies plain attributes (names, class weights) of the model to the average.

        Args:
            include: names to copy; empty: all that do not start with an underscore.
            exclude: names never copied.

        Raises:
            TypeError: model is no module, include or exclude is no collection of names.
        """
        check_module("model", model)
        wanted = check_names("include", include)
        unwanted = check_names("exclude", exclude)
        for name, value in vars(unwrap(model)).items():
            if (
                name.startswith("_")
                or name in unwanted
                or (wanted and name not in wanted)
            ):
                continue
            _set(self.ema, name, value)


def _set(module: nn.Module, name: str, value: Any) -> None:
    if name != "training":
        setattr(module, name, value)
