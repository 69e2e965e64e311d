# SPDX-License-Identifier: MIT
"""The parameters of a step that C cannot do: stock torch steps them, in the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as stock_sgd

KEEP, ZERO, WRITE = 0, 1, 2  # what becomes of the gradients


def momentum_of(p: Tensor, state: dict[Tensor, Any]) -> Tensor | None:
    """The momentum buffer; asking makes no entry in the state."""
    return state[p].get("momentum_buffer") if p in state else None


class Rest:
    """Some parameters of an optimizer, which all have gradients; falsy without any."""

    def __init__(
        self, param_groups: list[dict[str, Any]], state: dict[Tensor, Any]
    ) -> None:
        self._groups = param_groups
        self._state = state
        self._params: list[list[Tensor]] = [[] for _ in param_groups]

    def __bool__(self) -> bool:
        return any(self._params)

    def add(self, number: int, p: Tensor) -> None:
        """A parameter of the group with this number."""
        self._params[number].append(p)

    def take_all(self) -> None:
        """All parameters of all groups."""
        for params, group in zip(self._params, self._groups, strict=True):
            params[:] = [p for p in group["params"] if p.grad is not None]

    def ids(self) -> set[int]:
        """Of the parameters."""
        return {id(p) for params in self._params for p in params}

    def norms(self) -> list[float]:
        """L2 norm of each gradient."""
        found = [torch.linalg.vector_norm(g) for g in self._gradients()]
        return [float(norm) for norm in found]

    def unscale(self, inverse: float) -> bool:
        """Unscales the gradients in place; are all finite?

        Raises:
            ValueError: a gradient is float16.
        """
        lots: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for g in self._gradients():
            if g.dtype == torch.float16:
                raise ValueError("Attempting to unscale FP16 gradients.")
            lots.setdefault((g.device, g.dtype), []).append(g)
        finite = True
        for (device, _), grads in lots.items():
            found = torch.zeros((), device=device)
            factor = torch.full((), inverse, device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(grads, found, factor)
            finite = finite and found.item() == 0
        return finite

    def run(self, clip: float, update: bool, gradient: int) -> None:
        """Clips and steps. gradient: KEEP, ZERO or WRITE."""
        for group, params in zip(self._groups, self._params, strict=True):
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            if clip != 1:
                torch._foreach_mul_(grads, clip)
            if update:
                self._step(group, params, grads)
            if gradient == ZERO:
                torch._foreach_zero_(grads)

    def _gradients(self) -> list[Tensor]:
        every = [p.grad for params in self._params for p in params]
        return [g for g in every if g is not None]

    def _step(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> None:
        buffers: list[Tensor | None] = []
        if group["momentum"] != 0:
            buffers = [momentum_of(p, self._state) for p in params]
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
        stock_sgd(
            params,
            grads,
            buffers,
            foreach=group["foreach"] if not params[0].is_cpu else False,
            fused=False,
            **{name: group[name] for name in names},
        )
        for p, buffer in zip(params, buffers, strict=False):
            self._state[p]["momentum_buffer"] = buffer
