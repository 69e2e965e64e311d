# SPDX-License-Identifier: MIT
"""Outputs of stages that stock calls or gaps read once more in backward, and that nothing
holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .promises import Promise

if TYPE_CHECKING:
    from .shared_call import Call


class RecomputedOutput(Promise):
    """One that the core makes again."""

    def __init__(self, call: Call, place: int, params: list[Tensor], output: Tensor):
        """``params``: of the whole graph. ``output``: as the stage has made it."""
        super().__init__(output)
        needs = call.plan.recompute_needs[place]
        assert needs is not None
        self._call, self._place = call, place
        self._params = {i: params[i] for i in needs.params}
        self._versions = [p._version for p in self._params.values()]
        self._made: Tensor | None = None
        call.recomputed_outputs[place].add(self)

    def tensor(self) -> Tensor:
        """Recomputed, unless it is held by now."""
        if self._made is not None:
            return self._made
        if [p._version for p in self._params.values()] != self._versions:
            raise RuntimeError(
                f"yolov9mem: {self._call.name}: a parameter needed for gradient "
                "computation has been modified by an inplace operation between forward "
                "and backward"
            )
        return self._call.recompute(self._place, self._params)

    def hold(self) -> None:
        """From now on it can't be recomputed."""
        self._made = self.tensor()
