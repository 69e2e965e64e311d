# SPDX-License-Identifier: MIT
"""The model's forward as the launcher wraps it: sliced validation, and a stopwatch.

Validation runs on batches of twice the training batch in the official scripts. The
loader's batch decides the shapes that images are padded to, so it stays; the model gets
it in slices of half the training batch: the stock layers that validation runs need
more for an image than training with `min` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from yolov9mem.torch.recording.isolation import is_recording

Forward = Callable[..., Any]


class Slices:
    """How many images an eval forward gets at most.

    Attributes:
        trained: images of the largest training batch on a device, None: none seen yet.
        count: eval forwards that ran in slices.
        refused: why a model's eval forward cannot be sliced.
    """

    def __init__(self) -> None:
        self.trained: int | None = None
        self.count = 0
        self.refused: str | None = None

    @property
    def most(self) -> int | None:
        """Images of a slice."""
        return None if self.trained is None else -(-self.trained // 2)

    def wanted(self, module: Any, args: Any, kwargs: Any) -> bool:
        """Is this an eval forward of too many images?"""
        return (
            self.most is not None
            and self.refused is None
            and not module.training
            and not torch.is_grad_enabled()
            and len(args) == 1
            and all(value is None or value is False for value in kwargs.values())
            and args[0].ndim == 4
            and len(args[0]) > self.most
            and not torch.jit.is_tracing()
        )

    def run(self, forward: Forward, images: Tensor) -> Any:
        """forward(images), slice by slice."""
        assert self.most is not None
        parts: list[list[Any]] = []
        alike: Any = None
        for part in images.split(self.most):
            leaves, spec = tree_flatten(forward(part))
            now = spec, list(map(_same_in_all, leaves))
            alike = now if alike is None else alike
            self.refused = _why_not(leaves, len(part))
            if self.refused is None and now != alike:
                self.refused = "results that slices give differently"
            if self.refused is not None:
                return forward(images)
            parts.append(leaves)
        self.count += 1
        return tree_unflatten([_joined(same) for same in zip(*parts)], spec)


def _why_not(leaves: list[Any], count: int) -> str | None:
    """Why results for `count` images cannot be joined with others."""
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0 or len(leaf) != count:
                return f"a result of shape {tuple(leaf.shape)} for {count} images"
        elif leaf is not None and not isinstance(leaf, (bool, int, float, str)):
            return f"a result of type {type(leaf).__name__}"
    return None


def _same_in_all(leaf: Any) -> Any:
    """What of a result must be the same in all slices."""
    return (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf


def _joined(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else parts[0]


class Watcher(Protocol):
    """What the wrapped forward asks and tells: the session that is on."""

    slices: Slices

    def trained(self, module: Any, images: Tensor) -> None:
        """A training forward begins."""

    def evaluates(self) -> None:
        """A forward in eval mode begins."""

    def evaluated(self) -> None:
        """It is done."""


def first_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a forward, by place or by name; None: there is none."""
    return next(iter((*args, *kwargs.values())), None)


def images_of(given: Any) -> Any:
    """The images in the first argument of a forward."""
    return given["img"] if calls_again(given) else given


def calls_again(given: Any) -> bool:
    """Is it a batch of ultralytics'? Its training forward gets all of it, and calls
    forward again with the images."""
    return isinstance(given, dict) and "img" in given


def is_wrapped(forward: Forward) -> bool:
    """Has wrap_forward made it?"""
    return hasattr(forward, "yolov9mem_launch")


def wrap_forward(
    stock: Forward, swapped: Forward, watcher: Callable[[], Watcher | None]
) -> Forward:
    """A class's forward with sliced validation.

    Args:
        stock: the class's own; runs where it calls forward again.
        swapped: after checkpoint(): what runs a checkpointed instance.
        watcher: gives the session that is on, or None.
    """
    is_compiling = torch.compiler.is_compiling

    @functools.wraps(swapped)  # by this checkpoint() knows what is beneath
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():  # first: torch.compile is to read no more of this
            return swapped(self, *args, **kwargs)
        watching = watcher()
        if watching is None or is_recording():
            return swapped(self, *args, **kwargs)
        given = first_of(args, kwargs)
        if calls_again(given):
            return stock(self, *args, **kwargs)
        if not isinstance(given, Tensor) or given.ndim == 0:
            return swapped(self, *args, **kwargs)
        if self.training and torch.is_grad_enabled():
            watching.trained(self, given)
        if self.training:
            return swapped(self, *args, **kwargs)
        watching.evaluates()
        try:
            if watching.slices.wanted(self, args, kwargs):
                whole = functools.partial(swapped, self, **kwargs)
                return watching.slices.run(whole, given)
            return swapped(self, *args, **kwargs)
        finally:
            watching.evaluated()

    forward.yolov9mem_launch = True
    return forward
