# SPDX-License-Identifier: MIT
"""What waits for the next optimizer step."""

from __future__ import annotations

from yolov9mem.sgd import clip_coefficient
from yolov9mem.torch._lazy_scalar import LazyScalar
from yolov9mem.torch._step_table import StepTable


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
    """

    def __init__(self) -> None:
        self.inverse: float | None = None
        self.max_norm: float | None = None
        self.norm: float | None = None
        self.table: StepTable | None = None
        self.rest_is_finite = True
        self.readers: list[LazyScalar] = []

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
                self.rest_is_finite = table.unscale_rest(self.inverse)
            self.table = table
            self.norm = table.norm(self.factor)
        return self.norm

    def resolve(self) -> None:
        """Gives every scalar that was handed out its value."""
        for reader in self.readers:
            reader.resolve()
