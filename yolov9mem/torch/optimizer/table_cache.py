# SPDX-License-Identifier: MIT
"""Takes the last step's table again where only gradients were made anew."""

from __future__ import annotations

from collections.abc import Collection
from itertools import compress, repeat
from operator import attrgetter, is_, is_not
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import are_as_parameters
from ..versions import layout_guard
from .averages import AveragePairs
from .gpu_step import DeviceTable
from .gradients import grad_of
from .step_table import StepTable

_shape = attrgetter("shape")
_dtype = attrgetter("dtype")
_layout = attrgetter("layout")


class TableCache:
    """A model has a thousand tensors; looking at each in Python costs milliseconds.

    What decides over the table (objects, addresses, sizes, dtypes, layouts) is read in
    bulk at every step and compared; nothing is assumed to have stayed. Holds no
    gradients.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None
        self._table: StepTable | None = None
        self._memory = DeviceTable()

    def table(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        pairs: AveragePairs | None,
    ) -> StepTable:
        """The table of the present tensors; raises as StepTable."""
        params = [p for group in param_groups for p in group["params"]]
        all_grads: list[Any] = list(map(grad_of, params))
        has_grad = list(map(is_not, all_grads, repeat(None)))
        grads: list[Tensor] = list(compress(all_grads, has_grad))
        now = _Now(param_groups, params, has_grad, state, pairs)
        if (
            self._table is not None
            and self._seen is not None
            and self._seen.is_still(now)
            and self._seen.fits(grads)
        ):
            return self._table.with_gradients(param_groups, grads)
        table = StepTable(param_groups, state, pairs or (), self._memory)
        self._seen = self._table = None
        if table.is_reusable:
            self._seen = _Seen(now, grads)
            self._table = table.with_gradients(param_groups, [])
        return table


class _Now(NamedTuple):
    """What a step is given, but for the gradients themselves."""

    param_groups: list[dict[str, Any]]
    params: list[Tensor]  # of all groups
    has_grad: list[bool]  # by parameter
    state: dict[Tensor, Any]
    pairs: AveragePairs | None


class _Seen:
    """What decided over a table that C takes as a whole.

    Tensors are compared as objects, which no other one can be while they are held here;
    each is looked at once, though a parameter is of the optimizer and of the average.
    """

    def __init__(self, now: _Now, grads: list[Tensor]) -> None:
        self._groups = _kinds(now.param_groups)
        self._params = now.params
        self._has_grad = now.has_grad
        self._stepped = list(compress(now.params, now.has_grad))
        self._owners = list(now.state.keys())
        self._entries = list(now.state.values())
        entries = map(now.state.get, self._stepped)
        self._own: list[Any] = [{} if entry is None else entry for entry in entries]
        self._buffers = self._momentum()
        self._paired = _paired(now.pairs)
        every = (*self._stepped, *self._buffers, *self._paired)
        self._tensors = list({id(x): x for x in every if x is not None}.values())
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._layouts = _layouts(self._tensors)
        self._have_layouts = layout_guard(self._tensors)
        self._fit = layout_guard(grads)

    def is_still(self, now: _Now) -> bool:
        """Would all but the gradients make the same table again?"""
        return (
            _kinds(now.param_groups) == self._groups
            and _are(now.params, self._params)
            and now.has_grad == self._has_grad
            # Looking a tensor up costs more: its hash is a function in Python.
            and _are(now.state.keys(), self._owners)
            and _are(now.state.values(), self._entries)
            and _are(self._momentum(), self._buffers)
            and _are(_paired(now.pairs), self._paired)
            # Before the guard: what has become sparse or nested has another, or none.
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and (
                (self._have_layouts is not None and self._have_layouts(*self._tensors))
                or _layouts(self._tensors) == self._layouts
            )
        )

    def fits(self, grads: list[Tensor]) -> bool:
        """Are as many other gradients laid out as the parameters that had some?"""
        is_strided = set(map(_layout, grads)) <= {torch.strided}  # see layout_guard
        if is_strided and self._fit is not None and self._fit(*grads):
            return True
        return are_as_parameters(grads, self._stepped)

    def _momentum(self) -> list[Tensor | None]:
        return list(map(dict.get, self._own, repeat("momentum_buffer")))


def _kinds(param_groups: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    return [(len(group["params"]), group["momentum"] != 0) for group in param_groups]


def _paired(pairs: AveragePairs | None) -> list[Tensor | None]:
    return [] if pairs is None else pairs.tensors()


def _layouts(tensors: list[Tensor]) -> list[Any]:
    return [
        list(map(_shape, tensors)),
        list(map(_dtype, tensors)),
        list(map(Tensor.is_contiguous, tensors)),
    ]


def _are(some: Collection[Any], others: list[Any]) -> bool:
    """Are they the same objects? `==` would compare the values of tensors."""
    return len(some) == len(others) and all(map(is_, some, others))
