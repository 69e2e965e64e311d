# SPDX-License-Identifier: MIT
"""Reading of YOLO data sets: data.yaml, image lists, text labels, label cache.

A label file has one object a line: class and centre x, y, width, height, or class and
a polygon x1 y1 x2 y2 ..., all in [0, 1] of the image. Images or labels that can't be
used are skipped, counted and named.
"""

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from tqdm import tqdm

# Those of the field. What can't be read of them is counted and named, not passed over.
IMAGE_SUFFIXES = {".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".pfm", ".png"}
IMAGE_SUFFIXES |= {".tif", ".tiff", ".webp"}
CACHE_VERSION = 2
SHOWN_PROBLEMS = 10
JPEG_END = b"\xff\xd9"
# A marker with a length: no stuffed or fill byte, no restart, start or TEM marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")


class DataError(Exception):
    """A data set that can't be trained on; the message says what and where."""


@dataclass
class Record:
    """One usable image: labels (n, 5) float32 class, xywh in [0, 1]."""

    image: str
    height: int
    width: int
    labels: np.ndarray
    segments: list[np.ndarray]  # n polygons (k, 2) float32 in [0, 1], or none


@dataclass
class Records:
    """Usable images of a split, and what was wrong with the others."""

    items: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unlabelled: int = 0


def read_data_yaml(path: str | Path) -> dict:
    """data.yaml with `train` and `val` as lists of paths, `names` a dict, `nc`.

    Relative paths count from the yaml's `path`, itself relative to the yaml's folder
    or to the working folder. `nc` is the number of names, whatever the yaml says.
    Raises DataError naming what is missing.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "data.yaml"
        hint = f" such as {inside}" if inside.is_file() else ", usually named data.yaml"
        raise DataError(
            f"data set description {str(path)!r} is a folder, must be a YAML file{hint}"
        )
    if not path.is_file():
        raise DataError(f"data set description {str(path)!r} does not exist")
    try:
        data = yaml.safe_load(path.read_text(errors="replace"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} must be a mapping with train, val and names")
    for key in ("train", "val", "names"):
        if not data.get(key):
            raise DataError(f"{path} has no {key!r} entry")
    names = data["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict):
        raise DataError(f"{path}: names is {names!r}, must be a list or a mapping")
    if set(names) != set(range(len(names))):
        raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1}")
    if data.get("nc") not in (None, len(names), str(len(names))):
        # As in the field: a class that has no name is found in the label files.
        print(f"WARNING {path}: nc is {data['nc']!r}, but names has {len(names)}")
    for key in ("train", "val"):
        entries = data[key] if isinstance(data[key], list) else [data[key]]
        data[key] = [_resolve(path, data, entry) for entry in entries]
    data.update(names={i: str(names[i]) for i in range(len(names))}, nc=len(names))
    return data


def _resolve(description: Path, data: dict, entry: str) -> str:
    root = data.get("path") or "."
    for key, value in (("path", root), ("train or val", entry)):
        if not isinstance(value, str):
            raise DataError(f"{description}: {key} is {value!r}, must be text")
    # Exports with ../train, relative to a folder below the yaml, work with `path` too.
    entries = dict.fromkeys((entry, entry.removeprefix("../")))
    bases = description.parent, Path.cwd()
    tried = [(base / root / e).resolve() for e in entries for base in bases]
    for candidate in tried:
        if candidate.exists():
            return str(candidate)
    places = " or ".join(dict.fromkeys(map(str, tried)))
    raise DataError(f"{description} names {entry!r}, not found: {places}")


def list_images(sources: list[str]) -> list[str]:
    """Sorted image paths of folders (searched deeply) and of text lists.

    What is hidden in a folder, its name beginning with a dot, is no image of the set.
    Lines of a list that begin with ./ count from its folder; others, as in the field,
    from the working folder, or from the list's where only that has the file.
    """
    files: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            files += _files_below(str(source))
        elif source.is_file():
            try:
                # Some editors begin a file with a mark, which is no part of a name.
                lines = source.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{source} is no list of images: {error}") from error
            files += [_listed(source, line.strip()) for line in lines if line.strip()]
        else:
            raise DataError(f"image folder or list {str(source)!r} does not exist")
    images = sorted({f for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES})
    if not images:
        raise DataError(f"no images found in {', '.join(sources)}")
    return images


def _listed(source: Path, line: str) -> str:
    beside, here = source.parent / line, Path.cwd() / line
    of_the_list = line.startswith("./") or (beside.exists() and not here.exists())
    return str(beside if of_the_list else here)


def _files_below(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Files in a folder and, through links too, in those within; none that is hidden.

    above: where the folders around it really are.
    """
    place = os.path.realpath(folder)
    if place in above:  # a link back: it would never end
        return
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:  # such as lost+found, which is root's
        return
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from _files_below(path, (*above, place))
        elif os.path.isfile(path):
            yield path


def label_path(image: str) -> Path:
    """Label file of an image: the last folder `images` becomes `labels`."""
    parts = list(Path(image).parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_image(path: str) -> np.ndarray:
    """BGR uint8 (H, W, 3). Raises ValueError for a file that is not a whole image."""
    data = Path(path).read_bytes()
    if data.startswith(b"\xff\xd8") and not _jpeg_ends(data):
        raise ValueError("truncated JPEG")
    if data.startswith(b"\x89PNG") and b"IEND" not in data:
        raise ValueError("truncated PNG")
    if data.startswith((b"PF", b"Pf")):  # OpenCV rounds what is mostly 0 to 1
        raise ValueError("a PFM has floats, no bytes: make it a PNG or the like")
    pixels = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(pixels, cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:  # such as more pixels than OpenCV allows
        raise ValueError(f"OpenCV can't read it: {error.err}") from error
    if image is None:
        raise ValueError("not an image that OpenCV can read")
    return image


def _jpeg_ends(data: bytes) -> bool:
    """Has the picture an end marker? Previews before it and trailers have their own."""
    if data.endswith(JPEG_END):
        return True
    at = 2
    while found := JPEG_MARKER.search(data, at):
        if found[0] == JPEG_END:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def parse_labels(text: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels (n, 5) and polygons of a label file; doubles are removed.

    Polygons come for all objects when one object has one: boxes stay what they are and
    get rectangles, where the official code takes their four numbers for two points.
    Raises ValueError naming the line and the rule.
    """
    labels, polygons, any_polygon = [], [], False
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            with np.errstate(over="ignore"):  # 1e99 is found not to be finite below
                row = np.array(words, dtype=np.float32)
        except ValueError:
            raise ValueError(f"line {number}: not numbers: {line[:60]!r}") from None
        _check_row(row, number)
        if len(row) == 5:
            box, polygon = row[1:], _rectangle(row[1:])
        else:
            any_polygon, polygon = True, row[1:].reshape(-1, 2)
            low, high = polygon.min(0), polygon.max(0)
            box = np.concatenate(((low + high) / 2, high - low))
        labels.append([row[0], *box])
        polygons.append(polygon)
    if not labels:
        return np.zeros((0, 5), dtype=np.float32), []
    table = np.array(labels, dtype=np.float32)
    _, first = np.unique(table, axis=0, return_index=True)
    if len(first) < len(table):
        table, polygons = table[first], [polygons[i] for i in first]
    return table, polygons if any_polygon else []


def _check_row(row: np.ndarray, number: int) -> None:
    if len(row) != 5 and (len(row) < 7 or len(row) % 2 == 0):
        raise ValueError(
            f"line {number}: {len(row)} columns; a box has 5, a polygon 7+"
        )
    if not np.isfinite(row).all():
        raise ValueError(f"line {number}: not all numbers are finite")
    if row[0] < 0 or row[0] != int(row[0]):
        raise ValueError(f"line {number}: class {row[0]} is not a whole number >= 0")
    if row[1:].min() < 0 or row[1:].max() > 1:
        raise ValueError(f"line {number}: coordinates must be in [0, 1]")


def _rectangle(box: np.ndarray) -> np.ndarray:
    x, y, w, h = box
    x1, x2, y1, y2 = x - w / 2, x + w / 2, y - h / 2, y + h / 2
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float32)
    return corners.clip(0, 1)


def _read_one(image: str) -> tuple[Record | None, str, bool]:
    """(record or None, problem or "", has a label file)."""
    try:
        height, width = read_image(image).shape[:2]
        if min(height, width) < 10:
            raise ValueError(f"image of {width} x {height} pixels is below 10")
        path = label_path(image)
        found = path.is_file()
        labels, segments = parse_labels(path.read_text() if found else "")
        return Record(image, height, width, labels, segments), "", found
    except (OSError, ValueError) as error:
        return None, f"{image}: {error}", True


def read_records(
    images: list[str], nc: int | None, title: str, quiet: bool = False
) -> Records:
    """Reads and checks all images and labels, from the label cache where it is valid.

    nc: classes of the data set; None: any, as all are to be one (--single-cls).
    Raises DataError for a class number out of range.
    """
    cache = label_path(images[0]).parent.with_suffix(".cache.npz")
    key = _fingerprint(images)
    records = _load_cache(cache, key)
    if records is None:
        records = Records()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            scan = tqdm(
                pool.map(_read_one, images),
                desc=f"{title}: reading labels",
                total=len(images),
                disable=quiet,
            )
            for record, problem, labelled in scan:
                if record is None:
                    records.problems.append(problem)
                else:
                    records.items.append(record)
                    records.unlabelled += not labelled
        _save_cache(cache, key, records)
    for record in records.items:
        if nc and len(record.labels) and record.labels[:, 0].max() >= nc:
            raise DataError(
                f"{label_path(record.image)}: class {int(record.labels[:, 0].max())}, "
                f"but the data set has {nc} classes (0 to {nc - 1})"
            )
    return records


def report_problems(records: Records, title: str) -> None:
    """Prints the counted warning about skipped files, the first few by name."""
    total = len(records.items) + len(records.problems)
    print(f"{title}: {len(records.items)} images, {records.unlabelled} without labels")
    if records.problems:
        print(f"WARNING {title}: skipped {len(records.problems)} of {total} images:")
        for problem in records.problems[:SHOWN_PROBLEMS]:
            print(f"  {problem.encode(errors='replace').decode()}")
        if len(records.problems) > SHOWN_PROBLEMS:
            print(f"  ... and {len(records.problems) - SHOWN_PROBLEMS} more")


def _fingerprint(images: list[str]) -> str:
    """Changes when a path, a size or a modification time changes."""
    digest = hashlib.sha256(str(CACHE_VERSION).encode())
    for path in [*images, *map(label_path, images)]:
        try:
            stat = os.stat(path)
            found = f"{stat.st_size}|{stat.st_mtime_ns}"
        except OSError:
            found = "missing"
        digest.update(os.fsencode(path) + f"|{found}\n".encode())
    return digest.hexdigest()


def _save_cache(path: Path, key: str, records: Records) -> None:
    """Flat arrays, no pickles. A folder that can't be written has no cache."""
    items = records.items
    polygons = [s for r in items for s in r.segments]
    try:
        np.savez_compressed(
            path,
            key=np.array(key),
            unlabelled=np.array(records.unlabelled),
            problems=np.array(records.problems, dtype=np.str_),
            images=np.array([r.image for r in items], dtype=np.str_),
            sizes=np.array([[r.height, r.width] for r in items], dtype=np.int64),
            labels=np.concatenate([r.labels for r in items] or [np.zeros((0, 5))]),
            counts=np.array([len(r.labels) for r in items], dtype=np.int64),
            segmented=np.array([len(r.segments) for r in items], dtype=np.int64),
            points=np.concatenate(polygons) if polygons else np.zeros((0, 2)),
            lengths=np.array([len(s) for s in polygons], dtype=np.int64),
        )
    except OSError:
        path.unlink(missing_ok=True) if path.parent.is_dir() else None


def _load_cache(path: Path, key: str) -> Records | None:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:
            if str(saved["key"]) != key:
                return None
            c = {name: saved[name] for name in saved.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # a missing or damaged cache is rebuilt
    points = np.split(c["points"].astype(np.float32), np.cumsum(c["lengths"])[:-1])
    points = points if len(c["lengths"]) else []
    labels = np.split(c["labels"].astype(np.float32), np.cumsum(c["counts"])[:-1])
    result = Records(problems=c["problems"].tolist(), unlabelled=int(c["unlabelled"]))
    at = 0
    for i, image in enumerate(c["images"].tolist()):
        height, width = c["sizes"][i].tolist()
        n = int(c["segmented"][i])
        result.items.append(
            Record(image, height, width, labels[i], points[at : at + n])
        )
        at += n
    return result
