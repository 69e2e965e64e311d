# SPDX-License-Identifier: MIT
"""Pairs of a model's tensors and the tensors of its moving average."""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from .overlap import repeats


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ) and isinstance(model.module, nn.Module):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def find_model(average: nn.Module, parameters: Iterable[Tensor]) -> nn.Module:
    """The one live module of the average's class that owns any of the parameters.

    The official ModelEMA keeps no reference to the model that it averages.

    Raises:
        ValueError: there is none, or more than one.
    """
    wanted = {id(p) for p in parameters}
    found = [
        module
        for module in gc.get_objects()
        if type(module) is type(average)
        and module is not average
        and any(id(p) in wanted for p in module.parameters())
        and _shapes(module) == _shapes(average)
    ]
    if len(found) != 1:
        raise ValueError(
            f"ema: {len(found)} live modules of class {type(average).__name__} own "
            "parameters of this optimizer, must be one; pass model= as well"
        )
    return found[0]


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in module.state_dict().items()}


class AveragePairs:
    """The floating-point entries of two modules' state_dicts, paired by name.

    Holds where a tensor lives (the module's own dict and key), not the tensor, so that
    `model.half()`, `--resume` and the like need no notice. A changed module tree is
    noticed and read again.

    Args:
        average: the module that holds the averages (`ema.ema`).
        model: the live module; wrappers are taken off both.

    Raises:
        TypeError: the average or the model is no module.
        ValueError: an entry of the average is missing in the model.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        check_module("ema: ema", average)
        check_module("model", model)
        self.average = unwrap(average)
        self.model = unwrap(model)
        self._read()

    def are_of(self, average: nn.Module) -> bool:
        """Are the averages this module's?"""
        return average is self.average or unwrap(average) is self.average

    def _read(self) -> None:
        self._tree = [_Tree(self.average), _Tree(self.model)]
        averages, lives = (tree.places for tree in self._tree)
        missing = [name for name in averages if name not in lives]
        if missing:
            raise ValueError(
                f"ema: {missing[0]} is in the average but not in the model "
                f"({len(missing)} such entries)"
            )
        self._places = [(*averages[name], *lives[name], name) for name in averages]
        floats = [
            name
            for name, (d, key) in averages.items()
            if d[key] is not None and d[key].is_floating_point()
        ]
        entries = [tree[name] for tree in (averages, lives) for name in floats]
        self._dicts = [d for d, _ in entries]
        self._keys = [key for _, key in entries]

    def tensors(self) -> list[Tensor | None]:
        """Every floating-point entry of both: what a cache has to look at."""
        self._read_if_changed()
        return list(map(dict.get, self._dicts, self._keys))

    def _read_if_changed(self) -> None:
        if any(tree.is_changed() for tree in self._tree):
            self._read()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(average, live) of every floating-point entry, in state_dict order.

        Raises:
            ValueError: two tensors of one name differ in shape.
        """
        self._read_if_changed()
        for average_dict, average_key, live_dict, live_key, name in self._places:
            average, live = average_dict[average_key], live_dict[live_key]
            if average is None or not average.is_floating_point():
                continue
            if live is None or average.shape != live.shape:
                shape = None if live is None else tuple(live.shape)
                raise ValueError(
                    f"ema: {name} has shape {tuple(average.shape)} in the average and "
                    f"{shape} in the model"
                )
            yield average, live


class _Tree:
    """Where each state_dict entry of a module lives, and what would change that."""

    def __init__(self, root: nn.Module) -> None:
        self.places: dict[str, tuple[dict[str, Any], str]] = {}
        self._dicts: list[dict[str, Any]] = []
        self._parents: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._children: list[Any] = []
        for path, module in root.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            hidden = module._non_persistent_buffers_set
            for tensors in (module._parameters, module._buffers):
                for key in tensors:
                    if key not in hidden:
                        self.places[prefix + key] = (tensors, key)
            self._dicts += (module._parameters, module._buffers, module._modules)
            for key, child in module._modules.items():
                self._parents.append(module._modules)
                self._keys.append(key)
                self._children.append(child)
        self._sizes = list(map(len, self._dicts))

    def is_changed(self) -> bool:
        children = map(dict.get, self._parents, self._keys)
        return list(map(len, self._dicts)) != self._sizes or not all(
            map(operator.is_, children, self._children)
        )


def why_not_moved(average: Tensor, live: Tensor) -> str | None:
    """Why `move_average` could not write the average; None: it can."""
    if average.device != live.device and not (live.is_cpu and live.ndim == 0):
        return f"is on {live.device}, its average on {average.device}"
    if not torch.can_cast(torch.result_type(average, live), average.dtype):
        return f"is {live.dtype}, which its average, {average.dtype}, cannot hold"
    if repeats(average):
        strides = average.stride()
        return f"several elements of its average are one in memory (strides {strides})"
    if average.is_inference() and not torch.is_inference_mode_enabled():
        return "its average was made in inference mode and cannot be written outside"
    return None


@torch.no_grad()
def move_average(average: Tensor, live: Tensor, decay: float) -> None:
    """The official update of one tensor, by torch: `v *= d; v += (1 - d) * m`."""
    average.mul_(decay)
    average.add_((1 - decay) * live.detach())
