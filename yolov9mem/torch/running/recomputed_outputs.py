# SPDX-License-Identifier: MIT
"""Outputs of stages that a gap reads once more in backward, and that nothing holds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..versions import saving_hooks

if TYPE_CHECKING:
    from .shared_call import Call


class RecomputedOutput:
    """What stands for one between forward and backward."""

    def __init__(self, call: Call, place: int, params: list[Tensor], output: Tensor):
        """``params``: of the whole graph. ``output``: as the stage has made it."""
        needs = call.plan.recompute[place]
        assert needs is not None
        self._call, self._place = call, place
        self._params = {i: params[i] for i in needs.params}
        self._versions = [p._version for p in self._params.values()]
        self._like = output.shape, output.stride()
        self.memory = output.data_ptr()
        self._made: Tensor | None = None
        call.recomputed_outputs[place].add(self)

    def is_of(self, tensor: Tensor) -> bool:
        """Is it that output?"""
        return (tensor.shape, tensor.stride()) == self._like

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


def not_held(outputs: list[RecomputedOutput]) -> AbstractContextManager[Any]:
    """What is saved for backward under it is not, of these outputs: other tensors are, as
    the caller's hooks say."""
    if not outputs:
        return nullcontext()
    known = {output.memory: output for output in outputs}
    hooks = saving_hooks()

    def pack(tensor: Tensor) -> Any:
        output = known.get(tensor.data_ptr())
        if output is not None and output.is_of(tensor):
            return output
        return tensor if hooks is None else hooks[0](tensor)

    def unpack(packed: Any) -> Any:
        if isinstance(packed, RecomputedOutput):
            return packed.tensor()
        return packed if hooks is None else hooks[1](packed)

    return saved_tensors_hooks(pack, unpack)
