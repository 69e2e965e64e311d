# SPDX-License-Identifier: MIT
"""Which files the example takes for a data set: data.yaml, folders, lists, images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from example_sets import write_image, write_set
from PIL import Image

from yolov9.labels import (
    DataError,
    label_path,
    list_images,
    read_data_yaml,
    read_image,
    read_records,
)


def test_data_yaml(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"a.jpg": None})
    description = tmp_path / "data.yaml"

    def write(**content: object) -> None:
        description.write_text(yaml.safe_dump(content))

    write(path="set", train="images", val=["images"], names={0: "x", 1: "y"})
    data = read_data_yaml(description)
    assert data["nc"] == 2
    assert data["names"] == {0: "x", 1: "y"}
    assert data["train"] == data["val"] == [str(tmp_path / "set/images")]
    write(path="set", train="images", val="nowhere", names=["x"])
    with pytest.raises(DataError, match="'nowhere', not found"):
        read_data_yaml(description)
    write(path="set", train="images", names=["x"])
    with pytest.raises(DataError, match="no 'val'"):
        read_data_yaml(description)
    with pytest.raises(DataError, match="does not exist"):
        read_data_yaml(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="folder, must be a YAML file, usually named"):
        read_data_yaml(tmp_path / "set")
    write(**dict.fromkeys(("train", "val"), "set"), names=["x"])
    with pytest.raises(DataError, match=r"a folder, must be .* such as .*/data\.yaml"):
        read_data_yaml(tmp_path)
    good = {"train": "set", "val": "set", "names": ["x"]}
    for change, words in (
        ({"names": 5}, "names is 5"),
        ({"names": "cat"}, "names is 'cat'"),
        ({"names": {0: "a", "b": "c"}}, "names must be numbered 0 to 1"),
        ({"train": 5}, "train or val is 5"),
        ({"train": [["set"], "set"]}, r"train or val is \['set'\], must be text"),
        ({"val": {"a": "b"}}, "train or val is {'a': 'b'}"),
        ({"path": 7}, "path is 7"),
        ({"train": "data.yaml/x"}, "not found"),
    ):
        write(**good | change)
        with pytest.raises(DataError, match=words):
            read_data_yaml(description)


def test_the_names_are_counted_whatever_nc_says(tmp_path: Path, capsys) -> None:
    description = tmp_path / "data.yaml"
    common = {"train": ".", "val": ".", "names": ["x", "y"]}
    for nc, warned in (
        (2, False),
        ("2", False),
        (2.0, False),
        (None, False),
        (3, True),
    ):
        description.write_text(yaml.safe_dump({**common, "nc": nc}))
        assert read_data_yaml(description)["nc"] == 2
        assert ("nc is 3, but names has 2" in capsys.readouterr().out) == warned


def test_paths_of_exports_below_path(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"a.jpg": None})
    common = {"train": "../images", "val": ["../images"], "names": ["x"]}
    description = tmp_path / "set/data.yaml"
    for path in (str(tmp_path / "set"), "."):
        description.write_text(yaml.safe_dump({**common, "path": path}))
        data = read_data_yaml(description)
        assert data["train"] == data["val"] == [str(tmp_path / "set/images")]
    write_image(tmp_path / "images/b.jpg")  # what is there as it is written comes first
    assert read_data_yaml(description)["train"] == [str(tmp_path / "images")]
    description.write_text(yaml.safe_dump({**common, "train": "../none"}))
    with pytest.raises(DataError, match=r"'\.\./none', not found: .*set/none"):
        read_data_yaml(description)


def test_folders_without_what_is_hidden_and_with_links(tmp_path: Path) -> None:
    for name in ("a.jpg", ".a.jpg", ".checkpoints/a-checkpoint.jpg", "in/b.jpg"):
        write_image(tmp_path / "set/images" / name)
    write_image(tmp_path / "other disk/c.jpg")
    (tmp_path / "set/images/linked").symlink_to(tmp_path / "other disk")
    (tmp_path / "set/images/in/back").symlink_to(tmp_path / "set/images")
    (tmp_path / "other disk/back").symlink_to(tmp_path / "set")
    (tmp_path / "set/images/itself").symlink_to("itself")
    (tmp_path / "set/images/nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    images = list_images([str(tmp_path / "set/images")])
    names = "a.jpg", "in/b.jpg", "linked/c.jpg"
    assert images == [str(tmp_path / "set/images" / name) for name in names]
    hidden = tmp_path / ".cache"  # a folder that is named is searched, hidden or not
    write_image(hidden / "d.jpg")
    assert list_images([str(hidden)]) == [str(hidden / "d.jpg")]


@pytest.mark.parametrize("trailer", [b"\0" * 5000, b"\xff\xda\xff\xd8junk" * 500])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_images_with_a_trailer_are_whole(
    name: str, trailer: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    write_image(path, 300, 200)
    whole = path.read_bytes()
    picture = read_image(str(path))
    path.write_bytes(whole + trailer)
    assert np.array_equal(read_image(str(path)), picture)
    for kept in (len(whole) - 20, len(whole) // 2, 300):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="truncated"):
            read_image(str(path))


def test_the_end_of_a_preview_is_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_image(path, 300, 200)
    whole = path.read_bytes()
    preview = b"\xff\xe1" + (6).to_bytes(2, "big") + b"\xff\xd9\xff\xd9"
    path.write_bytes(whole[:2] + preview + whole[2:] + b"trailer")
    assert read_image(str(path)).shape == (200, 300, 3)
    path.write_bytes(whole[:2] + preview + whole[2 : len(whole) // 2] + b"trailer")
    with pytest.raises(ValueError, match="truncated JPEG"):
        read_image(str(path))


def test_kinds_of_images_of_the_field(tmp_path: Path) -> None:
    kinds = ["bmp", "dng", "jpeg", "jpg", "mpo", "pfm", "png", "tif", "tiff", "webp"]
    for kind in kinds:
        (tmp_path / f"{kind}.{kind.upper()}").write_bytes(b"no image")
    (tmp_path / "a.gif").write_bytes(b"no image")
    names = [Path(image).stem for image in list_images([str(tmp_path)])]
    assert names == kinds


def test_pictures_of_two_eyes_are_read_and_floats_are_named(tmp_path: Path) -> None:
    left = np.full((30, 40, 3), (200, 100, 50), np.uint8)
    right = Image.fromarray(255 - left)
    Image.fromarray(left).save(
        tmp_path / "a.mpo", save_all=True, append_images=[right], quality=95
    )
    grey, floats = left[..., 0] / np.float32(255), left / np.float32(255)
    for name, picture in (("b.pfm", floats), ("c.pfm", grey)):
        assert cv2.imwrite(str(tmp_path / name), picture)
    assert cv2.imwrite(str(tmp_path / "d.tif"), left[..., ::-1])
    (tmp_path / "d.tif").rename(tmp_path / "d.dng")  # a kind of TIFF
    images = list_images([str(tmp_path)])
    for image in (images[0], images[3]):
        assert np.abs(read_image(image)[..., ::-1] - left.astype(int)).max() < 4
    records = read_records(images, 1, "train", quiet=True)
    assert [Path(record.image).name for record in records.items] == ["a.mpo", "d.dng"]
    assert len(records.problems) == 2
    assert all("a PFM has floats, no bytes" in text for text in records.problems)


def test_lines_of_lists_count_from_the_working_folder(
    tmp_path: Path, monkeypatch
) -> None:
    for name in (
        "images/a.jpg",
        "images/b.jpg",
        "set/images/a.jpg",
        "set/images/c.jpg",
    ):
        write_image(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    expected = {
        "images/a.jpg": "images/a.jpg",
        "./images/a.jpg": "set/images/a.jpg",
        "images/b.jpg": "images/b.jpg",
        "images/c.jpg": "set/images/c.jpg",  # only there
        "images/none.jpg": "images/none.jpg",
        str(tmp_path / "set/images/c.jpg"): "set/images/c.jpg",
    }
    for line, name in expected.items():
        Path("set/list.txt").write_text(line + "\n")
        assert list_images(["set/list.txt"]) in ([name], [str(tmp_path / name)])


def test_image_lists(tmp_path: Path) -> None:
    write_set(tmp_path, {"a.jpg": None, "b.jpg": None})
    (tmp_path / "list.txt").write_text("./images/b.jpg\n\nimages/a.jpg\n")
    images = list_images([str(tmp_path / "list.txt")])
    assert [Path(i).name for i in images] == ["a.jpg", "b.jpg"]
    marked = b"\xef\xbb\xbf" + (tmp_path / "list.txt").read_bytes()
    (tmp_path / "marked.txt").write_bytes(marked)
    assert list_images([str(tmp_path / "marked.txt")]) == images
    assert label_path(images[0]) == tmp_path / "labels/a.txt"
    with pytest.raises(DataError, match="no images found"):
        list_images([str(tmp_path / "labels")])
    (tmp_path / "list.zip").write_bytes(b"PK\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list\.zip is no list of images"):
        list_images([str(tmp_path / "list.zip")])
    assert read_image(images[0]).shape == (30, 40, 3)
