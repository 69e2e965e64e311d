# SPDX-License-Identifier: MIT
"""A small detection set of drawn shapes, for trying the trainer without data."""

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import yaml

from .labels import DataError

NAMES = ("circle", "square", "triangle")


def make_shapes(folder: Path, train: int = 96, val: int = 32, size: int = 192) -> Path:
    """Writes images and YOLO labels below `folder` unless there; its data.yaml.

    Raises DataError where the folder can't be written.
    """
    description = folder / "data.yaml"
    if description.is_file():
        return description
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as drawn:
            _write_set(Path(drawn), train, val, size)
            _move(Path(drawn), folder, last=description.name)
    except OSError as error:
        raise DataError(f"{folder}: shapes can't be drawn there: {error}") from error
    return description


def _move(drawn: Path, folder: Path, last: str) -> None:
    """File by file, each whole at once, as another process may draw the same ones: all
    are there when the last one is."""
    files = [path.relative_to(drawn) for path in drawn.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: str(name) == last):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(drawn / name, folder / name)


def _write_set(folder: Path, train: int, val: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture, rows = _draw(rng, size)
            if not cv2.imwrite(str(images / f"{i:04}.png"), picture):
                raise OSError(f"{images}: an image could not be written")
            text = "".join(
                f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in rows
            )
            (labels / f"{i:04}.txt").write_text(text)
    content = {"path": ".", "train": "images/train", "val": "images/val"}
    content["names"] = dict(enumerate(NAMES))
    (folder / "data.yaml").write_text(yaml.safe_dump(content))


def _draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple]]:
    """One picture (size, size, 3) and its rows class, x, y, w, h in [0, 1]."""
    coarse = rng.integers(60, 196, (6, 6, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    boxes: list[np.ndarray] = []
    rows = []
    for _ in range(int(rng.integers(2, 6))):
        r = int(rng.integers(size // 12, size // 5))
        x, y = rng.integers(r, size - r, 2).tolist()
        box = np.array([x - r, y - r, x + r, y + r])
        if any((box[:2] < b[2:]).all() and (b[:2] < box[2:]).all() for b in boxes):
            continue
        boxes.append(box)
        kind = int(rng.integers(len(NAMES)))
        colour = np.zeros(3)
        colour[kind] = 255
        colour = (colour * 0.6 + rng.integers(0, 100, 3)).tolist()
        _shape(picture, kind, (x, y), r, colour)
        rows.append((kind, x / size, y / size, 2 * r / size, 2 * r / size))
    return picture, rows


def _shape(
    picture: np.ndarray, kind: int, at: tuple[int, int], r: int, colour: list[float]
) -> None:
    x, y = at
    if kind == 0:
        cv2.circle(picture, at, r, colour, cv2.FILLED, cv2.LINE_AA)
    elif kind == 1:
        cv2.rectangle(picture, (x - r, y - r), (x + r, y + r), colour, cv2.FILLED)
    else:
        corners = np.array([[x, y - r], [x - r, y + r], [x + r, y + r]])
        cv2.fillPoly(picture, [corners], colour, cv2.LINE_AA)
