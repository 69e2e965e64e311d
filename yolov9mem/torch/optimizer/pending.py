# SPDX-License-Identifier: MIT
"""What waits for the next optimizer step."""

from __future__ import annotations

from torch import Tensor

from yolov9mem.sgd import clip_coefficient

from .gpu_step import Scaling
from .lazy_scalar import LazyScalar
from .step_table import StepTable


class Pending:
    """An unscale_ or a clip that was asked for and not yet written into gradients.

    Attributes:
        inverse: 1 / loss scale; None: unscale_ was not asked for.
        max_norm: of the clip; None: no clip was asked for.
        norm: of the unscaled gradients, once somebody needed it; `table` is then the
            table it was worked out from.
        rest_is_finite: of the gradients that C does not handle.
        readers: scalars already handed out; they must get their value before the
            gradients change.
        scaling: on a GPU instead of `inverse`: the scaler's scalars there.
        measured: on a GPU instead of `norm`: see StepTable.measure_on_gpu.
    """

    def __init__(self) -> None:
        self.inverse: float | None = None
        self.max_norm: float | None = None
        self.norm: float | None = None
        self.table: StepTable | None = None
        self.rest_is_finite = True
        self.readers: list[LazyScalar] = []
        self.scaling = Scaling()
        self.measured: int | None = None

    @property
    def factor(self) -> float:
        return 1.0 if self.inverse is None else self.inverse

    def clip(self) -> float:
        """The clip coefficient, 1 without a clip."""
        if self.max_norm is None or self.norm is None:
            return 1.0
        return clip_coefficient(self.norm, self.max_norm)

    def measure(self, table: StepTable) -> float:
        """Works out the norm, and unscales the gradients that C does not handle."""
        if self.norm is None:
            if self.inverse is not None and self.table is None:
                self.rest_is_finite = table.rest.unscale(self.inverse)
            self.table = table
            self.norm = table.norm(self.factor)
        return self.norm

    def measure_on_gpu(self, table: StepTable) -> Tensor:
        """Queues the pass over the gradients; its norm, on the GPU."""
        self.measured = table.measure_on_gpu(self.scaling)
        return table.norm_on_gpu()

    def resolve(self) -> None:
        """Gives every scalar that was handed out its value."""
        for reader in self.readers:
            reader.resolve()
