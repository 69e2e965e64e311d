# SPDX-License-Identifier: MIT
"""A PyTorch Dataset around yolov9mem.augment.Mosaic, in YOLOv9's sample format."""

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from yolov9mem.augment import Mosaic
from yolov9mem.draws import Recipe

from .mosaic_batch import MosaicBatch

Sample = tuple[torch.Tensor, torch.Tensor]
S = TypeVar("S")
T = TypeVar("T")


class _Samples(Dataset[T]):
    """What the data sets around a `Mosaic` share. Raises TypeError for anything else."""

    def __init__(self, mosaic: Mosaic) -> None:
        if not isinstance(mosaic, Mosaic):
            raise TypeError(
                f"mosaic: is a {type(mosaic).__name__}, must be a yolov9mem Mosaic"
            )
        self.augment = mosaic

    def __len__(self) -> int:
        return len(self.augment)

    @property
    def mosaic(self) -> bool:
        """Set to False for the last epochs; workers must be started anew to see it."""
        return self.augment.mosaic

    @mosaic.setter
    def mosaic(self, on: bool) -> None:
        self.augment.mosaic = on


class MosaicDataset(_Samples[Sample]):
    """Samples of a `Mosaic`: image (3, s, s) uint8 RGB, labels (n, 6) float32.

    The labels' first column is for the image's number in its batch, which
    `collate_fn` fills in; then class and normalised xywh.
    """

    def __getitem__(self, index: int) -> Sample:
        image, labels = self.augment.sample(index)
        return torch.from_numpy(image), _numbered(labels)

    @staticmethod
    def collate_fn(samples: Sequence[Sample]) -> Sample:
        """Images (N, 3, s, s) uint8 and labels (m, 6) of a batch.

        In a DataLoader's worker the images are stacked in shared memory at once. Raises
        ValueError if there are no samples.
        """
        images, labels = _columns(samples)
        return default_collate(list(images)), _joined(labels)


class MosaicBatchDataset(_Samples[tuple[Recipe, torch.Tensor]]):
    """As MosaicDataset, but rendered by the batch, on a GPU where the batch is moved to.

        loader = DataLoader(data, batch_size, collate_fn=data.collate_fn, pin_memory=True)
        for batch, labels in loader:
            images = batch.to("cuda").render()  # (N, 3, s, s) uint8, one launch

    Workers draw, decode and cut the tiles to what the warp can see; the images have the
    bytes of MosaicDataset's.
    """

    def __getitem__(self, index: int) -> tuple[Recipe, torch.Tensor]:
        recipe = self.augment.recipe(index)
        return recipe, _numbered(recipe.labels())

    @staticmethod
    def collate_fn(
        samples: Sequence[tuple[Recipe, torch.Tensor]],
    ) -> tuple[MosaicBatch, torch.Tensor]:
        """The batch and its labels (m, 6). Raises ValueError if there are no samples."""
        recipes, labels = _columns(samples)
        return MosaicBatch.of(recipes), _joined(labels)


def _columns(
    samples: Sequence[tuple[S, torch.Tensor]],
) -> tuple[Sequence[S], Sequence[torch.Tensor]]:
    """The first and the second of each."""
    if len(samples) == 0:
        raise ValueError("samples: there are none, must be at least one")
    first, second = zip(*samples, strict=True)
    return first, second


def _numbered(labels: np.ndarray) -> torch.Tensor:
    made = torch.zeros((len(labels), 6), dtype=torch.float32, device="cpu")
    made[:, 1:] = torch.from_numpy(labels)
    return made


def _joined(labels: Sequence[torch.Tensor]) -> torch.Tensor:
    for number, found in enumerate(labels):
        found[:, 0] = number
    return torch.cat(list(labels), 0)


def seed_worker(worker: int) -> None:
    """For DataLoader's worker_init_fn: `random` and NumPy follow torch's seed."""
    del worker
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)
