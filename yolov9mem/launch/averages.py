# SPDX-License-Identifier: MIT
"""The moving average of a script: found, and tried before it is swapped."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def find(model: nn.Module) -> Any:
    """The object that averages the model: `.ema` of its class, `.updates`, `.decay`.

    One of a training before may still be there; a new one equals the model.
    """
    holding = _holding("update", {"ema", "updates", "decay"})
    found = [thing for thing in holding if _averages(thing, model)]
    equal = [thing for thing in found if _equals(thing.ema, model)]
    return next(iter(equal + found), None)


def _holding(method: str, names: set[str]) -> Iterator[Any]:
    """Every object whose class has the method, with these attributes of its own."""
    plausible: dict[type, bool] = {}
    for thing in gc.get_objects():  # the youngest first
        kind = type(thing)
        if kind not in plausible:
            has_method = callable(getattr(kind, method, None))
            plausible[kind] = has_method and kind.__dictoffset__ != 0
        if not plausible[kind]:
            continue
        try:
            held = object.__getattribute__(thing, "__dict__")
        except AttributeError:
            continue
        if names <= held.keys():
            yield thing


def _averages(thing: Any, model: nn.Module) -> bool:
    if type(thing.ema) is not type(model):
        return False
    a, b = ({k: v.shape for k, v in m.state_dict().items()} for m in (thing.ema, model))
    return a == b


def _equals(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x.detach(), y.detach()) for x, y in pairs)


def why_not(average: Any) -> str | None:
    """Why its update must stay its own; None: it is the official one, bit for bit.

    Tried on a copy with two small modules: v *= d; v += (1 - d) * m.
    """
    name = type(average).__name__
    with torch.random.fork_rng(devices=[]):
        old, live = nn.Linear(31, 7), nn.Linear(31, 7)
    trial = copy.copy(average)
    trial.ema, trial.updates = copy.deepcopy(old).requires_grad_(False), 700
    try:
        trial.update(live)
        decay = float(average.decay(701))
    except Exception as error:
        return f"{name}: a trial update raised {type(error).__name__}: {error}"
    for ours, theirs, new in zip(
        old.parameters(), trial.ema.parameters(), live.parameters()
    ):
        wanted = ours.detach() * decay + (1 - decay) * new.detach()
        if trial.updates != 701 or not torch.equal(theirs, wanted):
            is_lerp = torch.equal(theirs, ours.detach().lerp(new.detach(), 1 - decay))
            how = "is torch.lerp, which" if is_lerp else "has another formula and"
            return f"{name}: its update {how} rounds otherwise than v * d + (1 - d) * m"
    return None


def why_none() -> str:
    """What to say where `find` finds nothing."""
    for thing in _holding("on_train_batch_end", {"ema_state_dict", "decay"}):
        return (
            f"{type(thing).__name__}: keeps a state_dict and not a model, and makes it "
            "anew as m + (v - m) * d, which rounds otherwise than v * d + (1 - d) * m"
        )
    return "none found with .ema, .updates and .decay(x)"
