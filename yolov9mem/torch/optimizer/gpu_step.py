# SPDX-License-Identifier: MIT
"""The optimizer step on a GPU: two launches, and nothing comes back to the host.

Loss scale and found_inf are torch.amp.GradScaler's own scalars, read and written where
they are; the norm stays in the table's memory until somebody asks for it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import devices

_NORM = slice(8, 12)  # bytes of the table's memory: see _cuda.sgd_norm


@dataclass
class Scaling:
    """What a GradScaler gave for a step: scalars on the GPU, each may be missing.

    scale: gradients are still multiplied by it. found_inf: 1 where one is not finite.
    """

    scale: Tensor | None = None
    found_inf: Tensor | None = None

    @classmethod
    def of(cls, scale: Tensor, device: torch.device | None) -> Scaling:
        """Gradients on ``device`` that are multiplied by ``scale``."""
        return cls(
            scale.to(device), torch.zeros((), dtype=torch.float32, device=device)
        )

    def pointers(self) -> dict[str, int]:
        """As the extension takes them."""
        return {
            "scale": 0 if self.scale is None else self.scale.data_ptr(),
            "found_inf": 0 if self.found_inf is None else self.found_inf.data_ptr(),
        }


class DeviceTable:
    """The rows of a step in GPU memory, uploaded when one of them changes."""

    def __init__(self) -> None:
        self.uploads = 0
        self._rows: np.ndarray[Any, Any] | None = None
        self._memory: Tensor | None = None
        self._pinned: Tensor | None = None

    def place(
        self, rows: np.ndarray[Any, Any], hyper: array[float], device: torch.device
    ) -> Tensor:
        """Memory with these rows.

        Raises:
            RuntimeError: an upload is due and the stream is being captured.
        """
        memory = self._memory
        if (
            memory is not None
            and memory.device == device
            and np.array_equal(rows, self._rows)  # type: ignore[arg-type]
        ):
            return memory
        if devices.is_capturing(device):
            raise RuntimeError(
                "AccumulatingSGD.step: the addresses of some tensors are new and must be "
                "copied to the GPU, which a stream that is being captured does not "
                "allow: make a step before the capture and keep the gradients where they "
                "are (zero_grads=True, or zero_grad(set_to_none=False))"
            )
        made = devices.extension().sgd_table(rows, hyper)
        if memory is None or memory.numel() != len(made) or memory.device != device:
            memory = torch.empty(len(made), dtype=torch.uint8, device=device)
        host = torch.from_numpy(np.frombuffer(made, np.uint8).copy())
        self._pinned = devices.to_device(host, memory)
        self._rows, self._memory = rows.copy(), memory
        self.uploads += 1
        return memory

    def norm(self) -> Tensor:
        """A copy of the norm that the last first pass left, float32."""
        assert self._memory is not None
        return self._memory[_NORM].view(torch.float32).clone()

    def measure(
        self,
        rows: np.ndarray[Any, Any],
        hyper: array[float],
        device: torch.device,
        scaling: Scaling,
    ) -> int:
        """The first pass; returns a number that `run` takes as `measured`."""
        memory = self.place(rows, hyper, device)
        devices.extension().sgd_norm(
            rows,
            memory.data_ptr(),
            hyper,
            devices.index(device),
            stream=devices.stream(device),
            **scaling.pointers(),
        )
        return self.uploads

    def run(
        self,
        rows: np.ndarray[Any, Any],
        hyper: array[float],
        device: torch.device,
        scaling: Scaling,
        *,
        measured: int | None = None,
        **options: Any,
    ) -> None:
        """The second pass, after the first if that is needed and was not made.

        options: max_norm, update, gradient, ema_decay of _cuda.sgd_step.
        """
        memory = self.place(rows, hyper, device)
        devices.extension().sgd_step(
            rows,
            memory.data_ptr(),
            hyper,
            devices.index(device),
            stream=devices.stream(device),
            measured=measured == self.uploads,
            **scaling.pointers(),
            **options,
        )
