# SPDX-License-Identifier: MIT
"""What differs between versions of PyTorch: counting writes up, asking for hooks, and
comparing many tensors at once. It is found out at import, on the CPU whatever the default
device is: a GPU is not to be opened before a fork."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version


def _takes_several() -> bool:
    """From PyTorch 2.5 on."""
    try:
        increment_version([torch.zeros(1, device="cpu")])
    except (RuntimeError, TypeError):
        return False
    return True


def _guards() -> Any:
    """torch.compile's class that compares tensors with what they were, in C++; None: this
    PyTorch has none that does what `layout_guard` says."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        like = torch.zeros(2, 3, device="cpu")
        is_like = _guard(TensorGuards, [like])
        others = (
            like.view(3, 2),
            like.t().contiguous().t(),
            like.double(),
            torch._neg_view(like),
            torch.nn.Parameter(like),
        )
        serves = is_like(torch.ones_like(like)) and not any(map(is_like, others))
    except Exception:  # private: any version may have changed it in any way
        return None
    return TensorGuards if serves else None


def _guard(guards: Any, tensors: Sequence[Tensor]) -> Callable[..., bool]:
    made = guards(*tensors, dynamic_dims_sizes=[], dynamic_dims_strides=[])
    check: Callable[..., bool] = made.check
    return check


_SEVERAL = _takes_several()
_GUARDS = _guards()
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


TELLS_OF_HOOKS = _top_hooks is not None

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


def saving_hooks() -> Hooks | None:
    """The innermost torch.autograd.graph.saved_tensors_hooks, (pack, unpack); None: there
    are none, or this PyTorch (2.4) does not tell."""
    return None if _top_hooks is None else _top_hooks(True)


def is_retained() -> bool:
    """Is the graph of the backward that runs kept for another one?"""
    return _keeps_graph is not None and bool(_keeps_graph())


def packing() -> Callable[[Tensor], Any] | None:
    """The first of them."""
    hooks = saving_hooks()
    return None if hooks is None else hooks[0]


def count_up(written: Sequence[Tensor]) -> None:
    """Counts up the versions of tensors: what autograd saved of them is refused."""
    if _SEVERAL:
        increment_version(written)
        return
    for tensor in written:
        increment_version(tensor)


def layout_guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Tells of as many tensors, given one by one: has each the type, dtype, device, layout,
    shape and strides of that of these? Takes 60 ns for each, a fifth of asking them in
    Python. None: this PyTorch cannot tell.

    False is no answer: it is said too where a tensor is given twice, or where autocast or
    the like is on and was not on here. Sparse and nested tensors are for neither call: C++
    throws where nothing catches, which ends the process. Holds no tensor.
    """
    return None if _GUARDS is None else _guard(_GUARDS, tensors)
