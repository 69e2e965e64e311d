# SPDX-License-Identifier: MIT
"""The example's reading of data sets, its augmentation and its loaders."""

import os
import random
import shutil
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from example_sets import write_image, write_set

from yolov9 import augment
from yolov9.dataset import DetectionDataset, collate, make_loader
from yolov9.labels import (
    DataError,
    Record,
    Records,
    list_images,
    parse_labels,
    read_data_yaml,
    read_records,
    report_problems,
)
from yolov9.options import REQUIRED_HYP
from yolov9.synthetic import make_shapes

PLAIN = dict.fromkeys(REQUIRED_HYP, 0.0)


def test_labels_of_boxes_and_polygons() -> None:
    labels, segments = parse_labels("1 0.5 0.5 0.2 0.4\n\n0 0.25 0.5 0.5 0.5\n")
    np.testing.assert_allclose(labels[:, 0], [1, 0])
    assert labels.dtype == np.float32
    assert segments == []
    labels, segments = parse_labels("2 0.1 0.2 0.5 0.2 0.3 0.8\n0 0.5 0.5 0.2 0.4\n")
    np.testing.assert_allclose(labels[0], [2, 0.3, 0.5, 0.4, 0.6], rtol=1e-6)
    assert [len(s) for s in segments] == [3, 4]
    np.testing.assert_allclose(segments[1][0], [0.4, 0.3], rtol=1e-6)
    assert len(parse_labels("0 .5 .5 .1 .1\n" * 3)[0]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 0.5 0.5 0.2", "line 1: 4 columns"),
        ("0 0.5 0.5 0.2 0.2 0.1", "line 1: 6 columns"),
        ("0 .5 .5 .1 .1\n0 0.5 0.5 1.2 0.2", "line 2: coordinates"),
        ("0 -0.5 0.5 0.2 0.2", "coordinates"),
        ("cat 0.5 0.5 0.2 0.2", "not numbers"),
        ("1.5 0.5 0.5 0.2 0.2", "whole number"),
        ("-1 0.5 0.5 0.2 0.2", "whole number"),
        ("0 nan 0.5 0.2 0.2", "line 1: not all numbers are finite"),
        ("1e99 0.5 0.5 0.2 0.2", "not all numbers are finite"),
    ],
)
def test_bad_labels_are_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_labels(text)


def test_corrupt_files_are_skipped_and_counted(tmp_path: Path, capsys) -> None:
    good = "0 0.5 0.5 0.2 0.2\n"
    write_set(tmp_path, {"a.jpg": good, "b.jpg": good, "c.png": good, "e.jpg": None})
    whole = (tmp_path / "images/a.jpg").read_bytes()
    (tmp_path / "images/b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images/d.png").write_bytes(b"no image")
    (tmp_path / "labels/c.txt").write_text("0 0.5\n")
    images = list_images([str(tmp_path / "images")])
    for _ in range(2):  # the second time from the cache
        records = read_records(images, 1, "train", quiet=True)
        assert [Path(r.image).name for r in records.items] == ["a.jpg", "e.jpg"]
        assert records.unlabelled == 1
        report_problems(records, "train")
        printed = capsys.readouterr().out
        assert "skipped 3 of 5 images" in printed
        assert "b.jpg: truncated JPEG" in printed
        assert "line 1: 2 columns" in printed


def test_an_image_too_large_to_decode_is_skipped(tmp_path: Path) -> None:
    images = write_set(tmp_path, {"a.png": None, "b.png": None})
    whole = bytearray(Path(images[1]).read_bytes())
    whole[16:24] = (10**5).to_bytes(4, "big") * 2  # width and height of its header
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    Path(images[1]).write_bytes(whole)
    records = read_records(images, 1, "train", quiet=True)
    assert [Path(r.image).name for r in records.items] == ["a.png"]
    assert "OpenCV can't read it" in records.problems[0]


def test_names_that_are_no_utf8(tmp_path: Path, capsys) -> None:
    write_set(tmp_path, {"a.png": "0 .5 .5 .1 .1\n"})
    folder = os.fsencode(tmp_path / "images")
    try:
        shutil.copy(tmp_path / "images/a.png", folder + b"/\xff.png")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    Path(os.fsdecode(folder + b"/\xfe.png")).write_bytes(b"no image")
    images = list_images([str(tmp_path / "images")])
    for _ in range(2):  # the second time from the cache
        records = read_records(images, 1, "train", quiet=True)
        assert [r.image for r in records.items] == [images[0], images[2]]
        report_problems(records, "train")
        assert "?.png: not an image" in capsys.readouterr().out


def test_cache_follows_changes_and_survives_damage(tmp_path: Path) -> None:
    polygon = "1 0.1 0.2 0.5 0.2 0.3 0.8\n"
    images = write_set(tmp_path, {"a.jpg": polygon, "b.jpg": "0 .5 .5 .1 .1\n"})
    first = read_records(images, 2, "train", quiet=True)
    cache = tmp_path / "labels.cache.npz"
    assert cache.is_file()
    again = read_records(images, 2, "train", quiet=True)
    for x, y in zip(first.items, again.items, strict=True):
        assert (x.image, x.height, x.width) == (y.image, y.height, y.width)
        assert np.array_equal(x.labels, y.labels)
        assert all(map(np.array_equal, x.segments, y.segments))
        assert len(x.segments) == len(y.segments)
    (tmp_path / "labels/b.txt").write_text("0 .5 .5 .1 .1\n1 .2 .2 .1 .1\n")
    assert len(read_records(images, 2, "train", quiet=True).items[1].labels) == 2
    cache.write_bytes(cache.read_bytes()[:100])
    assert len(read_records(images, 2, "train", quiet=True).items) == 2


def test_class_out_of_range_is_named(tmp_path: Path) -> None:
    images = write_set(tmp_path, {"a.jpg": "3 0.5 0.5 0.2 0.2\n"})
    with pytest.raises(DataError, match=r"a\.txt: class 3, but the data set has 3"):
        read_records(images, 3, "train", quiet=True)


def shapes(tmp_path: Path, **options: object) -> DetectionDataset:
    """Eight pictures of bright squares on black, as a training set."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        w, h = (96, 72) if i % 2 else (60, 96)
        picture = np.zeros((h, w, 3), np.uint8)
        x, y, side = rng.integers(10, 30, 3).tolist()
        cv2.rectangle(picture, (x, y), (x + side - 1, y + side - 1), (0, 0, 255), -1)
        cv2.imwrite(str(images / f"{i}.png"), picture)
        row = [(x + side / 2) / w, (y + side / 2) / h, side / w, side / h]
        (labels / f"{i}.txt").write_text("0 " + " ".join(map(str, row)))
    records = read_records(list_images([str(images)]), 1, "t", quiet=True)
    options = {"augment": True, "batch_size": 4, "hyp": PLAIN} | options
    return DetectionDataset(records, 64, **options)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_thin_image_keeps_a_pixel(tmp_path: Path, augmented: bool) -> None:
    images = write_set(tmp_path, {"a.png": "0 .5 .5 1 1\n"})
    write_image(Path(images[0]), 10, 2000)
    records = read_records(images, 1, "t", quiet=True)
    data = DetectionDataset(records, 64, PLAIN, augmented, 1)
    assert data.load_image(0)[0].shape == (64, 1, 3)
    assert data[0][0].shape == (3, 64, 64)


@pytest.mark.parametrize("kind", ["mosaic", "single", "flips"])
def test_labels_follow_the_pixels(tmp_path: Path, kind: str) -> None:
    hyp = PLAIN | {"translate": 0.1, "scale": 0.3}
    if kind == "mosaic":
        hyp["mosaic"] = 1.0
    if kind == "flips":
        hyp |= {"flipud": 1.0, "fliplr": 1.0}
    dataset = shapes(tmp_path, hyp=hyp)
    checked = 0
    for seed in range(16):
        random.seed(seed)
        np.random.seed(seed)
        image, targets, _, _ = dataset[seed % 8]
        red = ((image[0] > 200) & (image[1] < 60)).numpy().astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(red)
        found = [s[:4] for s in stats[1:count] if min(s[2:4]) > 5]
        assert image.shape == (3, 64, 64)
        for _, _, x, y, w, h in (targets.numpy() * [1, 1, 64, 64, 64, 64]).tolist():
            corners = [x - w / 2, y - h / 2, w, h]
            if min(w, h) > 8:
                gaps = [np.abs(np.array(corners) - f).max() for f in found]
                assert min(gaps) < 2.5
                checked += 1
    assert checked > 8


def test_one_seed_one_picture(tmp_path: Path) -> None:
    hyp = PLAIN | {
        "mosaic": 1.0,
        "mixup": 0.5,
        "hsv_h": 0.1,
        "hsv_s": 0.5,
        "scale": 0.5,
    }
    dataset = shapes(tmp_path, hyp=hyp)
    pictures = []
    for seed in (1, 1, 2):
        random.seed(seed)
        np.random.seed(seed)
        pictures.append(dataset[3][0].numpy())
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_copy_paste_mirrors_what_is_free() -> None:
    canvas = np.full((40, 60, 3), 114, np.uint8)
    canvas[5:15, 4:14] = (1, 2, 3)
    outline = np.array([[4, 5], [13, 5], [13, 14], [4, 14]], np.float32)
    labels = np.array([[0, 4, 5, 14, 15]], np.float32)
    labels, segments = augment.copy_paste(canvas, labels, [outline], p=1.0)
    np.testing.assert_allclose(labels[1], [0, 46, 5, 56, 15])
    np.testing.assert_allclose(segments[1][0], [56, 5])
    assert (canvas[5:15, 46:56] == (1, 2, 3)).all()
    assert (canvas[:, 56:] == 114).all()
    assert (canvas[5:15, 4:14] == (1, 2, 3)).all()


def test_validation_letterbox_maps_back(tmp_path: Path) -> None:
    dataset = shapes(tmp_path, augment=False, rect=True)
    for i in range(len(dataset)):
        image, targets, _, ((h0, w0), (ratios, pads)) = dataset[i]
        height, width = image.shape[1:]
        assert height % 32 == width % 32 == 0
        x = (targets[0, 2].item() * width - pads[0]) / ratios[1] / w0
        y = (targets[0, 3].item() * height - pads[1]) / ratios[0] / h0
        np.testing.assert_allclose([x, y], dataset.labels[i][0, 1:3], atol=2e-3)


def test_rectangles_of_equal_ratio_are_in_numpy_s_order() -> None:
    sizes = [(60, 80), (80, 60), (64, 64), (30, 40)] * 50
    items = [
        Record(f"{i}.jpg", h, w, np.ones((1, 5), np.float32), [])
        for i, (h, w) in enumerate(sizes)
    ]
    for augmented in (False, True):
        data = DetectionDataset(Records(items), 64, PLAIN, augmented, 4, rect=True)
        h, w = np.array(sizes).T
        expected = [f"{i}.jpg" for i in np.argsort(h / w)]
        assert data.im_files == expected
        shapes = data.shapes
        assert (np.diff(shapes[:, 1] / shapes[:, 0]) >= 0).all()


def test_min_items_single_class_and_empty(tmp_path: Path) -> None:
    rows = "1 .5 .5 .2 .2\n", "0 .5 .5 .2 .2\n1 .2 .2 .1 .1\n"
    images = write_set(tmp_path, {"a.jpg": rows[0], "b.jpg": rows[1], "c.jpg": None})
    records = read_records(images, 2, "train", quiet=True)
    common = {"img_size": 64, "hyp": PLAIN, "augment": True, "batch_size": 2}
    assert DetectionDataset(records, min_items=2, **common).n == 1
    single = DetectionDataset(records, single_cls=True, **common)
    assert all((x[:, 0] == 0).all() for x in single.labels)
    assert records.items[0].labels[0, 0] == 1
    with pytest.raises(DataError, match="9 or more objects"):
        DetectionDataset(records, min_items=9, **common)
    records.items = [r for r in records.items if not len(r.labels)]
    with pytest.raises(DataError, match="nothing to train on"):
        DetectionDataset(records, **common)
    unreadable = Records(problems=["x.jpg: truncated JPEG", "y.jpg: truncated JPEG"])
    with pytest.raises(DataError, match=r"none of 2 images .*first: x\.jpg: truncated"):
        DetectionDataset(unreadable, **common)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    dataset = shapes(tmp_path)
    (tmp_path / "images/0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png"):
        dataset.load_image(0)


def test_loader_and_close_mosaic_reach_workers(tmp_path: Path) -> None:
    dataset = shapes(tmp_path, hyp=PLAIN | {"mosaic": 1.0})
    loader = make_loader(dataset, 3, 2, shuffle=True)
    sizes = [len(images) for images, *_ in loader]
    assert sizes == [3, 3, 2]
    dataset.mosaic = False
    images, targets, paths, _ = next(iter(loader))
    assert images.shape == (3, 3, 64, 64)
    assert len(paths) == 3
    assert targets[:, 0].tolist() == [0, 1, 2]  # one object an image without mosaic


def test_collate_numbers_the_images(tmp_path: Path) -> None:
    dataset = shapes(tmp_path)
    _, targets, _, _ = collate([dataset[0], dataset[1]])
    assert targets[:, 0].tolist() == [0, 1]


def test_drawn_shapes_are_a_data_set(tmp_path: Path) -> None:
    description = make_shapes(tmp_path / "s", train=3, val=2, size=64)
    data = read_data_yaml(description)
    records = read_records(list_images(data["train"]), data["nc"], "t", quiet=True)
    assert len(records.items) == 3
    assert not records.problems
    assert make_shapes(tmp_path / "s") == description


def test_two_processes_may_draw_the_same_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds all files whole while the first, which was slower, goes on."""
    folder, imwrite = tmp_path / "s", cv2.imwrite
    draw = partial(make_shapes, folder, train=2, val=1, size=64)
    written: list[Path] = []

    def write(path: str, picture: np.ndarray) -> bool:
        assert not Path(path).exists()  # somebody may be reading it
        written.append(Path(path))
        if len(written) == 2:
            draw()
        return imwrite(path, picture)

    monkeypatch.setattr(cv2, "imwrite", write)
    draw()
    assert len(written) == 6
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert files == {"data.yaml", "0000.png", "0001.png", "0000.txt", "0001.txt"}
    assert sorted(path.name for path in folder.iterdir()) == [
        *("data.yaml", "images", "labels")
    ]


def test_a_full_disk_is_an_error_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imwrite", lambda path, picture: False)
    with pytest.raises(DataError, match="can't be drawn"):
        make_shapes(tmp_path / "s", train=1, val=1, size=64)
    assert not (tmp_path / "s" / "data.yaml").exists()
