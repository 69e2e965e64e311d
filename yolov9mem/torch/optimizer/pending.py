# SPDX-License-Identifier: MIT
"""What waits for the next optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import is_

import numpy as np
import torch
from torch import Tensor

from yolov9mem.sgd import clip_coefficient

from .gpu_step import Scaling
from .gradients import grad_of
from .lazy_scalar import LazyScalar
from .overlap import storages
from .step_table import StepTable


class Pending:
    """An unscale_ or a clip that was asked for and not yet written into gradients.

    Args:
        params: of the optimizer; their gradients are remembered as they are now.

    Attributes:
        inverse: 1 / loss scale; None: unscale_ was not asked for.
        max_norm: of the clip; None: no clip was asked for.
        norm: of the unscaled gradients, once somebody needed it.
        is_finite: are all gradients, before they are unscaled? Known with the norm.
        readers: scalars already handed out; they must get their value before the
            gradients change.
        scaling: on a GPU instead of `inverse`: the scaler's scalars there.
        measured: on a GPU instead of `norm`: see StepTable.measure_on_gpu.
    """

    def __init__(self, params: Iterable[Tensor] = ()) -> None:
        self.inverse: float | None = None
        self.max_norm: float | None = None
        self.norm: float | None = None
        self.is_finite = True
        self.readers: list[LazyScalar] = []
        self.scaling = Scaling()
        self.measured: int | None = None
        self._rest_is_unscaled = False
        self._params = list(params)
        self._ids: set[int] = set()
        self._grads = list(map(grad_of, self._params))
        self._versions = _versions(self._grads)

    @property
    def factor(self) -> float:
        """Of the gradients: 1 without an unscale_."""
        return 1.0 if self.inverse is None else self.inverse

    @property
    def is_scaled(self) -> bool:
        """Does an unscale_ wait, not only a clip?"""
        return self.inverse is not None or self.scaling.found_inf is not None

    def concerns(self, p: Tensor) -> bool:
        """Is it one of the parameters?"""
        if not self._ids:
            self._ids = set(map(id, self._params))
        return id(p) in self._ids

    def touches(self, tensors: list[Tensor]) -> bool:
        """Is one of them a parameter, or does it or its gradient lie in the memory of one
        of the gradients?"""
        if any(map(self.concerns, tensors)):
            return True
        theirs = [grad_of(x) for x in tensors if x.is_leaf]
        return not storages(self._grads).isdisjoint(storages([*tensors, *theirs]))

    def written(self, params: Sequence[Tensor]) -> Tensor | None:
        """The first parameter whose gradient was written or replaced since, or None."""
        grads = list(map(grad_of, params))
        versions = _versions(grads)
        if (
            len(grads) == len(self._grads)
            and all(map(is_, grads, self._grads))
            and versions == self._versions
        ):
            return None
        now = list(zip(map(id, params), map(id, grads), versions, strict=True))
        then = zip(
            map(id, self._params), map(id, self._grads), self._versions, strict=True
        )
        changed = set(now).symmetric_difference(then)
        places = {place for place, _, _ in changed}
        every = (*params, *self._params)
        return next((p for p in every if id(p) in places), None)

    def clip(self, table: StepTable) -> tuple[float, float]:
        """The clip coefficient and that of gradients in double, 1 without a clip.

        clip_grad_norm_ works it out in 16 bits where all gradients have one such type.
        """
        if self.max_norm is None or self.norm is None:
            return 1.0, 1.0
        types = table.types_of_gradients()
        if types in ({torch.bfloat16}, {torch.float16}):
            norm = torch.tensor(self.norm, dtype=types.pop(), device="cpu")
            coefficient = (self.max_norm / (norm + 1e-6)).clamp(max=1.0).item()
            return coefficient, coefficient
        return (
            clip_coefficient(self.norm, self.max_norm),
            clip_coefficient(self.norm, self.max_norm, np.float64),
        )

    def unscale_rest(self, table: StepTable) -> None:
        """Unscales the gradients that C does not handle, once."""
        if self.inverse is not None and not self._rest_is_unscaled:
            self.is_finite = table.rest.unscale(self.inverse)
            self._rest_is_unscaled = True
            self._versions = _versions(self._grads)

    def measure(self, table: StepTable) -> float:
        """Works out the norm, and unscales the gradients that C does not handle."""
        if self.norm is None:
            self.unscale_rest(table)
            norm = table.norm_of_rows()
            self.is_finite = self.is_finite and math.isfinite(norm)
            self.norm = _together(norm * self.factor, *table.rest.norms())
        return self.norm

    def measure_on_gpu(self, table: StepTable) -> Tensor:
        """Queues the pass over the gradients; its norm, on the GPU."""
        self.measured = table.measure_on_gpu(self.scaling)
        return table.norm_on_gpu()

    def resolve(self) -> None:
        """Gives every scalar that was handed out its value."""
        for reader in self.readers:
            reader.resolve()


def _versions(grads: Iterable[Tensor | None]) -> list[int]:
    return [-1 if g is None else g._version for g in grads]


def _together(*norms: float) -> float:
    """The norm of what has these norms; NaN if one is, which math.hypot does not tell where
    another is infinite."""
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)
