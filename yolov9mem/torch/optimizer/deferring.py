# SPDX-License-Identifier: MIT
"""The half of AccumulatingSGD that lets a script's own calls wait for the step."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.optim.optimizer import _global_optimizer_pre_hooks

from yolov9mem.sgd import inverse_scale

from .averages import AveragePairs
from .gpu_step import Scaling
from .gradients import are_held, wait_for, wait_no_longer
from .lazy_scalar import LazyScalar
from .names import name_of
from .pending import Pending
from .step_table import WRITE, StepTable
from .table_cache import TableCache


class DeferringOptimizer(torch.optim.Optimizer):
    """unscale_, clipping and the moving average as things to do in the next step.

    Serves yolov9mem.torch.deferred; nothing here touches memory before it must.
    """

    _ema: Any
    _pairs: AveragePairs | None
    _ema_is_ahead: bool
    _pending: Pending | None
    _tables: TableCache

    def _table(self) -> StepTable:
        return self._tables.table(self.param_groups, self.state, self._pairs)

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _wait(self, pending: Pending) -> None:
        self._pending = pending
        wait_for(self)

    def _wait_no_longer(self) -> None:
        self._pending = None
        wait_no_longer(self)

    def defer_unscale(self, scaler: Any) -> None:
        """scaler.unscale_(self) without touching memory: the step does it.

        The scaler's record gets a lazy found_inf, so that scaler.step and scaler.update
        go on as usual. Raises TypeError or ValueError where torch cannot unscale.
        """
        self.apply_deferred()  # of a step that was not made, or a clip before unscale_
        scale, _ = scaler._check_scale_growth_tracker("unscale_")
        record = scaler._per_optimizer_states[id(self)]
        pending = Pending(self._params())
        table = self._table()
        table.rest.check_unscale()
        if table.steps_on_gpu:
            self._unscale_on_gpu(scale, record, pending, table)
        else:
            pending.inverse = inverse_scale(scale.item())
            found = LazyScalar(lambda: self._found_inf(pending))
            pending.readers.append(found)
            record["found_inf_per_device"] = {scale.device: found}
            record["stage"] = type(record["stage"])(OptState.UNSCALED.value)
        self._wait(pending)

    def _unscale_on_gpu(
        self, scale: Tensor, record: Any, pending: Pending, table: StepTable
    ) -> None:
        """The pass over the gradients is queued now, so that found_inf is true at any
        time; the norm that it finds serves the clip too."""
        pending.scaling = scaling = Scaling.of(scale, table.device)
        pending.measured = table.measure_on_gpu(scaling)
        record["found_inf_per_device"] = {table.device: scaling.found_inf}
        record["stage"] = type(record["stage"])(OptState.UNSCALED.value)

    def defer_clip(self, max_norm: float) -> LazyScalar:
        """clip_grad_norm_ without touching memory; returns the norm, lazily."""
        max_norm = float(max_norm)
        pending = self._still_waiting()
        if pending is not None and pending.max_norm is not None:
            self.apply_deferred()
            pending = None
        if pending is None:
            pending = Pending(self._params())
        of = pending
        of.max_norm = max_norm
        norm = LazyScalar(lambda: self._norm(of))
        of.readers.append(norm)
        self._wait(of)
        return norm

    @torch.no_grad()
    def apply_deferred(self) -> None:
        """Writes a waiting unscale_ and clip into the gradients, now.

        Raises:
            RuntimeError: the gradients were written while it waited.
        """
        pending = self._still_waiting()
        if pending is None:
            return
        table = self._table()
        table.check(update=False, writes=True)
        if table.steps_on_gpu:
            self._tell_readers(pending, table)
            table.run_on_gpu(
                pending.scaling,
                max_norm=pending.max_norm,
                measured=pending.measured,
                update=False,
                gradient=WRITE,
            )
        else:
            pending.resolve()
            pending.measure(table)
            table.run(
                inverse=pending.factor,
                clip=pending.clip(table),
                update=False,
                gradient=WRITE,
            )
        self._wait_no_longer()

    def waits_with(self, p: Tensor) -> bool:
        """Is there something that the gradient of this tensor waits for?"""
        return self._pending is not None and self._pending.concerns(p)

    def waits_near(self, tensors: list[Tensor]) -> bool:
        """As waits_with, of any of these parameters or gradients; those that lie in the
        memory of a gradient that waits count too."""
        return self._pending is not None and self._pending.touches(tensors)

    def _still_waiting(self) -> Pending | None:
        """What waits; raises RuntimeError if its gradients were written since."""
        if self._pending is not None:
            self._check_unwritten(self._pending)
        return self._pending

    def _check_unwritten(self, pending: Pending) -> None:
        p = pending.written(self._params())
        if p is not None:
            self._refuse(pending, p)

    def _refuse(self, pending: Pending, p: Tensor) -> NoReturn:
        call = "unscale_" if pending.is_scaled else "clip_grad_norm_"
        raise RuntimeError(
            f"{name_of(self.param_groups, p)}: its gradient was written or replaced "
            f"(by a backward?) after {call}, which waits for the step within "
            f"yolov9mem.torch.deferred: do that before {call}, or call "
            "optimizer.apply_deferred() first; optimizer.zero_grad() forgets both"
        )

    def _drop_deferred(self) -> None:
        """Forgets what waits. Norms that were handed out are true, or refused."""
        pending = self._pending
        if pending is None:
            return
        p = pending.written(self._params())
        if p is not None:
            for reader in pending.readers:
                if pending.norm is None:
                    reader.later(lambda: self._refuse(pending, p))
        elif pending.readers:
            table = self._table()
            if table.steps_on_gpu:
                self._tell_readers(pending, table)
            else:
                pending.resolve()
        self._wait_no_longer()

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
        if pending.norm is not None:
            return pending.norm
        self._check_unwritten(pending)
        table = self._table()
        if table.steps_on_gpu:
            return float(pending.measure_on_gpu(table).item())
        return pending.measure(table)

    @torch.no_grad()
    def _found_inf(self, pending: Pending) -> float:
        """What a deferred unscale_ found."""
        if pending.norm is None:
            self._check_unwritten(pending)
            pending.measure(self._table())
        return float(not pending.is_finite)

    def has_pre_hooks(self) -> bool:
        """Would something look at the gradients before `step` does?"""
        return bool(self._optimizer_step_pre_hooks or _global_optimizer_pre_hooks)

    def has_lent(self) -> bool:
        """Has somebody taken a gradient, in which he would not find what is to wait?"""
        return self._pending is None and are_held(self._params())

    def averages(self, model: nn.Module) -> bool:
        """Is this the live module of the attached average?"""
        return self._pairs is not None and self._pairs.model is model

    def _follow_ema(self) -> None:
        """Attaches anew where the script has given its average another module."""
        if self._pairs is not None and not self._pairs.are_of(self._ema.ema):
            self._pairs = AveragePairs(self._ema.ema, self._pairs.model)

    @torch.no_grad()
    def update_ema(self) -> None:
        """`ema.update(model)`: counts only if the last step has moved the average."""
        self._follow_ema()
        if not self._ema_is_ahead:
            decay = float(self._ema.decay(self._ema.updates + 1))
            StepTable([], self.state, self._pairs or ()).move_averages(decay)
        self._ema_is_ahead = False
        self._ema.updates += 1
