# SPDX-License-Identifier: MIT
"""Augmented samples as jobs for the CUDA mosaic, with their tiles in the GPU's memory."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

import numpy as np
import torch

from yolov9mem import _core
from yolov9mem.augment import Mosaic

ALIGNMENT = 64


def drawn(mosaic: Mosaic, count: int, seed: int) -> list[tuple[Any, ...]]:
    """The arguments of _core.mosaic_render of `count` samples, without their output:
    (scenes, ratio, hsv, flip_vertical, flip_horizontal)."""
    found: list[tuple[Any, ...]] = []

    def note(out: np.ndarray, *rest: Any) -> None:
        found.append(rest[:5])

    random.seed(seed)
    np.random.seed(seed)
    with mock.patch.object(_core, "mosaic_render", note):
        for i in range(count):
            mosaic.sample(i % len(mosaic))
    return found


def on_the_cpu(jobs: list[tuple[Any, ...]], out: np.ndarray) -> np.ndarray:
    """The images, (n, 3, s, s) uint8, by the C core."""
    for job, image in zip(jobs, out, strict=True):
        _core.mosaic_render(image, *job)
    return out


class DeviceBatch:
    """The jobs with every array they read in one block of the GPU's memory.

    Args:
        jobs: of `drawn`. side: of the images, pixels. device: a CUDA device.
    """

    def __init__(
        self, jobs: list[tuple[Any, ...]], side: int, device: torch.device
    ) -> None:
        self.device, self._parts, self._size = device, [], 0
        self.out = torch.full(
            (len(jobs), 3, side, side), 7, dtype=torch.uint8, device=device
        )
        placed = [self._place(job) for job in jobs]
        on_gpu = device.type == "cuda"
        self.host = torch.zeros(self._size, dtype=torch.uint8, pin_memory=on_gpu)
        for at, array in self._parts:
            self.host[at : at + array.size] = torch.from_numpy(array.reshape(-1))
        self.block = torch.empty(self._size, dtype=torch.uint8, device=device)
        self.upload()
        self.jobs = tuple(
            (self._tuple(self.out[i]), *self._addressed(job))
            for i, job in enumerate(placed)
        )

    def upload(self) -> None:
        """Copies all that the jobs read, on the current stream."""
        self.block.copy_(self.host, non_blocking=True)

    @property
    def upload_bytes(self) -> int:
        return self._size

    def _tuple(self, x: torch.Tensor) -> tuple[Any, ...]:
        index = self.device.index or 0
        return (x.data_ptr(), "uint8", tuple(x.shape), x.stride(), index)

    def _keep(self, array: np.ndarray) -> tuple[int, tuple[int, ...]]:
        """Its place in the block and its shape; what the canvas shows of it, packed."""
        at = self._size
        self._parts.append((at, np.ascontiguousarray(array)))
        self._size += -(-array.size // ALIGNMENT) * ALIGNMENT
        return at, array.shape

    def _place(self, job: tuple[Any, ...]) -> tuple[Any, ...]:
        scenes, ratio, hsv, vertical, horizontal = job
        made = []
        for tiles, size, kind, matrix, paste in scenes:
            kept = [(self._keep(image), x, y) for image, x, y in tiles]
            paste = None if paste is None else self._keep(paste)
            made.append((kept, size, kind, matrix, paste))
        hsv = None if hsv is None else self._keep(hsv)
        return made, ratio, hsv, vertical, horizontal

    def _address(self, place: tuple[int, tuple[int, ...]] | None) -> Any:
        if place is None:
            return None
        at, shape = place
        count = int(np.prod(shape))
        return self._tuple(self.block[at : at + count].view(shape))

    def _addressed(self, job: tuple[Any, ...]) -> tuple[Any, ...]:
        scenes, ratio, hsv, vertical, horizontal = job
        made = tuple(
            (
                tuple((self._address(p), x, y) for p, x, y in tiles),
                size,
                kind,
                matrix,
                self._address(paste),
            )
            for tiles, size, kind, matrix, paste in scenes
        )
        return (made, ratio, self._address(hsv), vertical, horizontal)

    def render(self) -> torch.Tensor:
        """All images in one launch, on the current stream."""
        from yolov9mem import _cuda
        from yolov9mem.torch import devices

        index = self.device.index or 0
        size = _cuda.mosaic_scratch_bytes(len(self.jobs))
        self.scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        stream = devices.stream(self.device)
        _cuda.mosaic_batch(self.jobs, self._tuple(self.scratch), index, stream)
        return self.out
