# SPDX-License-Identifier: MIT
"""Takes the last step's table again where only gradients were made anew."""

from __future__ import annotations

from itertools import compress
from operator import attrgetter
from typing import Any

from torch import Tensor

from ..layout import are_as_parameters
from .averages import AveragePairs
from .gpu_step import DeviceTable
from .gradients import grad_of
from .step_table import StepTable

_shape = attrgetter("shape")
_dtype = attrgetter("dtype")


class TableCache:
    """A model has a thousand tensors; looking at each in Python costs milliseconds.

    What decides over the table (objects, addresses, sizes, dtypes, layouts) is read in
    bulk at every step and compared; nothing is assumed to have stayed. Holds no
    gradients.
    """

    def __init__(self) -> None:
        self._signature: list[Any] | None = None
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
        all_grads = list(map(grad_of, params))
        has_grad = [g is not None for g in all_grads]
        stepped = list(compress(params, has_grad))
        grads = [g for g in all_grads if g is not None]
        signature = _signature(param_groups, params, has_grad, stepped, state, pairs)
        if (
            self._table is not None
            and signature == self._signature
            and are_as_parameters(grads, stepped)
        ):
            return self._table.with_gradients(param_groups, grads)
        table = StepTable(param_groups, state, pairs or (), self._memory)
        self._signature = self._table = None
        if table.is_reusable:
            self._signature = signature
            self._table = table.with_gradients(param_groups, [])
        return table


def _signature(
    param_groups: list[dict[str, Any]],
    params: list[Tensor],
    has_grad: list[bool],
    stepped: list[Tensor],
    state: dict[Tensor, Any],
    pairs: AveragePairs | None,
) -> list[Any]:
    entries = map(state.get, stepped)
    buffers = [entry.get("momentum_buffer") if entry else None for entry in entries]
    tensors = stepped + [b for b in buffers if b is not None]
    if pairs is not None:
        tensors += pairs.tensors()
    return [
        [(len(group["params"]), group["momentum"] != 0) for group in param_groups],
        list(map(id, params)),
        has_grad,
        [b is None for b in buffers],
        list(map(id, tensors)),
        list(map(Tensor.data_ptr, tensors)),
        list(map(_shape, tensors)),
        list(map(_dtype, tensors)),
        list(map(Tensor.is_contiguous, tensors)),
    ]
