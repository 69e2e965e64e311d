# SPDX-License-Identifier: MIT
"""The half of AccumulatingSGD that lets a script's own calls wait for the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import OptState
from torch.optim.optimizer import _global_optimizer_pre_hooks

from yolov9mem.sgd import inverse_scale
from yolov9mem.torch._averages import AveragePairs
from yolov9mem.torch._lazy_scalar import LazyScalar
from yolov9mem.torch._pending import Pending
from yolov9mem.torch._step_table import KEEP, WRITE, StepTable
from yolov9mem.torch._table_cache import TableCache


class DeferringOptimizer(torch.optim.Optimizer):
    """unscale_, clipping and the moving average as things to do in the next step.

    Serves yolov9mem.torch.deferred; nothing here touches memory before it must.
    """

    skipped: bool
    _ema: Any
    _pairs: AveragePairs | None
    _ema_is_ahead: bool
    _pending: Pending | None
    _tables: TableCache

    def _table(self) -> StepTable:
        return self._tables.table(self.param_groups, self.state, self._pairs)

    def defer_unscale(self, scaler: Any) -> None:
        """scaler.unscale_(self) without touching memory: the step does it.

        The scaler's record gets a lazy found_inf, so that scaler.step and scaler.update
        go on as usual.
        """
        self._drop_deferred()
        scale, _ = scaler._check_scale_growth_tracker("unscale_")
        record = scaler._per_optimizer_states[id(self)]
        self._pending = pending = Pending()
        pending.inverse = inverse_scale(scale.item())
        found = LazyScalar(lambda: self._found_inf(pending))
        pending.readers.append(found)
        record["found_inf_per_device"] = {scale.device: found}
        record["stage"] = type(record["stage"])(OptState.UNSCALED.value)

    def defer_clip(self, max_norm: float) -> LazyScalar:
        """clip_grad_norm_ without touching memory; returns the norm, lazily."""
        max_norm = float(max_norm)
        if self._pending is not None and self._pending.max_norm is not None:
            self.apply_deferred()
        if self._pending is None:
            self._pending = Pending()
        pending = self._pending
        pending.max_norm = max_norm
        norm = LazyScalar(lambda: self._norm(pending))
        pending.readers.append(norm)
        return norm

    @torch.no_grad()
    def apply_deferred(self) -> None:
        """Writes a waiting unscale_ and clip into the gradients, now."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        pending.resolve()
        table = self._table()
        pending.measure(table)
        table.run(
            inverse=pending.factor, clip=pending.clip(), update=False, gradient=WRITE
        )

    def _drop_deferred(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.resolve()

    @torch.no_grad()
    def _norm(self, pending: Pending) -> float:
        return pending.measure(pending.table or self._table())

    def _is_finite(self, pending: Pending, table: StepTable) -> bool:
        return math.isfinite(pending.measure(table)) and pending.rest_is_finite

    @torch.no_grad()
    def _found_inf(self, pending: Pending) -> float:
        """What a deferred unscale_ found; GradScaler does not call `step` if not 0."""
        self.skipped = not self._is_finite(pending, pending.table or self._table())
        return float(self.skipped)

    def has_pre_hooks(self) -> bool:
        """Would something look at the gradients before `step` does?"""
        return bool(self._optimizer_step_pre_hooks or _global_optimizer_pre_hooks)

    def averages(self, model: nn.Module) -> bool:
        """Is this the live module of the attached average?"""
        return self._pairs is not None and self._pairs.model is model

    @torch.no_grad()
    def update_ema(self) -> None:
        """`ema.update(model)`: counts only if the last step has moved the average."""
        if self._ema_is_ahead:
            self._ema_is_ahead = False
            self._ema.updates += 1
            return
        self._ema.updates += 1
        decay = float(self._ema.decay(self._ema.updates))
        StepTable([], self.state, self._pairs or ()).run(gradient=KEEP, decay=decay)
