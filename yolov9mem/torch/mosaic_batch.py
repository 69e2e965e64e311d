# SPDX-License-Identifier: MIT
"""A batch of drawn, not yet rendered samples: uploaded once, rendered in one launch.

Workers draw, decode and cut the tiles; the training process uploads and renders. The
bytes are those of MosaicDataset, whatever renders them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolov9mem import _core
from yolov9mem._checks import check_sequence
from yolov9mem.draws import Recipe
from yolov9mem.scene import Scene, Tile

from . import devices
from .checks import check_device

_MARGIN = 2  # pixels: the second tap and what rounding may move
_ALIGNMENT = 16
Box = tuple[int, int, int, int]


def visible(scene: Scene, image: tuple[int, int]) -> Box:
    """Left, top, right and bottom of what an image (height, width) sees of the canvas.

    A little more than exactly that; the whole canvas where the warp folds over.
    """
    height, width = scene.canvas.size
    if scene.warp is None:
        return 0, 0, width, height
    forward = np.asarray(scene.warp.matrix, np.float64)
    x, y = image[1] - 1, image[0] - 1
    corners = np.array([[0, x, 0, x], [0, 0, y, y], [1, 1, 1, 1]], np.float64)
    try:
        seen = np.linalg.inv(forward) @ corners
    except np.linalg.LinAlgError:
        return 0, 0, width, height
    if scene.warp.perspective:
        if not (seen[2] > 1e-6).all():
            return 0, 0, width, height
        seen = seen / seen[2]
    if not np.isfinite(seen).all():
        return 0, 0, width, height
    left, top = seen[0].min(), seen[1].min()
    right, bottom = seen[0].max(), seen[1].max()
    if scene.paste is not None:  # a pasted pixel shows its mirror image
        left, right = min(left, width - 1 - right), max(right, width - 1 - left)
    return (
        max(math.floor(left) - _MARGIN, 0),
        max(math.floor(top) - _MARGIN, 0),
        min(math.ceil(right) + _MARGIN + 1, width),
        min(math.ceil(bottom) + _MARGIN + 1, height),
    )


def cut(tiles: Sequence[Tile], box: Box) -> list[Tile]:
    """The tiles' parts inside the box, in their order; views."""
    made = []
    for image, x, y in tiles:
        left, top = max(box[0] - x, 0), max(box[1] - y, 0)
        right = min(box[2] - x, image.shape[1])
        bottom = min(box[3] - y, image.shape[0])
        if right > left and bottom > top:
            made.append((image[top:bottom, left:right], x + left, y + top))
    return made


class _Packer:
    """Collects arrays for one buffer."""

    def __init__(self) -> None:
        self.arrays: list[tuple[int, np.ndarray[Any, Any]]] = []
        self.size = 0

    def add(self, array: np.ndarray[Any, Any] | None) -> tuple[Any, ...] | None:
        """(offset, shape) of the array in the buffer."""
        if array is None:
            return None
        place = self.size
        self.arrays.append((place, array))
        self.size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return place, array.shape

    def buffer(self) -> Tensor:
        made = torch.empty(self.size, dtype=torch.uint8, device="cpu")
        memory = made.numpy()
        for place, array in self.arrays:
            memory[place : place + array.nbytes].reshape(array.shape)[...] = array
        return made


class MosaicBatch:
    """Samples that `render` makes into (N, 3, height, width) uint8 images.

    Made by `MosaicBatch.of`; moved by `to`; a DataLoader's pin_memory pins it.
    """

    def __init__(
        self, pixels: Tensor, jobs: tuple[Any, ...], size: tuple[int, int]
    ) -> None:
        self.pixels, self.size = pixels, size
        self._jobs = jobs

    @classmethod
    def of(cls, recipes: Sequence[Recipe]) -> MosaicBatch:
        """Cuts the tiles to what is seen and packs them.

        Raises TypeError for what are no recipes, ValueError if there are no samples, or
        samples of different sizes.
        """
        check_sequence("recipes", recipes)
        for i, recipe in enumerate(recipes):
            if not isinstance(recipe, Recipe):
                kind = type(recipe).__name__
                raise TypeError(f"recipes: entry {i} is a {kind}, must be a Recipe")
        sizes = {recipe.picture.size for recipe in recipes}
        if len(sizes) != 1:
            raise ValueError(f"recipes: sizes are {sorted(sizes)}, must be one size")
        (size,) = sizes
        packer = _Packer()
        jobs = []
        for recipe in recipes:
            scenes = []
            for scene in recipe.scenes():
                _, canvas, kind, matrix, paste = scene.packed()
                tiles = cut(scene.canvas.tiles, visible(scene, size))
                placed = tuple((packer.add(image), x, y) for image, x, y in tiles)
                mask: Any = paste
                scenes.append((placed, canvas, kind, matrix, packer.add(mask)))
            flips = (recipe.flip_vertical, recipe.flip_horizontal)
            hsv = packer.add(recipe.hsv)
            jobs.append((tuple(scenes), recipe.picture.ratio, hsv, *flips))
        return cls(packer.buffer(), tuple(jobs), size)

    def __len__(self) -> int:
        return len(self._jobs)

    def pin_memory(self) -> MosaicBatch:
        """The same in pinned memory, so that `to` does not wait."""
        return MosaicBatch(self.pixels.pin_memory(), self._jobs, self.size)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> MosaicBatch:
        """The same on a device: one copy of all tiles.

        Raises TypeError or ValueError for what is no device.
        """
        # Tensor.to would take a dtype as well, and make other bytes of the pixels.
        place = check_device("device", device)
        moved = self.pixels.to(place, non_blocking=non_blocking)
        return MosaicBatch(moved, self._jobs, self.size)

    def render(self, out: Tensor | None = None) -> Tensor:
        """The images, (N, 3, height, width) uint8 RGB, where the batch is.

        On a GPU one launch on the current stream, which cannot be captured. ``out`` is
        written and returned if given. Raises ValueError for an ``out`` of another shape,
        type or device or in the batch's own memory or a batch that is neither on the CPU
        nor on a CUDA GPU, BackendError where the GPU fails.
        """
        shape = (len(self), 3, *self.size)
        device = self.pixels.device
        if devices.kind(device) not in ("cpu", "cuda"):
            raise ValueError(f"batch: is on {device}, must be on the CPU or a CUDA GPU")
        if out is None:
            out = torch.empty(shape, dtype=torch.uint8, device=device)
        if not isinstance(out, Tensor):
            raise TypeError(f"out: expected a Tensor, got {type(out).__name__}")
        if (
            out.shape != shape
            or out.dtype is not torch.uint8
            or out.device != device
            or not out.is_contiguous()
        ):
            raise ValueError(
                f"out: is {tuple(out.shape)} {out.dtype} on {out.device}, must be "
                f"contiguous {shape} torch.uint8 on {device}"
            )
        first, last = out.data_ptr(), out.data_ptr() + out.numel()
        held = self.pixels.data_ptr(), self.pixels.data_ptr() + self.pixels.numel()
        if first < held[1] and held[0] < last:  # one image's pixels, read for another
            raise ValueError(
                "out: shares memory with the batch's pixels, must have its own"
            )
        jobs = tuple(
            self._job(job, image) for job, image in zip(self._jobs, out, strict=True)
        )
        if devices.kind(device) == "cuda":
            self._launch(jobs, device)
        else:
            for job in jobs:
                _core.mosaic_render(*job)
        return out

    def _launch(self, jobs: tuple[Any, ...], device: torch.device) -> None:
        extension = devices.extension()
        size = extension.mosaic_scratch_bytes(len(jobs))
        with devices.current(device):
            scratch = torch.empty(size, dtype=torch.uint8, device=device)
            place = self._array(scratch.data_ptr(), (size,))
            extension.mosaic_batch(
                jobs, place, devices.index(device), devices.stream(device)
            )
            devices.keep_for_stream(self.pixels)  # `to` may have run on another stream

    def _job(self, job: tuple[Any, ...], image: Tensor) -> tuple[Any, ...]:
        scenes, ratio, hsv, *flips = job
        made = tuple(
            (
                tuple((self._view(place), x, y) for place, x, y in tiles),
                *(canvas, kind, matrix, self._view(paste)),
            )
            for tiles, canvas, kind, matrix, paste in scenes
        )
        target = self._array(image.data_ptr(), tuple(image.shape))
        return (target, made, ratio, self._view(hsv), *flips)

    def _view(self, place: tuple[int, tuple[int, ...]] | None) -> Any:
        if place is None:
            return None
        return self._array(self.pixels.data_ptr() + place[0], place[1])

    def _array(self, address: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
        strides = [1]
        for length in reversed(shape[1:]):
            strides.insert(0, strides[0] * length)
        number = devices.number(self.pixels)
        return (address, "uint8", shape, tuple(strides), number)
