# SPDX-License-Identifier: MIT
"""The half of AccumulatingSGD that lets a script's own calls wait for the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.optim.optimizer import _global_optimizer_pre_hooks

from yolov9mem.sgd import inverse_scale

from .averages import AveragePairs
from .gpu_step import Scaling
from .lazy_scalar import LazyScalar
from .pending import Pending
from .step_table import KEEP, WRITE, StepTable
from .table_cache import TableCache


class DeferringOptimizer(torch.optim.Optimizer):
    """unscale_, clipping and the moving average as things to do in the next step.

    Serves yolov9mem.torch.deferred; nothing here touches memory before it must.
    """

    _skipped: bool | Tensor
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
        table = self._table()
        if table.steps_on_gpu:
            self._unscale_on_gpu(scale, record, pending, table)
            return
        pending.inverse = inverse_scale(scale.item())
        found = LazyScalar(lambda: self._found_inf(pending))
        pending.readers.append(found)
        record["found_inf_per_device"] = {scale.device: found}
        record["stage"] = type(record["stage"])(OptState.UNSCALED.value)

    def _unscale_on_gpu(
        self, scale: Tensor, record: Any, pending: Pending, table: StepTable
    ) -> None:
        """The pass over the gradients is queued now, so that found_inf is true at any
        time; the norm that it finds serves the clip too."""
        pending.scaling = scaling = Scaling.of(scale, table.device)
        pending.measured = table.measure_on_gpu(scaling)
        record["found_inf_per_device"] = {table.device: scaling.found_inf}
        record["stage"] = type(record["stage"])(OptState.UNSCALED.value)

    def _take_scaling(self, scaler: Any, table: StepTable, pending: Pending) -> None:
        """The scaler's scalars for a step on a GPU; its record is that of a step."""
        scale, record = self._begin_scaled(scaler)
        if record["stage"].value == OptState.READY.value:
            pending.scaling = Scaling.of(scale, table.device)
            found = pending.scaling.found_inf
            assert found is not None
            record["found_inf_per_device"] = {found.device: found}
        else:  # unscale_ was called: the gradients are themselves already
            founds = [
                f.to(table.device) for f in record["found_inf_per_device"].values()
            ]
            pending.scaling = Scaling(
                None, founds[0] if len(founds) == 1 else sum(founds)
            )
        record["stage"] = type(record["stage"])(OptState.STEPPED.value)

    def _begin_scaled(self, scaler: Any) -> tuple[Tensor, Any]:
        scale, _ = scaler._check_scale_growth_tracker("step")
        record = scaler._per_optimizer_states[id(self)]
        if record["stage"].value == OptState.STEPPED.value:
            raise RuntimeError(
                "step() has already been called since the last update()."
            )
        return scale, record

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
        table = self._table()
        if table.steps_on_gpu:
            self._tell_readers(pending, table)
            table.run_on_gpu(
                pending.scaling,
                max_norm=pending.max_norm,
                measured=pending.measured,
                update=False,
                gradient=WRITE,
            )
            return
        pending.resolve()
        pending.measure(table)
        table.run(
            inverse=pending.factor, clip=pending.clip(), update=False, gradient=WRITE
        )

    def _drop_deferred(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not pending.readers:
            return
        table = self._table()
        if table.steps_on_gpu:
            self._tell_readers(pending, table)
        else:
            pending.resolve()

    @staticmethod
    def _tell_readers(pending: Pending, table: StepTable) -> None:
        """Those who were given a norm find it on the GPU when they ask for it."""
        if not pending.readers:
            return
        if pending.measured is None:
            pending.measure_on_gpu(table)
        norm = table.norm_on_gpu()
        for reader in pending.readers:
            reader.later(lambda: float(norm.item()))

    @torch.no_grad()
    def _norm(self, pending: Pending) -> float:
        table = self._table()
        if table.steps_on_gpu:
            return float(pending.measure_on_gpu(table).item())
        return pending.measure(pending.table or self._table())

    def _is_finite(self, pending: Pending, table: StepTable) -> bool:
        return math.isfinite(pending.measure(table)) and pending.rest_is_finite

    @torch.no_grad()
    def _found_inf(self, pending: Pending) -> float:
        """What a deferred unscale_ found; GradScaler does not call `step` if not 0."""
        finite = self._is_finite(pending, pending.table or self._table())
        self._skipped = not finite
        return float(self._skipped)

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
