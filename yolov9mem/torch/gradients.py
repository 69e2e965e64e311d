# SPDX-License-Identifier: MIT
"""Gradients that parameters have already: the kernels add to them.

A gradient of ours that autograd's AccumulateGrad adds to ``.grad`` takes memory for both
and, on a GPU, a launch for each of a thousand parameters. So a segment takes the sum out
of ``.grad``, its kernels add to it, and it is handed to autograd as the gradient:
AccumulateGrad finds no ``.grad`` and moves it back without a kernel. Streams are kept in
order and hooks see what they would have seen, but for one that runs before the
AccumulateGrad node itself (``node.register_prehook``, which nothing tells of): it sees the
sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from sys import getrefcount
from threading import Lock, get_ident
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ._layout import PLAIN, are_as_parameters

_ACCUMULATE = torch._C._functions.AccumulateGrad
_parameter = attrgetter("variable")
_grad = attrgetter("grad")
_dtype = attrgetter("dtype")
_hooks = attrgetter("_backward_hooks")
_requires_grad = attrgetter("requires_grad")
_will_execute = getattr(torch._C, "_will_engine_execute_node", None)


def _holders(grads: list[Tensor]) -> set[int]:
    """How many hold a gradient beside this list."""
    return set(map(getrefcount, grads))


def _of_a_parameter_alone() -> set[int]:
    """What _holders answers where only ``.grad`` does; it depends on PyTorch."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    return _holders([parameter.grad])


_ALONE = _of_a_parameter_alone()
_lock = Lock()
_begun: WeakSet[TakenGrads] = WeakSet()  # of backwards whose graph is alive


class TakenGrads:
    """Sums that one backward has taken out of ``.grad``, until autograd has them."""

    def __init__(self) -> None:
        self._thread = 0
        self._parameters: list[Tensor] = []
        self.grads: list[Tensor] = []

    def begin(self) -> None:
        """Backward begins, in this thread."""
        with _lock:
            self._thread = get_ident()
            _begun.add(self)

    def take(self, nodes: list[Any]) -> list[Tensor]:
        """What is in ``.grad`` of the parameters that the autograd ``nodes`` fill.

        Nothing where one has none, or where somebody would notice: a hook on a parameter
        wants the gradient alone, a ``.grad`` is held elsewhere or laid out otherwise,
        autograd will not put the gradients there (torch.autograd.grad), or another
        thread's AccumulateGrad may be at work on them.
        """
        if set(map(type, nodes)) != {_ACCUMULATE} or _goes_the_stock_way():
            return []
        with _lock:  # the other threads have begun or do so afterwards
            alone = all(other._thread == self._thread for other in _begun)
            return self._take(nodes) if alone else []

    def _take(self, nodes: list[Any]) -> list[Tensor]:
        parameters = list(map(_parameter, nodes))
        grads = list(map(_grad, parameters))
        if not _can_be_added_to(grads, parameters) or not _are_filled_by(nodes):
            return []
        for parameter in parameters:
            parameter.grad = None
        self._parameters, self.grads = parameters, grads
        return grads

    def hand_over(self) -> None:
        """Autograd has them next."""
        if self.grads:
            torch.autograd.graph.increment_version(self.grads)
        self._parameters, self.grads = [], []

    def put_back(self) -> None:
        """The segment has failed: what was there is there again."""
        for parameter, grad in zip(self._parameters, self.grads):
            parameter.grad = grad
        self._parameters, self.grads = [], []


def _can_be_added_to(grads: list[Any], parameters: list[Tensor]) -> bool:
    """Has each parameter a gradient as the kernels write it, which nobody else holds?"""
    return (
        are_as_parameters(grads, parameters)
        and set(map(type, grads)) == {Tensor}
        and set(map(type, parameters)) <= set(PLAIN)
        and set(map(_dtype, parameters)) == {torch.float32}
        and _holders(grads) == _ALONE
        and not any(map(_requires_grad, grads))
        and not any(map(Tensor.is_neg, grads))
        and not any(map(_hooks, parameters))
    )


def _goes_the_stock_way() -> bool:
    """Does somebody look at gradients on their way?"""
    return torch.is_anomaly_enabled() or (
        # DDP's buckets hold the gradients.
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )


def _are_filled_by(nodes: Iterable[Any]) -> bool:
    """Will this backward run all these AccumulateGrad nodes?"""
    try:
        return _will_execute is not None and all(map(_will_execute, nodes))
    except RuntimeError:  # torch.autograd.grad catches the gradients instead
        return False
