# SPDX-License-Identifier: MIT
"""A PyTorch Dataset around yolov9mem.augment.Mosaic, in YOLOv9's sample format."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from yolov9mem.augment import Mosaic

Sample = tuple[torch.Tensor, torch.Tensor]


class MosaicDataset(Dataset[Sample]):
    """Samples of a `Mosaic`: image (3, s, s) uint8 RGB, labels (n, 6) float32.

    The labels' first column is for the image's number in its batch, which
    `collate_fn` fills in; then class and normalised xywh.
    """

    def __init__(self, mosaic: Mosaic) -> None:
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

    def __getitem__(self, index: int) -> Sample:
        image, labels = self.augment.sample(index)
        numbered = torch.zeros((len(labels), 6))
        numbered[:, 1:] = torch.from_numpy(labels)
        return torch.from_numpy(image), numbered

    @staticmethod
    def collate_fn(samples: Sequence[Sample]) -> Sample:
        """Images (N, 3, s, s) uint8 and labels (m, 6) of a batch.

        In a DataLoader's worker the images are stacked in shared memory at once.
        """
        images, labels = zip(*samples, strict=True)
        for number, found in enumerate(labels):
            found[:, 0] = number
        return default_collate(list(images)), torch.cat(labels, 0)


def seed_worker(worker: int) -> None:
    """For DataLoader's worker_init_fn: `random` and NumPy follow torch's seed."""
    del worker
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)
