# SPDX-License-Identifier: MIT
"""The two-pass step for a script that unscales, clips, steps and averages by itself.

Within `deferred(optimizer)` the usual lines

    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    ema.update(model)

touch memory twice instead of six times. Whatever cannot wait (another norm type, other
parameters, clip_grad_value_, a script that reads or sets the `grad` of a parameter) first
gets the gradients as they should be. Nothing waits while a script has a `grad` in hand that
it took before. Gradients that are written unseen while something waits, by a backward or
through a view that the script has made before, are refused by the step with a
RuntimeError; only what is read there, or written to its `.data`, cannot be seen.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.nn.utils import clip_grad

from . import gradients
from .averages import unwrap
from .gradients import grad_of
from .sgd import AccumulatingSGD

_active: weakref.WeakSet[AccumulatingSGD] = weakref.WeakSet()
_originals: dict[tuple[Any, str], Any] = {}


class deferred:
    """Context in which unscale_, clip_grad_norm_ and ema.update wait for the step.

    `start()` and `stop()` do the same without a `with`; the launcher uses them.

    Args:
        optimizer: its gradients are the ones that wait.
        ema: also moved in the step: `ema.update(model)` then only counts. It must be
            called once after every step, as the official trainer does.
        model: what `ema` averages (None: found by itself, see AccumulatingSGD).

    Raises:
        RuntimeError: the optimizer is within another already.
        TypeError: optimizer is no AccumulatingSGD.
        ValueError: optimizer.accumulate is not 1: such a script accumulates by itself.
    """

    def __init__(
        self,
        optimizer: AccumulatingSGD,
        ema: Any = None,
        model: nn.Module | None = None,
    ) -> None:
        if not isinstance(optimizer, AccumulatingSGD):
            raise TypeError(
                f"optimizer: expected AccumulatingSGD, got {type(optimizer).__name__}"
            )
        if optimizer.accumulate != 1:
            raise ValueError(f"accumulate: is {optimizer.accumulate}, must be 1")
        self._optimizer = optimizer
        self._ema = ema
        self._model = model
        self._zero_grads = optimizer.zero_grads
        self._is_on = False

    def start(self) -> None:
        """As entering the context.

        Raises:
            RuntimeError: the optimizer is within a `deferred` already.
        """
        if self._optimizer in _active:
            raise RuntimeError(
                "deferred: the optimizer is within a deferred already, which is to end "
                "before another begins"
            )
        if self._ema is not None:  # first: it may raise, as attach_ema does
            self._optimizer.attach_ema(self._ema, self._model, counted_outside=True)
            self._ema.update = _counting_update(self._ema, self._optimizer)
        _install()
        _active.add(self._optimizer)
        # The script zeroes by itself, and may look at the gradients before it does.
        self._zero_grads = self._optimizer.zero_grads
        self._optimizer.zero_grads = False
        self._is_on = True

    def stop(self) -> None:
        """As leaving the context; does nothing where it was left or never entered."""
        if not self._is_on:
            return
        self._is_on = False
        try:
            self._optimizer.apply_deferred()
        finally:
            self._put_back()

    def _put_back(self) -> None:
        _active.discard(self._optimizer)
        gradients.wait_no_longer(self._optimizer)
        self._optimizer.zero_grads = self._zero_grads
        if self._ema is not None:
            self._optimizer.attach_ema(None)
            vars(self._ema).pop("update", None)
        if not _active:
            _uninstall()

    def __enter__(self) -> AccumulatingSGD:
        self.start()
        return self._optimizer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except (RuntimeError, TypeError, ValueError):
            if kind is None:
                raise
            # Else gradients that cannot be finished: the block's own error says more.


def _counting_update(ema: Any, optimizer: AccumulatingSGD) -> Callable[..., None]:
    stock = type(ema).update

    def update(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if args or kwargs or not optimizer.averages(unwrap(model)):
            stock(ema, model, *args, **kwargs)
        else:
            optimizer.update_ema()

    return update


def _install() -> None:
    if _originals:
        return
    gradients.install()
    scaler = torch.amp.GradScaler
    _patch(scaler, "unscale_", _unscale)
    for module in (torch.nn.utils, clip_grad):
        _patch(module, "clip_grad_norm_", _clip_grad_norm)
        _patch(module, "clip_grad_value_", _clip_grad_value)
    # What clip_grad_norm_ calls first (before PyTorch 2.6 the latter): caught here too is a
    # script that imported it by name before us.
    for name in ("_get_total_norm", "_group_tensors_by_device_and_dtype"):
        if hasattr(clip_grad, name):
            _patch(clip_grad, name, _finished_first(getattr(clip_grad, name)))
            break


def _patch(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    _originals[owner, name] = getattr(owner, name)
    setattr(owner, name, replacement)


def _uninstall() -> None:
    gradients.uninstall()
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()


def _unscale(scaler: Any, optimizer: Any) -> None:
    original = _originals[torch.amp.GradScaler, "unscale_"]
    if (
        isinstance(optimizer, AccumulatingSGD)
        and optimizer in _active
        and scaler.is_enabled()
        and not optimizer.has_pre_hooks()
    ):
        stage = scaler._per_optimizer_states[id(optimizer)]["stage"]
        if stage.value == OptState.READY.value and not optimizer.has_lent():
            optimizer.defer_unscale(scaler)
            return
    original(scaler, optimizer)  # also where it raises


def _clip_grad_norm(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    if not isinstance(parameters, (Tensor, list, tuple)):
        parameters = list(parameters)
    if float(norm_type) == 2.0 and not error_if_nonfinite and float(max_norm) >= 0:
        optimizer = _owner_of(parameters)
        if optimizer is not None and not optimizer.has_lent():
            return optimizer.defer_clip(max_norm)
    _finish(parameters)
    original: Callable[..., Tensor] = _originals[clip_grad, "clip_grad_norm_"]
    return original(parameters, max_norm, norm_type, error_if_nonfinite, foreach)


def _clip_grad_value(
    parameters: Tensor | Iterable[Tensor],
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    if not isinstance(parameters, (Tensor, list, tuple)):
        parameters = list(parameters)
    _finish(parameters)
    original: Callable[..., None] = _originals[clip_grad, "clip_grad_value_"]
    original(parameters, clip_value, foreach)


def _owner_of(parameters: Tensor | Iterable[Tensor]) -> AccumulatingSGD | None:
    """The active optimizer whose gradients are exactly those of the parameters."""
    listed = [parameters] if isinstance(parameters, Tensor) else parameters
    wanted = {id(p) for p in listed if grad_of(p) is not None}
    for optimizer in _active:
        owned = {
            id(p)
            for group in optimizer.param_groups
            for p in group["params"]
            if grad_of(p) is not None
        }
        if wanted and wanted == owned and not optimizer.has_pre_hooks():
            return optimizer
    return None


def _finish(tensors: Any) -> None:
    """Finishes what these parameters or gradients wait for: nothing of another model's,
    whose own calls are to be told where it cannot be done."""
    listed = list(_tensors_in(tensors))
    for optimizer in list(_active):
        if optimizer.waits_near(listed):
            optimizer.apply_deferred()


def _tensors_in(found: Any) -> Iterator[Tensor]:
    """Of a tensor or of lists of them, some of which may be None."""
    if isinstance(found, Tensor):
        yield found
    elif found is not None:
        for entry in found:
            yield from _tensors_in(entry)


def _finished_first(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        _finish(tensors)
        return original(tensors, *args, **kwargs)

    return call
