# SPDX-License-Identifier: MIT
"""SGD that accumulates, clips, steps, averages and zeroes in two passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from yolov9mem._checks import check_flag
from yolov9mem.sgd import checked_max_norm, inverse_scale

from ..checks import check_attributes, checked_count
from . import amp
from .amp import Scaled
from .averages import AveragePairs, find_model
from .deferring import DeferringOptimizer
from .gpu_step import Scaling
from .hyper import check_finite, refuse_other_steps
from .pending import Pending
from .step_table import WRITE, ZERO, StepTable
from .table_cache import TableCache


class AccumulatingSGD(DeferringOptimizer, torch.optim.SGD):
    """torch.optim.SGD with the whole optimizer step of a YOLOv9 trainer in one call.

    `step()` reads all gradients once (norm and finite check) and then does the rest per
    element in one more pass: unscale, clip, weight decay, momentum, Nesterov,
    parameter, moving average, gradient zeroed. The results are bit-equal to
    torch.optim.SGD with foreach=False and to the official ModelEMA; the clip
    coefficient uses a norm summed in double (torch's float32 sum is about 1e-6 off),
    but torch's own of each gradient that is not for C, see below.

    Call `step()` after **every micro-batch**: with `accumulate=N` it returns at once
    N - 1 times and acts on each N-th call. Gradients are summed over the N
    micro-batches, never divided, as the official trainer does. Do not call
    `zero_grad()` in between: `step()` zeroes the gradients that it used, in place, those
    of a skipped step too (`zero_grads=False` leaves them, as torch does). `zero_grad()`
    has torch's meaning and does not restart the count. To the optimizer N micro-batches
    are one large batch; to batch norm they are not: its statistics are those of each
    micro-batch, so prefer a larger micro-batch where memory allows. After each call:

    - `stepped`: this call acted (the N-th micro-batch); `scaler.update()` is due,
    - `skipped`: it acted, but a gradient was not finite under a scaler, so parameters
      and momentum stayed (the average still moved, as in the official trainer),
    - `grad_norm`: the L2 norm before clipping, None if nobody needed it,
    - `fallback`: why some parameters were stepped by stock torch, or None.

    Under a torch.amp.GradScaler call `step(scaler=scaler)`. With accumulate=1 the usual
    `scaler.step(optimizer)` does the same, after a pass of its own over the gradients;
    with accumulate=N it is refused. Only where hooks before the step are registered, which
    are to see unscaled gradients, GradScaler does not come here with a step that it skips:
    then call `zero_grad()`, and move the average, by yourself.

    float32 parameters whose gradient, buffer and average have the same dense layout are
    stepped in C, on the CPU or on one GPU; all others by stock torch, in the same call,
    with the same result. On a GPU a step is two launches and never waits: scale and
    found_inf are the scaler's own scalars, and reading `skipped` or `grad_norm` is what
    waits. Only the very first step under a scaler waits by itself, to know whether
    momentum buffers come into being. Where one parameter on a GPU is none for C, or
    there are two GPUs or more than 128 groups, all are stepped by stock torch. A lr or
    weight_decay that is a tensor on a GPU is read there, which waits. A step that is
    captured into a CUDA graph keeps the rates of its capture. `param_groups` and
    `state_dict()` are those of torch.optim.SGD and load into it and back;
    hyper-parameters are read from `param_groups` at every step.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach: as
            torch.optim.SGD (foreach matters only to what stock torch steps on a GPU).
        accumulate: micro-batches per step; may be assigned at any time.
        max_norm: clip the norm of all gradients, as clip_grad_norm_(params, max_norm).
        ema: an object with `.ema` (module, another one at any time), `.updates` (int) and
            `.decay` (function of updates), as the official ModelEMA. Each step counts
            `updates` up and moves every floating-point entry of ema.ema.state_dict(),
            frozen parameters and batch-norm statistics too; do not call `ema.update`
            besides.
        model: the live module that `ema.ema` averages. Found by itself if only one
            module of that class owns these parameters.
        zero_grads: zero the gradients within the step.

    Raises:
        ValueError: a value breaks its rule; the text names it.
        NotImplementedError: differentiable=True or fused=True, of a group too (other
            bits than the loop).

    The count of micro-batches, like the gradients, is not in `state_dict()`. Copies and
    pickles do not carry `ema`: attach it again with `attach_ema`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        accumulate: int = 1,
        max_norm: float | None = None,
        ema: Any = None,
        model: nn.Module | None = None,
        zero_grads: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        refuse_other_steps({"differentiable": differentiable, "fused": fused})
        check_finite({"lr": lr, "momentum": momentum})
        check_finite({"dampening": dampening, "weight_decay": weight_decay})
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
        )
        self._set_defaults()
        self.accumulate = accumulate
        self.max_norm = max_norm
        check_flag("zero_grads", zero_grads)
        self.zero_grads = bool(zero_grads)
        if ema is not None:
            self.attach_ema(ema, model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim.SGD's. Raises NotImplementedError as the constructor does."""
        if isinstance(param_group, dict):  # else torch says so
            refuse_other_steps(param_group)
        super().add_param_group(param_group)

    def _set_defaults(self) -> None:
        self._accumulate = 1
        self._micro_batches = 0
        self._max_norm: float | None = None
        self.zero_grads = True
        self.stepped = False
        self.fallback: str | None = None
        self._skipped: bool | Tensor = False
        self._norm_found: float | Tensor | None = None
        self._ema: Any = None
        self._pairs: AveragePairs | None = None
        self._ema_is_counted_outside = False
        self._ema_is_ahead = False
        self._pending: Pending | None = None
        self._tables = TableCache()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_accumulate", "_micro_batches", "_max_norm", "zero_grads")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in kept},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_accumulate" not in self.__dict__:
            self._set_defaults()
        super().__setstate__(state)
        for group in self.param_groups:
            # Of a stock optimizer's state: not the loop's bits.
            group.update(fused=None, differentiable=False)

    @property
    def accumulate(self) -> int:
        """Micro-batches per step, at least 1."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, count: int) -> None:
        self._accumulate = checked_count("accumulate", count)

    @property
    def max_norm(self) -> float | None:
        """The norm of all gradients is clipped to this, at least 0; None: it is not."""
        return self._max_norm

    @max_norm.setter
    def max_norm(self, max_norm: float | None) -> None:
        self._max_norm = checked_max_norm(max_norm)

    @property
    def skipped(self) -> bool:
        """Did the last step leave the parameters, for a gradient that is not finite?"""
        if isinstance(self._skipped, Tensor):
            self._skipped = bool(self._skipped.item())
        return self._skipped

    @property
    def grad_norm(self) -> float | None:
        """L2 norm of the last step's gradients before clipping; None: nobody needed it."""
        if isinstance(self._norm_found, Tensor):
            self._norm_found = float(self._norm_found.item())
        return self._norm_found

    @property
    def ema(self) -> Any:
        """The attached moving average, or None."""
        return self._ema

    def attach_ema(
        self, ema: Any, model: nn.Module | None = None, *, counted_outside: bool = False
    ) -> None:
        """Moves this average in every step from now on; None: no longer.

        Args:
            ema, model: as in the constructor.
            counted_outside: `ema.updates` is counted by somebody else after each step
                (see yolov9mem.torch.deferred).

        Raises:
            TypeError: ema lacks `.ema` (a module), `.updates` or `.decay` (a function).
            ValueError: the live model is not found, or has not the average's tensors.
        """
        if ema is None:
            self._ema = self._pairs = None
            return
        check_attributes("ema", ema, ("ema", "updates", "decay"))
        if not callable(ema.decay):
            raise TypeError(
                f"ema: decay is {ema.decay!r}, must be a function of updates"
            )
        if model is None:
            model = find_model(
                ema.ema, (p for g in self.param_groups for p in g["params"])
            )
        self._pairs = AveragePairs(ema.ema, model)
        self._ema = ema
        self._ema_is_counted_outside = counted_outside
        self._ema_is_ahead = False

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        scaler: Any = None,
        max_norm: float | None = None,
    ) -> Any:
        """One micro-batch is done; acts if it is the `accumulate`-th.

        A step that raises by its own checks has done nothing: after the cause is mended
        it may be called again.

        Args:
            closure: evaluates the model again and returns the loss.
            scaler: a torch.amp.GradScaler: does what unscale_, clipping and scaler.step
                do. Call `scaler.update()` yourself when `stepped` is True.
            max_norm: instead of the constructor's.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: wrong order of calls, or a closure together with a scaler.
            TypeError: a gradient is sparse, or complex under a scaler, or an argument of
                another type.
            ValueError: a hyper-parameter is not finite, tensors overlap in memory, a
                shape does not fit.
        """
        self.stepped = self._skipped = False
        try:
            max_norm = checked_max_norm(max_norm)
            scaler = amp.checked_scaler(self, closure, scaler)
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            acts = self._micro_batches + 1 >= self._accumulate
            if acts:
                self._act(scaler, self.max_norm if max_norm is None else max_norm)
        except BaseException:
            amp.forget_scale(self)
            raise
        self.stepped = acts
        self._micro_batches = 0 if acts else self._micro_batches + 1
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:  # type: ignore[override]
        """Makes GradScaler.step come straight to `step` and hand the scale over, so that
        a step that is skipped comes here too: its gradients are zeroed and the average
        moves. Hooks before the step are to see unscaled gradients: for them GradScaler
        unscales by itself, unless that was done and waits on a GPU."""
        pending = self._pending
        waits = pending is not None and pending.scaling.found_inf is not None
        return self._accumulate > 1 or waits or not self.has_pre_hooks()

    def _act(self, scaler: Any, max_norm: float | None) -> None:
        self._follow_ema()
        scaled = Scaled.of(self, scaler)
        if scaler is not None or scaled.scale is not None or max_norm is not None:
            self.apply_deferred()
        pending = self._still_waiting() or Pending()
        if pending.max_norm is None:
            pending.max_norm = max_norm
        table = self._table()
        decay = self._next_decay(table)
        table.check(
            decay=decay,
            writes=pending.is_scaled
            or (pending.max_norm, scaled.scale) != (None, None),
        )
        if table.steps_on_gpu:
            found = self._act_on_gpu(scaled, pending, table, decay)
        else:
            found = self._act_here(scaled, pending, table, decay)
        self.fallback = table.reason
        scaled.done(found)
        self._wait_no_longer()
        if decay is not None and self._ema_is_counted_outside:
            self._ema_is_ahead = True
        elif decay is not None:
            self._ema.updates += 1

    def _act_here(
        self, scaled: Scaled, pending: Pending, table: StepTable, decay: float | None
    ) -> Tensor | None:
        """Returns found_inf, if it looked for it."""
        found = None
        if scaled.scale is not None:
            pending.inverse = inverse_scale(scaled.scale.item())
        pending.resolve()
        pending.unscale_rest(table)
        is_finite = scaled.founds_are_zero()
        if scaled.scale is not None and scaled.founds is None:
            pending.measure(table)
            is_finite = pending.is_finite
            found = scaled.scale.new_full((), float(not is_finite))
        if pending.max_norm is not None:
            pending.measure(table)
        table.run(
            inverse=pending.factor,
            clip=pending.clip(table),
            update=is_finite,
            gradient=ZERO if self.zero_grads else WRITE,
            decay=decay,
        )
        self._skipped = not is_finite
        self._norm_found = pending.norm
        return found

    def _act_on_gpu(
        self, scaled: Scaled, pending: Pending, table: StepTable, decay: float | None
    ) -> Tensor | None:
        """As _act_here; what it finds stays on the GPU."""
        scaling = pending.scaling
        if scaling.found_inf is None:
            scaling = scaled.on_gpu(table.device)
            if scaled.founds is not None:
                # What the scaler has found stands: this pass is for the norm alone.
                pending.measured = table.measure_on_gpu(Scaling(scaling.scale))
        max_norm = pending.max_norm
        needs_norm = scaling.found_inf is not None or max_norm is not None
        table.run_on_gpu(
            scaling,
            max_norm=max_norm,
            measured=pending.measured,
            gradient=ZERO if self.zero_grads else WRITE,
            decay=decay,
        )
        self._norm_found = table.norm_on_gpu() if needs_norm else None
        found = scaling.found_inf
        self._skipped = False if found is None else found
        norm = self._norm_found
        for reader in pending.readers:
            reader.later(lambda: float(norm))  # type: ignore[arg-type]
        return found

    def _next_decay(self, table: StepTable) -> float | None:
        """Of the average in this step; None: there is none.

        Raises:
            RuntimeError: the step is being captured, or is one ahead of the average.
        """
        if self._ema is None:
            return None
        if self._ema_is_ahead:
            raise RuntimeError(
                "ema.update(model) was not called after the last optimizer step, "
                "which had moved the average already"
            )
        if table.steps_on_gpu and table.is_capturing:
            raise RuntimeError(
                "AccumulatingSGD.step: a moving average is attached, whose decay is "
                "another in every step, and the stream is being captured, which would "
                "keep one: capture without it, and move it by ema.update(model)"
            )
        return float(self._ema.decay(self._ema.updates + 1))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch; also forgets an unscale_ or a clip that still waits for a step."""
        self._drop_deferred()
        super().zero_grad(set_to_none)
