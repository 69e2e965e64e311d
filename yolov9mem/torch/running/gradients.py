# SPDX-License-Identifier: MIT
"""Gradients that parameters have already: the kernels add to them.

A gradient of ours that autograd's AccumulateGrad adds to ``.grad`` takes memory for both
and, on a GPU, a launch for each of a thousand parameters. So a segment takes the sum out
of ``.grad``, its kernels add to it, and it is handed to autograd as the gradient:
AccumulateGrad finds no ``.grad`` and moves it back without a kernel. Hooks see what they
would have seen, but for one that runs before the AccumulateGrad node itself
(``node.register_prehook``, which nothing tells of): it sees the sum.

Where a parameter gets a second gradient in the same backward (its module was called twice,
the loss has a term of weights), autograd adds that to ours in new memory. After such a
backward the sum is brought back to where it was: flat buffers and captured graphs know it
by its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from sys import getrefcount
from threading import Lock, get_ident
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .. import devices
from ..layout import PLAIN, are_as_parameters
from ..versions import count_up

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
    parameter = nn.Parameter(torch.zeros(1, device="cpu"))
    parameter.grad = torch.zeros_like(parameter, requires_grad=False)
    return _holders([parameter.grad])


_ALONE = _of_a_parameter_alone()
_lock = Lock()
_begun: WeakSet[TakenGrads] = WeakSet()  # of backwards whose graph is alive
# The stream of all backwards so far, by device; None: there were several. AccumulateGrad
# adds on the stream of an earlier forward, and nothing orders ours behind that.
_streams: dict[int, int | None] = {}


class TakenGrads:
    """Sums that one backward has taken out of ``.grad``, until autograd has them."""

    def __init__(self) -> None:
        self._thread = 0
        self._device = -1
        self._parameters: list[Tensor] = []
        self.grads: list[Tensor] = []
        self._places: list[_Places] | None = None

    def begin(self, device: torch.device) -> None:
        """Backward begins, in this thread, on the device's current stream."""
        self._places = None
        stream = devices.stream(device)
        with _lock:
            self._thread, self._device = get_ident(), devices.index(device)
            _begun.add(self)
            if _streams.setdefault(self._device, stream) != stream:
                _streams[self._device] = None

    def take(self, nodes: list[Any]) -> list[Tensor]:
        """What is in ``.grad`` of the parameters that the autograd ``nodes`` fill.

        Nothing where one has none, or where somebody would notice: a hook on a parameter
        wants the gradient alone, a ``.grad`` is held elsewhere or laid out otherwise,
        autograd will not put the gradients there (torch.autograd.grad), or an
        AccumulateGrad of another thread or stream may be at work on them.
        """
        if set(map(type, nodes)) != {_ACCUMULATE} or _goes_the_stock_way():
            return []
        with _lock:  # the other threads have begun or do so afterwards
            alone = all(other._thread == self._thread for other in _begun)
            alone = alone and _streams[self._device] is not None
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
            count_up(self.grads)
            if self._places is None:
                self._places = []
                _after_backward(partial(_bring_back, self._places))
            self._places.append(_Places(self._parameters, self.grads))
        self._parameters, self.grads = [], []

    def put_back(self) -> None:
        """The segment has failed: what was there is there again."""
        for parameter, grad in zip(self._parameters, self.grads):
            parameter.grad = grad
        self._parameters, self.grads = [], []


class _Places:
    """Where sums are, as memory: to hold a gradient itself would make autograd copy it."""

    def __init__(self, parameters: list[Tensor], grads: list[Tensor]) -> None:
        self._parameters = parameters
        self._addresses = list(map(Tensor.data_ptr, grads))
        self._memory = list(map(Tensor.untyped_storage, grads))

    def bring_back(self) -> None:
        """Moves gradients that are elsewhere."""
        grads = list(map(_grad, self._parameters))
        if self._are_here(grads):
            return
        for i, grad in enumerate(grads):
            if grad is not None and grad.data_ptr() != self._addresses[i]:
                self._bring_back(i, self._parameters[i], grad)

    def _are_here(self, grads: list[Any]) -> bool:
        """The usual case, in bulk."""
        return set(map(type, grads)) == {Tensor} and (
            list(map(Tensor.data_ptr, grads)) == self._addresses
        )

    def _bring_back(self, i: int, parameter: Tensor, grad: Tensor) -> None:
        by_a_hook = parameter._post_accumulate_grad_hooks
        if by_a_hook or not are_as_parameters([grad], [parameter]):
            return
        memory = self._memory[i]
        offset = (self._addresses[i] - memory.data_ptr()) // parameter.element_size()
        with torch.no_grad():
            place = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            place.set_(memory, offset, parameter.shape, parameter.stride())
            parameter.grad = place.copy_(grad)
        # It is of the stream of forward, and this is the one that backward was called on.
        devices.keep_for_stream(grad)


def _bring_back(places: list[_Places]) -> None:
    for some in places:
        some.bring_back()
    places.clear()


def _after_backward(call: Callable[[], None]) -> None:
    """When all gradients of the backward that is running are in ``.grad``."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def _can_be_added_to(grads: list[Any], parameters: list[Tensor]) -> bool:
    """Has each parameter a gradient as the kernels write it, which nobody else holds?"""
    return (
        are_as_parameters(grads, parameters)
        and set(map(type, grads)) == {Tensor}
        and set(map(type, parameters)) <= set(PLAIN)
        and set(map(_dtype, parameters)) == {torch.float32}
        and _holders(grads) == _ALONE
        and not any(map(_requires_grad, grads))
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
