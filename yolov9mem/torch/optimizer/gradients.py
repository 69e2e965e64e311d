# SPDX-License-Identifier: MIT
"""The gradients of parameters, for us and, within `deferred`, for everybody else.

What `deferred` lets wait must be in the gradients before a script sees or replaces them:
`Parameter.grad` first asks the optimizer to do now what waits. What the optimizer reads, it
reads by `grad_of`, which asks nobody. Neither does C++: what autograd adds to gradients is
noticed by their versions (see pending.py).
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_STOCK: Any = vars(torch._C.TensorBase)["grad"]
_waiting: dict[int, weakref.ref[Any]] = {}

grad_of: Callable[[Tensor], Tensor | None] = _STOCK.__get__


def are_held(params: Iterable[Tensor]) -> bool:
    """Has somebody else the gradient of one of these in hand, and could read it unseen?"""
    return any(count > _unheld() for count in _references(params))


def _references(params: Iterable[Tensor]) -> list[int]:
    """How many there are to each gradient, among them those of who counts."""
    grads = list(map(grad_of, params))
    counts = list(map(sys.getrefcount, grads))
    return [n for n, g in zip(counts, grads, strict=True) if g is not None]


@functools.cache
def _unheld() -> int:
    """As many as there are to a gradient that nobody holds: PyTorch's own is one from some
    version on."""
    p = nn.Parameter(torch.zeros(1, device="cpu"))
    p.grad = torch.zeros(1, device="cpu")
    return _references([p])[0]


def install() -> None:
    """`Parameter.grad` asks from now on. It stays, and costs a look at an empty dict while
    nothing waits: a class that is changed in every step is slow from some Python on."""
    nn.Parameter.grad = _asking  # type: ignore[assignment]


def uninstall() -> None:
    """`Parameter.grad` is torch's again."""
    del nn.Parameter.grad


def wait_for(optimizer: Any) -> None:
    """`grad` of its parameters calls optimizer.apply_deferred() first from now on."""
    key = id(optimizer)
    _waiting[key] = weakref.ref(optimizer, lambda _: _waiting.pop(key, None))


def wait_no_longer(optimizer: Any) -> None:
    """Nothing waits there now."""
    _waiting.pop(id(optimizer), None)


def _ask(p: Tensor) -> None:
    for reference in list(_waiting.values()):
        optimizer = reference()
        if optimizer is not None and optimizer.waits_with(p):
            optimizer.apply_deferred()


def _get(p: Tensor) -> Any:
    if _waiting:
        _ask(p)
    return _STOCK.__get__(p)


def _set(p: Tensor, grad: Tensor | None) -> None:
    if _waiting:
        _ask(p)
    _STOCK.__set__(p, grad)


def _delete(p: Tensor) -> None:
    if _waiting:
        _ask(p)
    _STOCK.__delete__(p)


_asking = property(_get, _set, _delete)
