# SPDX-License-Identifier: MIT
"""Sorts an optimizer's tensors into rows for the C step; a rest is stock torch's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolov9mem import _core
from yolov9mem.sgd import named

from .. import devices
from ..layout import is_flat, matches
from ..versions import count_up
from .averages import move_average, why_not_moved
from .gpu_step import DeviceTable, Scaling
from .gradients import grad_of
from .hyper import hyper_of
from .names import name_of
from .overlap import share_memory
from .stock_rest import KEEP, WRITE, ZERO, Rest, momentum_of

_COLUMNS = 7
_GRAD, _MOMENTUM, _FIRST_STEP = 1, 2, 6


class StepTable:
    """The tensors of one optimizer step, looked at once.

    Args:
        param_groups, state: the optimizer's.
        pairs: (average, live) tensors of a moving average, or nothing.
        memory: the table's place on a GPU, kept by who steps often.

    Attributes:
        device: of all rows; None: there are none yet.
        reason: why some parameters are left to stock torch, or None. On a GPU one such
            parameter leaves all of them: the norm of all must be known there.

    Raises:
        TypeError: a gradient is sparse.
    """

    def __init__(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        pairs: Iterable[tuple[Tensor, Tensor]] = (),
        memory: DeviceTable | None = None,
    ) -> None:
        self.device: torch.device | None = None
        self.reason: str | None = None
        self._memory = memory or DeviceTable()
        self._groups = param_groups
        self._state = state
        self._rows: list[int] = []
        self._lives: list[Tensor] = []  # the parameter or buffer of each row
        self._stepped: list[Tensor] = []  # parameters and their momentum buffers
        self._grads: list[Tensor] = []
        self._averaged: list[Tensor] = []
        self._without_momentum: list[tuple[int, Tensor]] = []  # (row, parameter)
        self._made_momentum: list[tuple[Tensor, Tensor]] = []
        self.rest = Rest(param_groups, state)
        self._averages: dict[int, tuple[Tensor, Tensor]] = {}
        self._late: list[tuple[Tensor, Tensor]] = []
        pairs = list(pairs)
        self._sort_pairs(pairs)
        for number, group in enumerate(param_groups):
            self._add_group(number, group)
        if self.on_gpu and self._stepped:
            most = devices.extension().SGD_GROUPS
            if len(param_groups) > most:
                groups = f"there are {len(param_groups)} param_groups"
                self.reason = f"{groups}, at most {most} are stepped on a GPU"
            if self.reason is not None:
                self._leave_all_to_torch(pairs)
        self._add_averages()
        self._table = np.array(self._rows, np.int64).reshape(-1, _COLUMNS)

    @property
    def on_gpu(self) -> bool:
        """Are the rows on a GPU?"""
        return self.device is not None and devices.kind(self.device) == "cuda"

    @property
    def steps_on_gpu(self) -> bool:
        """Are all parameters stepped by the GPU's kernels?"""
        return self.on_gpu and not self.rest

    @property
    def is_capturing(self) -> bool:
        """Is the rows' stream being captured into a CUDA graph?"""
        return self.device is not None and devices.is_capturing(self.device)

    def _leave_all_to_torch(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._rows, self._lives, self._stepped, self._grads = [], [], [], []
        self._averaged, self._without_momentum, self._late = [], [], []
        self._averages.clear()
        self._sort_pairs(pairs)
        self.rest.take_all()

    @property
    def is_reusable(self) -> bool:
        """Would the same tensors make the same table again, but for gradients?"""
        return not self._without_momentum and not self.rest

    def with_gradients(
        self, param_groups: list[dict[str, Any]], grads: list[Tensor]
    ) -> StepTable:
        """The same table for other gradients of the same layouts, one per parameter."""
        made = copy.copy(self)
        made._groups = param_groups
        made._grads = grads
        made._table = self._table.copy()
        made._table[: len(grads), _GRAD] = list(map(Tensor.data_ptr, grads))
        return made

    def _sort_pairs(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Those that share memory (tied ones, buffers that are views of each other or of
        parameters) are averaged after the step, each in its turn: once for each name, as
        the official loop does."""
        if not pairs:
            return
        paired = [x for pair in pairs for x in pair]
        lives = set(map(id, paired[1::2]))
        others = [p for group in self._groups for p in group["params"] if is_flat(p)]
        shares = share_memory(paired + [p for p in others if id(p) not in lives])
        for i, (average, live) in enumerate(pairs):
            if shares[2 * i] or shares[2 * i + 1]:
                self._late.append((average, live))
            else:
                self._averages[id(live)] = (average, live)

    def _add_group(self, number: int, group: dict[str, Any]) -> None:
        has_momentum = group["momentum"] != 0
        for p in group["params"]:
            g = grad_of(p)
            if g is None:
                continue
            if g.layout is not torch.strided:
                raise TypeError(
                    f"param_groups[{number}]: a gradient of shape {tuple(g.shape)} has "
                    f"layout {g.layout}, must be dense (torch.strided)"
                )
            buffer = momentum_of(p, self._state) if has_momentum else None
            reason = self._why_not(p, g, buffer)
            if reason is not None:
                self.reason = self.reason or f"param_groups[{number}]: {reason}"
                self.rest.add(number, p)
                continue
            if has_momentum and buffer is None:
                self._without_momentum.append((len(self._rows) // _COLUMNS, p))
            self._add_row(p, g, buffer, self._average_of(p), number)

    def _why_not(self, p: Tensor, g: Tensor, buffer: Tensor | None) -> str | None:
        """Why C cannot step this parameter; None: it can."""
        shape = tuple(p.shape)
        if not is_flat(p) or not matches(p, p):
            return (
                f"a parameter of shape {shape} is {p.dtype} on {p.device}, or has gaps, "
                "or is a lazily negated view"
            )
        if self.device not in (None, p.device):
            return f"parameters are on {self.device} and {p.device}"
        if not matches(g, p):
            return f"the gradient of a parameter of shape {shape} is not laid out as it"
        if buffer is not None and not matches(buffer, p):
            return f"the momentum of a parameter of shape {shape} is not laid out as it"
        return None

    def _average_of(self, p: Tensor) -> Tensor | None:
        found = self._averages.get(id(p))
        if found is None or not matches(found[0], p):
            return None
        del self._averages[id(p)]
        return found[0]

    def _add_averages(self) -> None:
        """Rows for averages whose live tensor is not stepped: buffers, frozen ones."""
        stepped = self.rest.ids()
        for average, live in self._averages.values():
            if (
                id(live) not in stepped
                and self.device in (None, live.device)
                and is_flat(live)
                and matches(live, live)
                and matches(average, live)
            ):
                self._add_row(live, None, None, average, 0)
            else:
                self._late.append((average, live))

    def _add_row(
        self,
        p: Tensor,
        g: Tensor | None,
        buffer: Tensor | None,
        average: Tensor | None,
        number: int,
    ) -> None:
        self.device = p.device
        self._lives.append(p)
        self._rows += (
            p.data_ptr(),
            0 if g is None else g.data_ptr(),
            0 if buffer is None else buffer.data_ptr(),
            0 if average is None else average.data_ptr(),
            p.numel(),
            number,
            0,
        )
        if g is not None:
            self._stepped += (p,) if buffer is None else (p, buffer)
            self._grads.append(g)
        if average is not None:
            self._averaged.append(average)

    def check(
        self, *, decay: float | None = None, update: bool = True, writes: bool = False
    ) -> None:
        """Raises what `run` would, before anything is written.

        Args:
            decay, update: as `run`'s.
            writes: gradients are to be unscaled or clipped.
        """
        for average, live in self._late if decay is not None else ():
            reason = why_not_moved(average, live)
            if reason is not None:
                raise ValueError(f"ema: {name_of(self._groups, live)}: {reason}")
        if not self.rest and not self.on_gpu:
            return  # C asks by itself before it writes
        if update:
            self._new_momentum()
        # The kernels' rows are looked at when they are uploaded.
        rows = self._table if self.rest else self._table[:0]
        with self._naming():
            hyper = hyper_of(self._groups)
            _core.sgd_check(rows, hyper, update=update, ema_decay=decay)
        self.rest.check(update=update, writes=writes)

    def move_averages(self, decay: float) -> None:
        """Nothing else; raises before any is moved."""
        self.check(decay=decay)
        self.run(gradient=KEEP, decay=decay)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """C knows tensors by their rows."""
        try:
            yield
        except ValueError as error:
            lives = self._lives
            raise named(error, lambda row: name_of(self._groups, lives[row])) from None

    def types_of_gradients(self) -> set[torch.dtype]:
        """Those of all gradients that are stepped; C's are float32."""
        return self.rest.types() | ({torch.float32} if self._grads else set())

    def norm_of_rows(self) -> float:
        """L2 norm of the gradients that C handles, as they are."""
        devices.use_threads_of_torch()
        return _core.sgd_norm(self._table)

    def run(
        self,
        *,
        inverse: float = 1.0,
        clip: tuple[float, float] = (1.0, 1.0),
        update: bool = True,
        gradient: int = ZERO,
        decay: float | None = None,
    ) -> None:
        """Does everything after the norm; `rest.unscale` has run if inverse is not 1, and
        `check` if there is a rest.

        Args:
            inverse: factor of the gradients that C handles.
            clip: the clip coefficient, and that of gradients in double.
            update: False leaves parameters and momentum.
            gradient: KEEP, ZERO or WRITE.
            decay: of the moving average; None: no average.

        Raises:
            ValueError: arrays overlap in memory, or a hyper-parameter is not finite.
        """
        made = self._new_momentum() if update else []
        self.rest.run(*clip, update, gradient)  # first: C, once asked, does not fail
        gradient_now = (
            gradient if (inverse, clip[0], gradient) != (1, 1, WRITE) else KEEP
        )
        if self.on_gpu:  # averages only: parameters take `run_on_gpu`
            self._run_kernel(
                Scaling(),
                self._groups[:1],
                update=update,
                gradient=KEEP,
                ema_decay=decay,
            )
        else:
            devices.use_threads_of_torch()
            with self._naming():
                _core.sgd_step(
                    self._table,
                    hyper_of(self._groups),
                    inverse_scale=inverse,
                    clip=clip[0],
                    update=update,
                    gradient=gradient_now,
                    ema_decay=decay,
                )
        self._finish(made, update, decay)

    def measure_on_gpu(self, scaling: Scaling) -> int:
        """Queues the pass over the gradients; what it returns goes to `run_on_gpu`."""
        device = self._gpu()
        self._new_momentum()  # rows are whole; the state learns of it in `run_on_gpu`
        with devices.current(device), self._naming():
            hyper = hyper_of(self._groups)
            return self._memory.measure(self._table, hyper, device, scaling)

    def norm_on_gpu(self) -> Tensor:
        """The norm that the latest pass over the gradients found, on the GPU."""
        return self._memory.norm()

    def run_on_gpu(
        self,
        scaling: Scaling,
        *,
        max_norm: float | None = None,
        measured: int | None = None,
        update: bool = True,
        gradient: int = ZERO,
        decay: float | None = None,
    ) -> None:
        """Queues everything; waits only for a first step under a GradScaler, to know
        whether momentum buffers come into being. Arguments as `run`'s."""
        made = self._new_momentum()  # also where none is written: rows are whole
        if update and made and scaling.found_inf is not None:
            if measured is None:
                measured = self.measure_on_gpu(scaling)
            update = scaling.found_inf.item() == 0
        plain = scaling.scale is None and max_norm is None
        self._run_kernel(
            scaling,
            self._groups,
            max_norm=max_norm,
            measured=measured,
            update=update,
            gradient=KEEP if plain and gradient == WRITE else gradient,
            ema_decay=decay,
        )
        self._finish(made if update else [], update, decay)

    def _gpu(self) -> torch.device:
        assert self.device is not None
        return self.device

    def _run_kernel(
        self, scaling: Scaling, groups: list[dict[str, Any]], **options: Any
    ) -> None:
        device = self._gpu()
        with devices.current(device), self._naming():
            self._memory.run(self._table, hyper_of(groups), device, scaling, **options)

    def _tell_autograd(self, update: bool, averaged: bool) -> None:
        """Counts up the versions of what C has written."""
        written = self._grads + (self._stepped if update else [])
        count_up(written + (self._averaged if averaged else []))

    def _finish(
        self, made: list[tuple[Tensor, Tensor]], update: bool, decay: float | None
    ) -> None:
        """After C's step: ``made`` are the momentum buffers that are new."""
        for p, buffer in made:
            self._state[p]["momentum_buffer"] = buffer
        self._tell_autograd(update, decay is not None)
        if decay is not None:
            for average, live in self._late:
                move_average(average, live, decay)

    def _new_momentum(self) -> list[tuple[Tensor, Tensor]]:
        """Buffers for the parameters that have none, the same ones when asked again."""
        made = self._made_momentum
        if made:
            return made
        for row, p in self._without_momentum:
            buffer = torch.empty_like(p, requires_grad=False)
            self._table[row, _MOMENTUM] = buffer.data_ptr()
            self._table[row, _FIRST_STEP] = 1
            made.append((p, buffer))
        return made
