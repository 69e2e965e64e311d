# SPDX-License-Identifier: MIT
"""What a launched script finds as torch.optim.SGD: ours, but for what a script can tell."""

from __future__ import annotations

import copyreg
import operator
from typing import Any

import torch

from yolov9mem.torch import AccumulatingSGD

StockSGD = torch.optim.SGD


class _StandsForSGD(type):
    """Of SwappedSGD: what is a torch.optim.SGD in stock is one of it, so too where the
    stock class itself was made. Its subclasses are classes as any other."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(_asked_for(cls), instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return type.__subclasscheck__(_asked_for(cls), subclass)


def _asked_for(cls: type) -> type:
    return StockSGD if cls is SwappedSGD else cls


class SwappedSGD(AccumulatingSGD, metaclass=_StandsForSGD):
    """torch.optim.SGD for scripts: zeroing is left to them, as it is stock.

    Pickles, which open where yolov9mem is not installed, are those of a torch.optim.SGD.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is SwappedSGD and (kwargs.get("fused") or kwargs.get("differentiable")):
            return StockSGD(*args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Of a class of the script's, which is to stay one: to fuse is what ours does.
        kwargs.pop("fused", None)
        super().__init__(*args, zero_grads=False, **kwargs)

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self.zero_grads = False

    def __getstate__(self) -> dict[str, Any]:
        return torch.optim.Optimizer.__getstate__(self)


# Scripts print the class's name.
SwappedSGD.__name__ = SwappedSGD.__qualname__ = AccumulatingSGD.__name__


def _pickled(cls: type) -> Any:
    """A class of the metaclass, as pickle writes it: the stock one, or by its name."""
    if cls is SwappedSGD:
        return operator.getitem, ((StockSGD,), 0)
    return cls.__qualname__


copyreg.pickle(_StandsForSGD, _pickled)


def is_swapped(optimizer: Any) -> bool:
    """Did the script ask for torch.optim.SGD?"""
    return type.__instancecheck__(SwappedSGD, optimizer)
