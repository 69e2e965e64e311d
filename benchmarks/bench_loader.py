# SPDX-License-Identifier: MIT
"""A real DataLoader with two forked workers: the official chain and MosaicDataset.

Both get the same images, recipe and draws; whole epochs take turns, timed from the first
batch asked for to the last one delivered, by the wall clock. "in memory": tiles are read
and resized once, before the workers start. "JPEG files": every tile is read and decoded
each time it is shown, by the same OpenCV call in both.

Data: YOLOV9MEM_BENCH_DATA (a data.yaml), else photograph-like JPEG files made here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import timing
from benchmarks.bench_mosaic import make_data
from benchmarks.memory import resident_bytes_of
from benchmarks.models import make_importable
from benchmarks.official import Chain
from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic
from yolov9mem.torch.dataset import MosaicDataset, seed_worker

TITLE = "DataLoader with two forked workers, samples a second by the wall clock"
COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("samples_s", "samples a second, median", ".0f"),
    ("low_s", "lower quartile", ".0f"),
    ("high_s", "upper quartile", ".0f"),
    ("speedup", "times as fast", ".2f"),
    (
        "growth_mb",
        "workers' memory after the last epoch above that after two, MB",
        ".1f",
    ),
    ("epochs", "epochs", ""),
    *timing.TARGET_COLUMNS,
]
TARGETS = {"in memory": 1.8, "JPEG files": 1.25}
CHAIN = "official chain (OpenCV, NumPy)"
OURS = "yolov9mem MosaicDataset"
WORKERS = 2
BATCH = 16
HANGS_AFTER = 120  # seconds without a batch: the DataLoader raises
SETTLING_EPOCHS = 2


class ChainDataset(Dataset):
    """The chain's samples in MosaicDataset's format."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def __len__(self) -> int:
        return len(self._chain.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = self._chain.sample(index)
        numbered = torch.zeros((len(labels), 6))
        numbered[:, 1:] = torch.from_numpy(labels)
        return torch.from_numpy(image), numbered


class Tiles(Sequence):
    """Image files as tiles, decoded and resized each time, as load_image does."""

    def __init__(self, paths: list[str], size: int) -> None:
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        image = cv2.imread(self._paths[index])
        height, width = image.shape[:2]
        ratio = self._size / max(height, width)
        if ratio != 1:
            new = int(width * ratio), int(height * ratio)
            image = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
        return image


def made_files(folder: Path) -> tuple[list[str], list[np.ndarray]]:
    images, labels, _ = make_data(640, False, 96)
    rng = np.random.default_rng(1)
    paths = []
    for i, image in enumerate(images):
        grain = rng.normal(0, 4, image.shape)
        paths.append(str(folder / f"{i}.jpg"))
        cv2.imwrite(paths[-1], (image + grain).clip(0, 255).astype(np.uint8))
    return paths, labels


def _given_files(description: str) -> tuple[list[str], list[np.ndarray]]:
    make_importable("examples")
    from yolov9.labels import list_images, read_data_yaml, read_records

    data = read_data_yaml(description)
    records = read_records(list_images(data["train"]), data["nc"], "train", True)
    return [r.image for r in records.items], [r.labels for r in records.items]


def loader(dataset: Dataset) -> DataLoader:
    """Its workers are forked at the first epoch and stay."""
    return DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=MosaicDataset.collate_fn,
        worker_init_fn=_begin_worker,
        multiprocessing_context="fork",
        persistent_workers=True,
        timeout=HANGS_AFTER,
        generator=torch.Generator().manual_seed(0),
    )


def _begin_worker(worker: int) -> None:
    seed_worker(worker)
    cv2.setNumThreads(0)


def loaders(paths: list[str], labels: list, size: int) -> dict[str, dict[str, Any]]:
    """Case -> implementation -> DataLoader."""
    files = Tiles(paths, size)
    polygons: list = [[] for _ in labels]
    made = {}
    for case, images in (("in memory", list(files)), ("JPEG files", files)):
        chain = Chain(images, labels, polygons, size, dict(HYP_SCRATCH_HIGH))
        ours = Mosaic(images if case == "in memory" else paths, labels, image_size=size)
        made[case] = {
            CHAIN: loader(ChainDataset(chain)),
            OURS: loader(MosaicDataset(ours)),
        }
    return made


def epoch(batches: DataLoader) -> None:
    for images, _ in batches:
        assert images.dtype is torch.uint8


def _worker_bytes(batches: DataLoader) -> int:
    return sum(resident_bytes_of(w.pid) for w in batches._iterator._workers)


def _measure(
    case: str, pair: dict[str, DataLoader], count: int, epochs: int, wanted: float
) -> list[dict]:
    for batches in pair.values():
        for _ in range(SETTLING_EPOCHS):
            epoch(batches)
    before = {name: _worker_bytes(batches) for name, batches in pair.items()}
    timings = timing.compare(
        {name: timing.Case(lambda b=b: epoch(b)) for name, b in pair.items()},
        repetitions=epochs,
        warmup=0,
    )
    made = []
    for name, found in timings.items():
        low, high = found.quartiles
        speedup = 1 / timing.paired_ratio(found, timings[CHAIN])
        row = {
            "case": case,
            "implementation": name,
            "samples_s": count / found.median,
            "low_s": count / high,
            "high_s": count / low,
            "speedup": speedup,
            "growth_mb": (_worker_bytes(pair[name]) - before[name]) / 1e6,
            "epochs": epochs,
        }
        if name == OURS:
            row = timing.at_least(row, wanted, speedup)
        made.append(row)
    return made


def rows(quick: bool) -> list[dict]:
    """quick: 320 px."""
    size = 320 if quick else 640
    given = os.environ.get("YOLOV9MEM_BENCH_DATA")
    with tempfile.TemporaryDirectory() as folder:
        found = _given_files(given) if given else made_files(Path(folder))
        name = Path(given).resolve().parent.name if given else "made photographs"
        made = []
        for case, pair in loaders(*found, size).items():
            label = f"{name}, {size} px, {case}"
            made += _measure(
                label, pair, len(found[0]), 7 if quick else 9, TARGETS[case]
            )
    return made
