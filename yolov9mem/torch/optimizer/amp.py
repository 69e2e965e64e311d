# SPDX-License-Identifier: MIT
"""What a GradScaler has to do with a step, whichever of the two calls the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from .gpu_step import Scaling


@dataclass(frozen=True)
class Scaled:
    """Of one step.

    Attributes:
        scale: the gradients are still multiplied by it; None: they are not.
        founds: the scaler has looked for infs already, one scalar for each device; None:
            the step is to look.
        record: the scaler's, of this optimizer, to be told of the step; None: there is no
            scaler, or it keeps its record by itself.
    """

    scale: Tensor | None = None
    founds: list[Tensor] | None = None
    record: Any = None

    @classmethod
    def of(cls, optimizer: Any, scaler: Any) -> Scaled:
        """Of optimizer.step(scaler=scaler), or of scaler.step(optimizer).

        Raises:
            RuntimeError: the scaler's step was made already.
        """
        if hands_over(optimizer):
            return cls(optimizer.grad_scale, [optimizer.found_inf])
        if scaler is None:
            return cls()
        scale, _ = scaler._check_scale_growth_tracker("step")
        record = scaler._per_optimizer_states[id(optimizer)]
        stage = record["stage"].value
        if stage == OptState.STEPPED.value:
            raise RuntimeError(
                "step() has already been called since the last update()."
            )
        if stage == OptState.READY.value:
            return cls(scale, None, record)
        return cls(None, list(record["found_inf_per_device"].values()), record)

    def founds_are_zero(self) -> bool:
        """Did the scaler find no inf?"""
        return sum(float(found.item()) for found in self.founds or ()) == 0

    def on_gpu(self, device: torch.device | None) -> Scaling:
        """The scalars as the kernels take them."""
        if self.founds is None:
            return Scaling() if self.scale is None else Scaling.of(self.scale, device)
        founds = [found.to(device) for found in self.founds]
        found = founds[0] if len(founds) == 1 else torch.stack(founds).sum()
        return Scaling(None if self.scale is None else self.scale.to(device), found)

    def done(self, found: Tensor | None) -> None:
        """The step was made; found: what it has found of infs."""
        if self.record is None:
            return
        if self.founds is None and found is not None:
            self.record["found_inf_per_device"] = {found.device: found}
        stage = type(self.record["stage"])
        self.record["stage"] = stage(OptState.STEPPED.value)


def hands_over(optimizer: Any) -> bool:
    """Is this step called by scaler.step(optimizer)? It leaves scalars on the optimizer."""
    return hasattr(optimizer, "found_inf")


def forget_scale(optimizer: Any) -> None:
    """GradScaler.step takes its scalars back only from a step that returns."""
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)


def checked_scaler(optimizer: Any, closure: Any, scaler: Any) -> Any:
    """What `step` was given, where it is enabled.

    Raises:
        TypeError: it is no GradScaler.
        RuntimeError: a call that a GradScaler does not go with.
    """
    is_one = scaler is None or hasattr(scaler, "is_enabled")
    if is_one and (scaler is None or not scaler.is_enabled()):
        scaler = None
    elif not is_one or not hasattr(scaler, "_per_optimizer_states"):
        kind = type(scaler).__name__
        raise TypeError(f"scaler: expected a torch.amp.GradScaler, got {kind}")
    if hands_over(optimizer) and optimizer.accumulate > 1:
        raise RuntimeError(
            f"accumulate is {optimizer.accumulate}: scaler.step(optimizer) would unscale "
            "each micro-batch; call optimizer.step(scaler=scaler), and scaler.update() "
            "when optimizer.stepped"
        )
    if hands_over(optimizer) and scaler is not None:
        raise RuntimeError(
            "scaler.step(optimizer, scaler=...): the scaler comes by itself there"
        )
    if closure is not None and (scaler is not None or hands_over(optimizer)):
        raise RuntimeError("a closure cannot be combined with an enabled GradScaler")
    return scaler
