# SPDX-License-Identifier: MIT
"""Hyper-parameters of parameter groups, as they come and as C takes them."""

from __future__ import annotations

from array import array
from typing import Any

from yolov9mem.sgd import is_finite

RATES = ("lr", "momentum", "dampening", "weight_decay")
NAMES = (*RATES, "nesterov", "maximize")


def check_finite(settings: dict[str, Any]) -> None:
    """Those of these settings that are rates.

    Raises:
        TypeError: one is no number.
        ValueError: one is not finite.
    """
    for name in RATES:
        if name in settings and not is_finite(name, settings[name]):
            raise ValueError(f"{name}: is {settings[name]}, must be finite")


def refuse_other_steps(settings: dict[str, Any]) -> None:
    """Raises NotImplementedError for steps that have other bits than the loop."""
    for name in ("differentiable", "fused"):
        if settings.get(name):
            raise NotImplementedError(f"AccumulatingSGD: {name}=True is not supported")


def hyper_of(groups: list[dict[str, Any]]) -> array[float]:
    """The groups' numbers as C takes them.

    Raises:
        TypeError: one is no number.
    """
    try:
        return array("d", [float(group[name]) for group in groups for name in NAMES])
    except (TypeError, ValueError, RuntimeError):
        for number, group in enumerate(groups):
            for name in NAMES:
                is_finite(f"param_groups[{number}]: {name}", group[name])
        raise
