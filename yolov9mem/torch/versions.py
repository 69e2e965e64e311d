# SPDX-License-Identifier: MIT
"""What differs between versions of PyTorch: counting writes up, asking for hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version


def _takes_several() -> bool:
    """From PyTorch 2.5 on."""
    try:
        increment_version([torch.zeros(1)])
    except (RuntimeError, TypeError):
        return False
    return True


_SEVERAL = _takes_several()
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def packing() -> Callable[[Tensor], Any] | None:
    """The pack function of the innermost torch.autograd.graph.saved_tensors_hooks; None:
    there is none, or this PyTorch (2.4) does not tell."""
    hooks = None if _top_hooks is None else _top_hooks(True)
    return None if hooks is None else hooks[0]


def count_up(written: Sequence[Tensor]) -> None:
    """Counts up the versions of tensors: what autograd saved of them is refused."""
    if _SEVERAL:
        increment_version(written)
        return
    for tensor in written:
        increment_version(tensor)
