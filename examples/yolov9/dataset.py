# SPDX-License-Identifier: MIT
"""Training and validation samples, and the loaders over them."""

import os
import random
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from .augment import in_pixels, letterbox, normalised, training_sample
from .labels import DataError, Records, read_image

Sample = tuple[torch.Tensor, torch.Tensor, str, tuple]
LOADER_SEED = 6148914691236517205


class DetectionDataset(Dataset):
    """Images with their objects, augmented or only letterboxed.

    The fields (ims, labels, segments, indices, hyp, mosaic, mosaic_border, img_size,
    ...) are those of the field's data sets, which yolov9mem's mosaic reads too.
    `sample` makes the training sample: (dataset, index) -> (CHW uint8, labels).
    """

    def __init__(
        self,
        records: Records,
        img_size: int,
        hyp: dict,
        augment: bool,
        batch_size: int,
        rect: bool = False,
        single_cls: bool = False,
        min_items: int = 0,
        cache: bool = False,
        stride: int = 32,
        sample: Callable | None = None,
    ) -> None:
        items = [r for r in records.items if len(r.labels) >= min_items]
        if not records.items:
            raise DataError(_why_none(records))
        if not items:
            raise DataError(f"no image is left with {min_items} or more objects")
        if augment and not any(len(r.labels) for r in items):
            raise DataError("no image has an object: nothing to train on")
        if rect:
            # NumPy's own order of equal ratios: batches have the images of the field's.
            ratios = np.array([r.height / r.width for r in items])
            items = [items[i] for i in ratios.argsort()]
        self.img_size, self.hyp, self.augment, self.rect = img_size, hyp, augment, rect
        self.mosaic = augment and not rect
        self.mosaic_border = [-img_size // 2, -img_size // 2]
        self.albumentations = None
        self.im_files = [r.image for r in items]
        self.labels = [r.labels.copy() for r in items]
        self.segments = [list(r.segments) for r in items]
        self.shapes = np.array([[r.width, r.height] for r in items])
        self.n = len(items)
        self.indices = range(self.n)
        self.ims: list[np.ndarray | None] = [None] * self.n
        self.im_hw0: list = [None] * self.n
        self.cache = cache
        self.sample = sample or training_sample
        self._outline_boxes(records)
        if single_cls:
            for labels in self.labels:
                labels[:, 0] = 0
        self.batch = np.arange(self.n) // batch_size
        self.batch_shapes = self._batch_shapes(stride) if rect else None

    def _outline_boxes(self, records: Records) -> None:
        """One polygon an object everywhere as soon as one image has polygons."""
        if not any(r.segments for r in records.items):
            return
        for i, labels in enumerate(self.labels):
            if not self.segments[i]:
                boxes = in_pixels(labels, 1, 1, 0, 0)[:, 1:].clip(0, 1)
                corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
                self.segments[i] = list(corners)

    def _batch_shapes(self, stride: int) -> np.ndarray:
        """(H, W) of each batch of similar aspect, half a stride of padding added."""
        shapes = []
        for b in range(self.batch[-1] + 1):
            w, h = self.shapes[self.batch == b].T
            low, high = (h / w).min(), (h / w).max()
            shape = (high, 1.0) if high < 1 else (1.0, 1 / low) if low > 1 else (1, 1)
            shapes.append(shape)
        cells = np.array(shapes) * self.img_size / stride + (
            0.0 if self.augment else 0.5
        )
        return np.ceil(cells).astype(int) * stride

    def batch_shape(self, index: int) -> tuple[int, int]:
        if self.batch_shapes is None:
            return self.img_size, self.img_size
        # As NumPy's integers, which make the labels' arithmetic float64, as in the field.
        h, w = self.batch_shapes[self.batch[index]]
        return h, w

    def __len__(self) -> int:
        return self.n

    def load_image(self, i: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """(BGR image with its long side img_size, original (h, w), its (h, w))."""
        if self.ims[i] is not None:
            return self.ims[i], self.im_hw0[i], self.ims[i].shape[:2]
        try:
            image = read_image(self.im_files[i])
        except (OSError, ValueError) as error:
            raise DataError(f"{self.im_files[i]}: {error}") from error
        h0, w0 = image.shape[:2]
        ratio = self.img_size / max(h0, w0)
        if ratio != 1:
            area = not self.augment and ratio < 1
            how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
            size = (max(int(w0 * ratio), 1), max(int(h0 * ratio), 1))
            image = cv2.resize(image, size, interpolation=how)
        if self.cache:
            self.ims[i], self.im_hw0[i] = image, (h0, w0)
        return image, (h0, w0), image.shape[:2]

    def __getitem__(self, index: int) -> Sample:
        if self.augment:
            image, labels = self.sample(self, index)
            shapes = None
        else:
            image, labels, shapes = self._plain(self.indices[index])
        targets = torch.zeros(len(labels), 6)
        targets[:, 1:] = torch.from_numpy(labels)
        path = self.im_files[self.indices[index]]
        return torch.from_numpy(image), targets, path, shapes

    def _plain(self, index: int) -> tuple[np.ndarray, np.ndarray, tuple]:
        """Letterboxed image, its labels and ((h0, w0), ((ratios), (pads)))."""
        image, (h0, w0), (h, w) = self.load_image(index)
        image, ratio, pad = letterbox(image, self.batch_shape(index), enlarge=False)
        labels = in_pixels(self.labels[index], ratio * w, ratio * h, *pad)
        labels = normalised(labels, image.shape[1], image.shape[0])
        image = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))
        return image, labels, ((h0, w0), ((ratio * h / h0, ratio * w / w0), pad))

    def cache_images(self) -> int:
        """Decodes and keeps every image; the bytes kept."""
        self.cache = True
        return sum(self.load_image(i)[0].nbytes for i in range(self.n))

    def class_counts(self, nc: int) -> np.ndarray:
        classes = np.concatenate([x[:, 0] for x in self.labels]).astype(int)
        return np.bincount(classes, minlength=nc)

    def draw_weighted(self, class_weights: np.ndarray) -> None:
        """--image-weights: draws an epoch's images by the weight of their objects."""
        weights = [class_weights[x[:, 0].astype(int)].sum() + 1e-9 for x in self.labels]
        self.indices = random.choices(range(self.n), weights=weights, k=self.n)


def _why_none(records: Records) -> str:
    found = f"none of {len(records.problems)} images can be used"
    return "; the first: ".join([found, *records.problems[:1]])


def collate(batch: list[Sample]) -> tuple:
    """(N, 3, H, W) uint8, targets (n, 6) with the image number first, paths, shapes."""
    images, targets, paths, shapes = zip(*batch, strict=True)
    for i, t in enumerate(targets):
        t[:, 0] = i
    return torch.stack(images), torch.cat(targets), paths, list(shapes)


def seed_worker(_: int) -> None:
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)
    cv2.setNumThreads(0)


def make_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int,
    shuffle: bool,
    rank: int = -1,
    seed: int = 0,
) -> DataLoader:
    """Loader whose workers start anew each epoch, so that they see dataset.mosaic."""
    batch_size = min(batch_size, len(dataset))
    devices = max(torch.cuda.device_count(), 1)
    limit = (os.cpu_count() or 1) // devices
    workers = min(workers, limit, batch_size if batch_size > 1 else 0)
    sampler = DistributedSampler(dataset, shuffle=shuffle) if rank != -1 else None
    generator = torch.Generator()
    generator.manual_seed(LOADER_SEED + rank + seed)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate,
        worker_init_fn=seed_worker,
        generator=generator,
    )
