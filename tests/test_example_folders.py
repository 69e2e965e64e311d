# SPDX-License-Identifier: MIT
"""The example's run folders: resumed from anywhere, full, or not to be written."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from example_sets import arguments, epochs, small_set  # noqa: F401

from yolov9 import checkpoints, files
from yolov9.main import main
from yolov9.results import ResultsFile
from yolov9.synthetic import make_shapes
from yolov9.val import Metrics


def interrupted(data: str, monkeypatch) -> Path:
    """The folder of a run of two epochs with three wanted; data "": drawn shapes."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "strip", lambda path: None)
        place = data and os.path.relpath(data)
        line = arguments(place, "--accumulate", "1", "--epochs", "2", "--name", "a")
        assert main([*line, "--noval"]) == 0
    folder = Path("runs/train/a").resolve()
    last = folder / "weights/last.pt"
    saved = checkpoints.load(last)
    saved["opt"]["epochs"] = 3
    checkpoints.save(saved, last)
    settings = yaml.safe_load((folder / "opt.yaml").read_text())
    (folder / "opt.yaml").write_text(yaml.safe_dump(settings | {"epochs": 3}))
    return folder


def test_resuming_from_within_the_folder(small_set: str, monkeypatch, capsys) -> None:  # noqa: F811
    folder = interrupted(small_set, monkeypatch)
    shutil.copy(folder / "weights/last.pt", folder / "copy.pt")
    for place, name in ((folder, "copy.pt"), (folder / "weights", "../copy.pt")):
        monkeypatch.chdir(place)
        assert main(["--resume", name, "--device", "cpu"]) == 1
        assert f"{folder} is not the folder 'weights'" in capsys.readouterr().err
    assert main(["--resume", "last.pt", "--device", "cpu"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    assert epochs(folder) == ["0", "1", "2"]
    assert not (folder / "weights/weights").exists()


def test_resuming_with_another_number_of_classes(
    small_set: str,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    last = interrupted(small_set, monkeypatch) / "weights/last.pt"
    before = last.read_bytes()
    content = yaml.safe_load(Path(small_set).read_text())
    content["names"][len(content["names"])] = "star"
    Path(small_set).write_text(yaml.safe_dump(content))
    assert main(["--resume", str(last), "--device", "cpu"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"ERROR --resume {last}: it was trained with 3 classes, ")
    assert "has 4 now" in said
    assert last.read_bytes() == before


def test_resuming_on_drawn_shapes_from_elsewhere(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    few = partial(make_shapes, train=4, val=2, size=64)
    monkeypatch.setattr("yolov9.main.make_shapes", few)
    monkeypatch.chdir(tmp_path)
    last = interrupted("", monkeypatch) / "weights/last.pt"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", str(last), "--device", "cpu"]) == 0, capsys.readouterr()
    assert epochs(last.parents[1]) == ["0", "1", "2"]


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["opt.yaml", "results.csv", "weights/last.pt"])
def test_folders_instead_of_files(name: str, small_set: str, capsys) -> None:  # noqa: F811
    (Path("runs/train/a") / name).mkdir(parents=True)
    line = arguments(small_set, "--epochs", "1", "--name", "a", "--exist-ok")
    assert main(line) == 1
    said = capsys.readouterr()
    assert "--project, --name: runs/train/a can't be written: [Errno 21]" in said.err
    assert name in said.err
    assert "epoch 1" not in said.out


def test_a_full_disk_at_the_start(small_set: str, monkeypatch, capsys) -> None:  # noqa: F811
    folder = interrupted(small_set, monkeypatch)
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for failing in ("opt.yaml", "results.csv"):

        def replace(source: Path, target: Path, failing: str = failing) -> None:
            if target.name == failing:
                full(0)
            os.rename(source, target)

        monkeypatch.setattr(files.os, "replace", replace)
        assert main(["--resume", str(folder / "weights/last.pt")]) == 1
        assert f"{folder} can't be written: [Errno 28]" in capsys.readouterr().err
        assert (folder / failing).read_bytes() == before[folder / failing]


def test_shapes_that_can_not_be_drawn(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("")
    assert main(["--cfg", "gelan-t", "--device", "cpu"]) == 1
    assert "shapes can't be drawn there" in capsys.readouterr().err


def test_rows_that_could_not_be_written_come_later(tmp_path: Path, monkeypatch) -> None:
    results = ResultsFile(tmp_path)

    def add(epoch: int) -> None:
        results.add(epoch, [1.0] * 3, Metrics(), [0.1] * 3, 1)

    add(0)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            add(1)
        assert epochs(tmp_path) == ["0"]
    add(2)
    assert epochs(tmp_path) == ["0", "1", "2"]
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]


def test_a_disk_that_fills_up_stops_no_training(
    small_set: str,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    """Results and pictures are warnings; a last.pt of before can be resumed."""
    opened, saved = files.replacing, checkpoints.save

    def replacing(path: Path) -> object:
        if path.suffix == ".png" or (path.suffix == ".csv" and path.exists()):
            full(0)
        return opened(path)

    def save(content: dict, path: Path) -> None:
        if content["epoch"] != 0:
            raise checkpoints.CheckpointError(f"{path} was not written (full)")
        saved(content, path)

    for module in ("results", "plots"):
        monkeypatch.setattr(f"yolov9.{module}.replacing", replacing)
    monkeypatch.setattr(checkpoints, "save", save)
    line = arguments(small_set, "--epochs", "2", "--name", "a", "--noval")
    assert main([a for a in line if a != "--noplots"]) == 1
    said = capsys.readouterr()
    assert said.out.count("results.csv was not written: [Errno 28]") == 2
    assert "results.png was not written" in said.out
    assert "peak memory" in said.out
    assert said.err.rstrip().endswith("ERROR the last checkpoint could not be written")
    assert checkpoints.load("runs/train/a/weights/last.pt")["epoch"] == 0
