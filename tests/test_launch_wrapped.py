# SPDX-License-Identifier: MIT
"""Scripts, launched, that put forwards around the model's, or make another of its class."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import image, ran_in_core
from torch import nn
from wrappers import (
    Around,
    bound,
    by_attribute,
    by_object,
    on_class,
    on_instance,
    says,
    times_five,
    twins,
)

import yolov9mem.torch as ym
from yolov9mem.launch.launch import Launch

PLACES = [on_class, on_instance, bound, by_object, by_attribute]


def losses(module: nn.Module, steps: int) -> list[float]:
    """Of some steps, each of a new optimizer, as a script's that trains anew."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    made = []
    for _ in range(steps):
        loss = module(image()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.append(loss.item())
    return made


@pytest.mark.parametrize("around", [times_five, says(times_five)])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("late", [False, True], ids=["before", "between"])
def test_what_is_around_the_model_s_forward(
    launch: Launch, place: Around, around: Around, late: bool
) -> None:
    def trained(module: nn.Module) -> list[float]:
        first = losses(module, 1) if late else []
        place(module, around)
        return first + losses(module, 2)

    ours, stock = twins()
    made = trained(ours)
    assert launch.session is not None
    assert ran_in_core(ours) == launch.session.measure.forwards == len(made)
    launch.stop()
    assert made == pytest.approx(trained(stock), rel=1e-4)


@pytest.mark.parametrize("around", [None, times_five, says(times_five)])
def test_all_of_a_class_are_measured(launch: Launch, around: Around | None) -> None:
    kind = type(twins()[0])
    for count in (1, 2):
        model = kind()
        losses(model, count)
        session = launch.session
        assert session is not None and session.model() is model
        assert session.measure.forwards == count == ran_in_core(model)
        ym.checkpoint(model, keep="min")
        losses(model, 2)
        assert session.measure.forwards == count + 2
        if around is not None:
            on_class(model, around)
