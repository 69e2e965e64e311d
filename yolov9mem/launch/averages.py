# SPDX-License-Identifier: MIT
"""The moving average of a script: found, tried, and moved in one pass over memory.

It moves when the script says so and not within the step, which could not be taken back:
scripts begin with it late, move it at every second step or once an epoch, clamp weights
after a step, or set its `updates`.
"""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from yolov9mem.torch.optimizer.averages import AveragePairs, unwrap
from yolov9mem.torch.optimizer.table_cache import TableCache

from .patches import Patches


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

    Tried on copies with two small modules, as the next update and as later ones.
    """
    for updates in (average.updates, 700, 701):
        reason = _why_not_at(average, updates)
        if reason is not None:
            return f"{type(average).__name__}: {reason}"
    return None


def _why_not_at(average: Any, updates: int) -> str | None:
    """The official update: v *= d; v += (1 - d) * m, and one more of `updates`."""
    with torch.random.fork_rng(devices=[]):
        old, live = nn.Linear(31, 7), nn.Linear(31, 7)
    trial = copy.copy(average)
    trial.ema, trial.updates = copy.deepcopy(old).requires_grad_(False), updates
    try:
        trial.update(live)
        decay = float(average.decay(updates + 1))
    except Exception as error:
        return f"a trial update raised {type(error).__name__}: {error}"
    if _others(trial) != _others(average):
        return "its update sets more than `ema` and `updates`"
    for ours, theirs, new in zip(
        old.parameters(), trial.ema.parameters(), live.parameters()
    ):
        wanted = ours.detach() * decay + (1 - decay) * new.detach()
        if trial.updates != updates + 1 or not torch.equal(theirs, wanted):
            is_lerp = torch.equal(theirs, ours.detach().lerp(new.detach(), 1 - decay))
            how = "is torch.lerp, which" if is_lerp else "has another formula and"
            return f"its update {how} rounds otherwise than v * d + (1 - d) * m"
    return None


def _others(average: Any) -> dict[str, int]:
    """What else it has, and which objects these are."""
    return {k: id(v) for k, v in vars(average).items() if k not in ("ema", "updates")}


def why_none() -> str:
    """What to say where `find` finds nothing."""
    for thing in _holding("on_train_batch_end", {"ema_state_dict", "decay"}):
        return (
            f"{type(thing).__name__}: keeps a state_dict and not a model, and makes it "
            "anew as m + (v - m) * d, which rounds otherwise than v * d + (1 - d) * m"
        )
    return "none found with .ema, .updates and .decay(x)"


def swap(average: Any, model: nn.Module, patches: Patches) -> None:
    """`average.update(model)` is ours until the patches are undone.

    The class's method is replaced and not the object's, so that pickles and copies of the
    object are stock.

    Raises:
        TypeError: the object cannot be referred to weakly.
        ValueError: the model has not the average's tensors.
    """
    cls: Any = type(average)
    if not hasattr(cls.update, "yolov9mem_moves"):
        patches.set(cls, "update", _updating(cls.update))
    cls.update.yolov9mem_moves[average] = _Move(average, model)


def _updating(stock: Any) -> Any:
    moves: weakref.WeakKeyDictionary[Any, _Move] = weakref.WeakKeyDictionary()

    @functools.wraps(stock)
    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        move = moves.get(self)
        if move is None or len(args) != 1 or kwargs or not move(self, *args):
            return stock(self, *args, **kwargs)
        return None

    update.yolov9mem_moves = moves
    return update


class _Move:
    """The update of one average of one model."""

    def __init__(self, average: Any, model: nn.Module) -> None:
        self._pairs = AveragePairs(average.ema, model)
        self._tables = TableCache()
        self._others = _others(average)

    @torch.no_grad()
    def __call__(self, average: Any, model: Any) -> bool:
        """Counts and moves; False: nothing was done, for it is not that model, or what
        only the stock update can do."""
        if unwrap(model) is not self._pairs.model or _others(average) != self._others:
            return False
        try:
            if not self._pairs.are_of(average.ema):  # the script has set another
                self._pairs = AveragePairs(average.ema, model)
            decay = float(average.decay(average.updates + 1))
            self._tables.table([], {}, self._pairs).move_averages(decay)
        except (TypeError, ValueError):
            return False
        average.updates += 1
        return True
