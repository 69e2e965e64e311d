# SPDX-License-Identifier: MIT
"""What stands for a tensor that stock calls save for backward and that can be recomputed.

Autograd saves a promise in its place, so that nothing holds the tensor: an output of a
stage (recomputed_outputs.py), or what a gap shares with stock calls (recompute.py).
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import TensorWeakRef

from ..recording.effects import memory_of
from ..versions import saving_hooks


class Promise:
    """To make a tensor again, in the same layout."""

    def __init__(self, tensor: Tensor) -> None:
        self.memory = memory_of(tensor)
        self._dtype = tensor.dtype
        self.saved: WeakSet[Saved] = WeakSet()  # where it is still wanted

    def tensor(self) -> Tensor:
        """It again."""
        raise NotImplementedError

    def has_memory_of(self, tensor: Tensor) -> bool:
        """Are its numbers some of them?"""
        same = memory_of(tensor) == self.memory and tensor.dtype == self._dtype
        return same and not (tensor.is_conj() or tensor.is_neg())

    def give(self, made: Tensor) -> None:
        """To all who will ask for it, that it is not made again: they let go of it then."""
        for saved in self.saved:
            saved.made = made


class Saved:
    """A promise of a tensor, or of a view of it."""

    def __init__(self, promise: Promise, view: Tensor) -> None:
        self._promise = promise
        self._place = view.shape, view.stride(), view.storage_offset()
        self.made: Tensor | None = None
        self._last: TensorWeakRef | None = None  # a backward may ask twice
        promise.saved.add(self)

    def tensor(self) -> Tensor:
        """As it was saved."""
        made = self.made
        if made is None and self._last is not None:
            made = self._last()
        if made is None:
            made = self._promise.tensor()
        self.made, self._last = None, TensorWeakRef(made)
        return made.as_strided(*self._place)


class _Held:
    """A tensor that is saved itself. Under hooks autograd does not look at versions."""

    def __init__(self, tensor: Tensor) -> None:
        # A result would hold the node that holds it. A parameter stays the same object.
        self._tensor = tensor if tensor.is_leaf else tensor.detach()
        self._version = tensor._version

    def tensor(self) -> Tensor:
        found = self._tensor
        if found._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by "
                f"an inplace operation: [{found.type()} {list(found.shape)}] is at version "
                f"{found._version}; expected version {self._version} instead"
            )
        return found


def promised(promises: Collection[Promise]) -> AbstractContextManager[Any]:
    """What is saved for backward under it is not held if it is of these ``promises``; other
    tensors are, as the caller's hooks say. All is held where hooks are forbidden."""
    if not (promises and torch._C._autograd._saved_tensors_hooks_is_enabled()):
        return nullcontext()
    known = {promise.memory: promise for promise in promises}
    hooks = saving_hooks()

    def pack(tensor: Tensor) -> Any:
        promise = known.get(memory_of(tensor))
        if promise is not None and promise.has_memory_of(tensor):
            return Saved(promise, tensor)
        return _Held(tensor) if hooks is None else hooks[0](tensor)

    def unpack(packed: Any) -> Any:
        if isinstance(packed, (Saved, _Held)):
            return packed.tensor()
        assert hooks is not None
        return hooks[1](packed)

    return saved_tensors_hooks(pack, unpack)
