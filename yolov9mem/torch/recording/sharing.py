# SPDX-License-Identifier: MIT
"""Which tensors of a recording share memory, and which must not.

A replay lays memory out anew, so an in-place call is recorded only where nobody could see
the change through another tensor. These functions take the recorder, as handlers do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from .ir import CannotLower

if TYPE_CHECKING:
    from .recorder import Recorder


def memory_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory, as long as they are alive."""
    try:
        return tensor.untyped_storage()._cdata
    except RuntimeError:  # sparse tensors and those of vmap have none of their own
        return id(tensor)


def note_views(
    rec: Recorder, results: list[Tensor], given: Iterable[Tensor] = ()
) -> None:
    """Remembers what shares memory, so that in-place calls on it are refused.

    The results of detach and .data are no views to autograd: they are told by their memory,
    which is that of a ``given`` argument.
    """
    arguments = {memory_of(tensor): tensor for tensor in given} if results else {}
    for tensor in results:
        if tensor._is_view() and tensor._base is not None:
            rec.alive.append(tensor._base)
            rec.has_views.add(id(tensor._base))
        if memory_of(tensor) in arguments:
            rec.has_views.update((id(tensor), id(arguments[memory_of(tensor)])))


def check_in_place(rec: Recorder, tensor: Tensor, name: str) -> None:
    """In-place calls rebind a value; what others may see is refused."""
    known = rec.parameter_path(tensor)
    if known is not None:
        raise CannotLower(name, rec.path, f"it changes {known} in place")
    if id(tensor) in rec.ref and id(tensor) in rec.inputs:
        raise CannotLower(name, rec.path, "it changes an input in place")
    if tensor._is_view() or id(tensor) in rec.has_views:
        raise CannotLower(name, rec.path, "it changes a view in place")


def check_change(rec: Recorder, tensor: Tensor, name: str) -> None:
    """As check_in_place, for a call that changes the memory of the node's output."""
    check_in_place(rec, tensor, name)
    if rec.value(tensor) in rec.copies:
        raise CannotLower(name, rec.path, "it changes a copy or what was copied")
    rec.stacks.pop(id(tensor), None)
