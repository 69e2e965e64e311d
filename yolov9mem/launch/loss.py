# SPDX-License-Identifier: MIT
"""The loss of a script: tried when it is made, and swapped where it is that of YOLOv9."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from yolov9mem.torch import DetectionLoss

from .banner import Line
from .patches import Patches

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}  # written into the official function
TOLERANCE = 1e-4  # relative, of float32


def watch(
    module: types.ModuleType, patches: Patches, tell: Callable[[Line], None]
) -> None:
    """Swaps the calls of a class ComputeLoss that the module defines.

    Each object is tried by itself; what became of it goes to ``tell``.
    """
    cls: Any = vars(module).get("ComputeLoss")
    if not isinstance(cls, type) or cls.__module__ != module.__name__:
        return
    stock_init, stock_call = cls.__init__, cls.__call__  # type: ignore[misc]
    known: weakref.WeakKeyDictionary[Any, _Tried] = weakref.WeakKeyDictionary()

    def tried(loss: Any) -> _Tried:
        """Again where an attribute is another than before: it may be another loss."""
        found = known.get(loss)
        if found is None or not found.holds(loss):
            known[loss] = found = _Tried(loss, functools.partial(stock_call, loss))
            tell(found.line(cls.__name__))
        return found

    @functools.wraps(stock_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(self, *args, **kwargs)
        tried(self)

    @functools.wraps(stock_call)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours = tried(self).ours
        if ours is None or len(args) != 2 or kwargs:  # with more it was not tried
            return stock_call(self, *args, **kwargs)
        p, targets = args
        # In evaluation the decoded output comes first.
        return ours(p[1] if isinstance(p, tuple) else p, targets)

    patches.set(cls, "__init__", init)
    patches.set(cls, "__call__", call)


class _Tried:
    """What a trial of a loss has shown, and of which attributes."""

    def __init__(self, loss: Any, call: Callable[[Any, Tensor], Any]) -> None:
        self.ours: DetectionLoss | None = None
        self.reason = ""
        try:
            self.ours = counterpart(loss, call)
        except Another as reason:
            self.reason = str(reason)
        self._attributes, self._rule = dict(vars(loss)), _rule(loss)

    def holds(self, loss: Any) -> bool:
        """Is it what was tried? What has stayed stock does so, and may count calls."""
        now = vars(loss)
        return self.ours is None or (
            now.keys() == self._attributes.keys()
            and all(now[name] is value for name, value in self._attributes.items())
            and _rule(loss) == self._rule
        )

    def line(self, name: str) -> Line:
        if self.ours is None:
            return "loss, stock", f"{name}: {self.reason}"
        return (
            "loss",
            f"{name}(outputs, targets) swapped: no float32 copy of the outputs",
        )


def _rule(loss: Any) -> dict[str, Any]:
    """Settings of the assigner."""
    assigner = getattr(loss, "assigner", None)
    return {k: getattr(assigner, k, None) for k in ("topk", "alpha", "beta")}


class Another(Exception):
    """It is another loss than ours; the text says why."""


def counterpart(stock: Any, call: Callable[[Any, Tensor], Any]) -> DetectionLoss:
    """Our loss of the same numbers as ``call(output, targets)`` of ``stock``.

    Raises Another where there is none: the two are tried on drawn outputs.
    """
    missing = [name for name in ("nc", "reg_max", "stride", "hyp", "assigner")
               if not hasattr(stock, name)]  # fmt: skip
    if missing:
        raise Another(f"has no {missing[0]}")
    needed = [p.name for p in inspect.signature(call).parameters.values()
              if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]  # fmt: skip
    if len(needed) > 2:
        raise Another(f"takes {' and '.join(needed[2:])} beside outputs and targets")
    try:
        hyp = {name: float(stock.hyp[name]) for name in ("cls_pw", "fl_gamma")}
        ours = DetectionLoss(stock, {**GAINS, **hyp}, **_rule(stock))
        branches = 1 + hasattr(stock, "assigner2") + hasattr(stock, "assigner3")
        for objects in (6, 0):
            _compare(ours, call, *_drawn(ours, stock, branches, objects))
    except Another:
        raise
    except Exception as error:
        raise Another(f"a trial raised {type(error).__name__}: {error}") from error
    return ours


def _drawn(
    ours: DetectionLoss, stock: Any, branches: int, objects: int
) -> tuple[list[list[Tensor]], Tensor]:
    """(branches of levels, targets) of two images with objects that some cells find."""
    home = torch.as_tensor(stock.stride).device
    device = torch.device(getattr(stock, "device", home))
    random = torch.Generator().manual_seed(0)
    size, channels = 4 * int(max(ours.stride)), 4 * ours.reg_max + ours.nc
    made = []
    for _ in range(branches):
        levels = []
        for s in ours.stride:
            side = size // int(s)
            shape = (2, channels, side, side)
            level = torch.randn(shape, generator=random, device="cpu")
            bins = level[:, : 4 * ours.reg_max].unflatten(1, (4, ours.reg_max))
            bins[:, :, 1:3] += 3
            levels.append(level.to(device))
        made.append(levels)
    targets = torch.rand(objects, 6, generator=random, device="cpu")
    targets[:, 0] = torch.arange(objects, device="cpu") % 2
    targets[:, 1] = (targets[:, 1] * ours.nc).floor()
    targets[:, 2:] = targets[:, 2:] * 0.4 + 0.3
    return made, targets.to(device)


def _compare(
    ours: DetectionLoss,
    call: Callable[[Any, Tensor], Any],
    branches: list[list[Tensor]],
    targets: Tensor,
) -> None:
    """Raises Another where values or gradients differ."""
    results = []
    for loss in (call, ours):
        leaves = [[x.clone().requires_grad_() for x in levels] for levels in branches]
        output = leaves if len(leaves) > 1 else leaves[0]
        with torch.enable_grad(), torch.autocast(targets.device.type, enabled=False):
            total, parts = loss(output, targets.clone())
            total.sum().backward()
        grads: list[Any] = [x.grad for levels in leaves for x in levels]
        gradient = torch.cat([grad.flatten() for grad in grads])
        results.append([total.detach().flatten(), parts.flatten(), gradient])
    for name, theirs, made in zip(("loss", "parts", "gradient"), *results):
        if theirs.shape != made.shape:
            raise Another(f"its {name} have another shape")
        apart = float((theirs - made).norm() / theirs.norm().clamp(min=1e-20))
        if not apart <= TOLERANCE:
            raise Another(f"its {name} differs by {apart:.1e} where ours was tried")
