# SPDX-License-Identifier: MIT
"""The parameters of a step that C cannot do: stock torch steps them, in the same call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd as stock_sgd

from .gradients import grad_of
from .hyper import NAMES
from .names import name_of
from .overlap import repeats

KEEP, ZERO, WRITE = 0, 1, 2  # what becomes of the gradients
_DOUBLE = (torch.float64, torch.complex128)


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
            params[:] = [p for p in group["params"] if grad_of(p) is not None]

    def ids(self) -> set[int]:
        """Of the parameters."""
        return {id(p) for params in self._params for p in params}

    def check(self, *, update: bool, writes: bool) -> None:
        """Looks for what stock torch would refuse when half of the step is done.

        Args:
            update: parameters and momentum are to be written.
            writes: gradients are to be unscaled or clipped in place.

        Raises:
            ValueError: a shape, dtype or device does not fit, or memory that is to be
                written holds several elements at one place.
        """
        for group, params in zip(self._groups, self._params, strict=True):
            for p in params:
                reason = _why_not_written(p, writes)
                if reason is None and update:
                    moves = group["momentum"] != 0
                    buffer = momentum_of(p, self._state) if moves else None
                    reason = _why_not_stepped(p, buffer)
                if reason is not None:
                    raise ValueError(f"{name_of(self._groups, p)}: {reason}")

    def check_unscale(self) -> None:
        """Looks for what torch would refuse to unscale, perhaps after some others.

        Raises:
            TypeError: a gradient is complex.
            ValueError: a gradient is float16.
        """
        for p in (p for params in self._params for p in params):
            g = grad_of(p)
            if g is not None and g.dtype == torch.float16:
                raise ValueError(
                    f"{name_of(self._groups, p)}: its gradient is {g.dtype}, must be "
                    "float32, bfloat16 or float64 to be unscaled"
                )
            if g is not None and g.is_complex():
                raise TypeError(
                    f"{name_of(self._groups, p)}: its gradient is {g.dtype}, must be "
                    "real to be unscaled"
                )

    def types(self) -> set[torch.dtype]:
        """Of the gradients."""
        return {g.dtype for g in self._gradients()}

    def norms(self) -> list[float]:
        """L2 norm of each gradient."""
        return [float(torch.linalg.vector_norm(g)) for g in self._gradients()]

    def unscale(self, inverse: float) -> bool:
        """Unscales the gradients in place; were all finite? Raises as check_unscale."""
        self.check_unscale()
        lots: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
        for g in self._gradients():
            lots.setdefault((g.device, g.dtype, g.is_neg()), []).append(g)
        finite = True
        for (device, _, is_negated), grads in lots.items():
            found = torch.zeros((), dtype=torch.float32, device=device)
            factor = torch.full((), inverse, dtype=torch.float32, device=device)
            plain = [g.resolve_neg() for g in grads] if is_negated else grads
            torch._amp_foreach_non_finite_check_and_unscale_(plain, found, factor)
            for g, unscaled in zip(grads, plain, strict=True) if is_negated else ():
                g.copy_(unscaled)
            finite = finite and found.item() == 0
        return finite

    def run(self, clip: float, clip_double: float, update: bool, gradient: int) -> None:
        """Clips and steps.

        Args:
            clip, clip_double: the coefficient, and that of gradients in double.
            gradient: KEEP, ZERO or WRITE.
        """
        for group, params in zip(self._groups, self._params, strict=True):
            if not params:
                continue
            grads = [g for g in map(grad_of, params) if g is not None]
            _multiply([g for g in grads if g.dtype not in _DOUBLE], clip)
            _multiply([g for g in grads if g.dtype in _DOUBLE], clip_double)
            if update:
                self._step(group, params, grads)
            if gradient == ZERO:
                _zero(grads)

    def _gradients(self) -> list[Tensor]:
        every = [grad_of(p) for params in self._params for p in params]
        return [g for g in every if g is not None]

    def _step(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]
    ) -> None:
        buffers: list[Tensor | None] = []
        if group["momentum"] != 0:
            buffers = [momentum_of(p, self._state) for p in params]
        loops = params[0].is_cpu or any(
            x is not None and _is_lazy(x) for x in (*params, *grads, *buffers)
        )
        stock_sgd(
            params,
            grads,
            buffers,
            foreach=False if loops else group["foreach"],
            fused=False,
            **{name: group[name] for name in NAMES},
        )
        for p, buffer in zip(params, buffers, strict=False):
            self._state[p]["momentum_buffer"] = buffer


def _why_not_written(p: Tensor, writes: bool) -> str | None:
    """Why the gradient cannot be unscaled, clipped or used; None: it can."""
    g = grad_of(p)
    if g is None:
        return None
    if g.shape != p.shape or g.device != p.device:
        return (
            f"its gradient has shape {tuple(g.shape)} on {g.device}, must have the "
            f"parameter's, on {p.device}"
        )
    if writes and repeats(g):
        return (
            "several elements of its gradient are one in memory (strides "
            f"{g.stride()}), so it cannot be unscaled or clipped in place"
        )
    return None


def _why_not_stepped(p: Tensor, buffer: Tensor | None) -> str | None:
    """Why torch.optim.SGD could not write the parameter or its momentum."""
    for name, x in (("its", p), ("its momentum's", buffer)):
        if x is not None and repeats(x):
            return (
                f"several of {name} elements are one in memory (strides {x.stride()})"
            )
    if buffer is None:
        return None
    if buffer.shape != p.shape or buffer.device != p.device:
        return (
            f"its momentum has shape {tuple(buffer.shape)} on {buffer.device}, must "
            f"have the parameter's, on {p.device}"
        )
    if not torch.can_cast(p.dtype, buffer.dtype):
        return f"its momentum is {buffer.dtype}, which cannot hold {p.dtype}"
    return None


def _multiply(grads: list[Tensor], factor: float) -> None:
    if factor == 1 or not grads:
        return
    # On the CPU foreach is a loop too, but rounds the factor to a 16-bit gradient's type.
    if any(g.is_cpu or _is_lazy(g) for g in grads):
        for g in grads:
            g.mul_(factor)
    else:
        torch._foreach_mul_(grads, factor)


def _zero(grads: list[Tensor]) -> None:
    if any(map(_is_lazy, grads)):
        for g in grads:
            g.zero_()
    else:
        torch._foreach_zero_(grads)


def _is_lazy(g: Tensor) -> bool:
    """A view that is negated or conjugated when read, which foreach refuses."""
    return g.is_neg() or g.is_conj()
