# SPDX-License-Identifier: MIT
"""What the example's --cfg names: built-in networks, by name or by file."""

from pathlib import Path

import pytest
import yaml
from example_sets import arguments, small_set  # noqa: F401

from yolov9 import checkpoints
from yolov9.architectures import layer_table, model_names
from yolov9.cfg import Network, find_network
from yolov9.main import main

UPSAMPLING = ["None", 2, "nearest"]


def described(name: str) -> dict:
    """The network as files of the field have it, written by another hand."""
    rows: list = []
    for i, (source, block, args) in enumerate(layer_table(name)):
        lists = [list(a) if isinstance(a, tuple) else a for a in args]
        if block == "Upsample":
            block, lists = "nn.Upsample", UPSAMPLING
        elif block.endswith("Detect"):
            lists = ["nc"]
        elif block == "AConv" and lists == [184]:
            lists = [180]  # as released: the model's parser rounds it up
        before = source == i - 1 and i % 2
        rows.append([-1 if before else source, 1, block, lists])
    multiples = {"nc": 80, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": 3}
    return {**multiples, "backbone": rows[:9], "head": rows[9:]}


def written(content: object) -> str:
    Path("net.yaml").write_text(yaml.safe_dump(content))
    return "net.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", model_names())
def test_a_file_is_the_network_that_it_describes(name: str) -> None:
    network = Network(name, f"--cfg net.yaml: it is the built-in {name}")
    assert find_network(written(described(name))) == network


@pytest.mark.parametrize(
    "change",
    [
        {"width_multiple": 3.0},
        {"depth_multiple": 0.33},
        {"activation": "nn.ReLU()"},
        {"backbone": []},
        {"head": described("gelan-s")["head"]},
        {"head": [*described("gelan-t")["head"], [-1, 1, "Silence", []]]},
        {"backbone": [[-1, 2, *row[2:]] for row in described("gelan-t")["backbone"]]},
        {"backbone": [[-1, 1, 5, None]] * 9},
    ],
)
def test_another_network_is_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=r"another network .*-m yolov9mem train"):
        find_network(written(described("gelan-t") | change))


@pytest.mark.parametrize(
    ("head", "script"),
    [
        ("DDetect", "train"),
        ("Detect", "train"),
        ("DualDDetect", "train_dual"),
        ("TripleDDetect", "train_triple"),
    ],
)
def test_the_script_that_trains_another_network_is_named(
    head: str, script: str
) -> None:
    """The losses of the others fail with an index that is out of range."""
    content = described("gelan-t") | {"width_multiple": 3.0}
    content["head"][-1][2] = head
    with pytest.raises(ValueError, match=rf"yolov9mem {script}\.py --cfg net\.yaml$"):
        find_network(written(content))


@pytest.mark.parametrize("content", [5, {}, {"backbone": 3}, {"backbone": [[1]]}])
def test_no_network_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match=r"net\.yaml describes no network"):
        find_network(written(content))


def test_no_yaml_is_refused() -> None:
    Path("net.yaml").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"net\.yaml describes no network"):
        find_network("net.yaml")


def test_names_and_the_place_of_the_official_files() -> None:
    assert find_network("gelan-c") == Network("gelan-c", "")
    for cfg in ("yolov9-s.yaml", "models/detect/yolov9-s.yaml"):
        note = f"--cfg {cfg}: no such file; the built-in yolov9-s is used"
        assert find_network(cfg) == Network("yolov9-s", note)
    for cfg in (
        "/no/such/yolov9-t.yaml",
        "nets/yolov9-t",
        "../models/detect/gelan-c.yaml",
    ):
        with pytest.raises(ValueError, match="does not exist"):
            find_network(cfg)


def test_a_run_tells_which_network_it_trains(small_set: str, capsys) -> None:  # noqa: F811
    Path("yolov9-t.yaml").write_text(yaml.safe_dump(described("gelan-t")))
    line = arguments(small_set, "--epochs", "1", "--name", "a", "--noval")
    assert main([*line, "--cfg", "yolov9-t.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.count("--cfg yolov9-t.yaml: it is the built-in gelan-t") == 1
    assert checkpoints.load("runs/train/a/weights/last.pt")["name"] == "gelan-t"
    Path("yolov9-t.yaml").write_text("backbone: []\nhead: []\n")
    assert main([*line, "--cfg", "yolov9-t.yaml"]) == 1
    assert "ERROR --cfg: yolov9-t.yaml describes another" in capsys.readouterr().err
