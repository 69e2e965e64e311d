# SPDX-License-Identifier: MIT
"""Small data sets of images and labels for the trainer of examples/, and its results."""

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolov9.labels import list_images
from yolov9.synthetic import make_shapes


def write_image(path: Path, w: int = 40, h: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 255, (h, w, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), picture)


def write_set(root: Path, labels: dict[str, str | None]) -> list[str]:
    """Images named by `labels` with that label text (None: no label file)."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    for name, text in labels.items():
        write_image(root / "images" / name)
        if text is not None:
            (root / "labels" / name).with_suffix(".txt").write_text(text)
    return list_images([str(root / "images")])


@pytest.fixture
def small_set(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return str(make_shapes(tmp_path / "shapes", train=4, val=2, size=64))


def arguments(data: str, *extra: str) -> list[str]:
    fixed = (
        "--cfg gelan-t --stock --device cpu --img 64 --batch 2 --workers 0 --noplots"
    )
    return [*fixed.split(), "--hyp", "hyp.short.yaml", "--data", data, *extra]


def epochs(folder: Path) -> list[str]:
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    return [row["epoch"] for row in rows]
