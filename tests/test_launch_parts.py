# SPDX-License-Identifier: MIT
"""Pieces of the launcher alone: averages, imports, checkpoints, frameworks."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import mmap
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from yolov9mem.launch import averages, banner, codebases, files
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.measure import Measure
from yolov9mem.launch.patches import ImportWatch, Patches
from yolov9mem.launch.validation import Slices


class Average:
    """The official moving average."""

    def __init__(self, model: nn.Module) -> None:
        self.ema = model
        self.updates = 0
        self.decay = lambda x: 0.9999 * (1 - math.exp(-x / 2000))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        d = self.decay(self.updates)
        live = model.state_dict()
        for name, value in self.ema.state_dict().items():
            value *= d
            value += (1 - d) * live[name]


class Lerp(Average):
    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        d = self.decay(self.updates)
        for a, b in zip(self.ema.parameters(), model.parameters()):
            a.lerp_(b, 1 - d)


class Broken(Average):
    def update(self, model: nn.Module) -> None:
        raise KeyError("nothing like it")


def test_an_average_is_tried_before_it_is_swapped() -> None:
    state = torch.get_rng_state()
    average = Average(nn.Conv2d(1, 1, 1))
    before = average.ema.weight.clone()
    assert averages.why_not(average) is None
    assert average.updates == 0 and torch.equal(average.ema.weight, before)
    lerp = str(averages.why_not(Lerp(nn.Conv2d(1, 1, 1))))
    assert lerp.startswith("Lerp: its update is torch.lerp, which rounds otherwise")
    assert "KeyError" in str(averages.why_not(Broken(nn.Conv2d(1, 1, 1))))
    torch.set_rng_state(state)
    averages.why_not(average)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_average_without_a_model_is_named() -> None:
    class Callback:
        def __init__(self) -> None:
            self.ema_state_dict, self.decay = {"w": torch.zeros(1)}, 0.9999

        def on_train_batch_end(self) -> None:
            return

    assert averages.why_none() == "none found with .ema, .updates and .decay(x)"
    kept = Callback()
    assert averages.why_none().startswith("Callback: keeps a state_dict and not a")
    kept.on_train_batch_end()


def test_the_average_of_this_training_is_found() -> None:
    class Own(nn.Conv2d):
        pass

    class Other(nn.Conv2d):
        pass

    old, model, other = Own(1, 2, 1), Own(1, 2, 1), Other(1, 2, 1)
    kept = [Average(old), Average(other)]
    assert averages.find(model) is kept[0]
    fresh = Own(1, 2, 1)
    fresh.load_state_dict(model.state_dict())
    kept.append(Average(fresh))
    kept.append(Average(Own(1, 3, 1)))
    assert averages.find(model) is kept[2]
    assert averages.find(nn.Conv2d(1, 2, 1)) is None


def test_modules_are_seen_before_their_importer_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seen_part.py").write_text("def check_amp(model): return True\n")
    (tmp_path / "seen_user.py").write_text("from seen_part import check_amp\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    patches = Patches()

    def seen(module: types.ModuleType) -> None:
        for change in codebases.CHANGES:
            change(module, Settings(amp=False), patches)

    watch = ImportWatch(seen)
    watch.start()
    try:
        user: Any = importlib.import_module("seen_user")
    finally:
        watch.stop()
    assert user.check_amp(None) is False
    assert watch not in sys.meta_path
    part: Any = sys.modules["seen_part"]
    patches.undo()
    assert part.check_amp(None) is True
    assert part.__spec__.loader.get_source("seen_part").startswith("def check_amp")
    for name in ("seen_part", "seen_user"):
        del sys.modules[name]


def test_modules_of_an_archive_have_one_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "parts.zip", "w") as archive:
        for name in ("zipped_a", "zipped_b"):
            archive.writestr(f"{name}.py", f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "parts.zip"))
    names: list[str] = []
    watch = ImportWatch(lambda module: names.append(module.__name__))
    watch.start()
    names.clear()
    try:
        assert importlib.util.find_spec("zipped_a") is not None  # found, and not run
        for name in ("zipped_b", "zipped_a"):
            assert name == importlib.import_module(name).NAME
            del sys.modules[name]
    finally:
        watch.stop()
    assert names == ["zipped_b", "zipped_a"]


def test_frameworks_accumulate_in_their_trainers() -> None:
    patches = Patches()
    ultralytics: Any = types.ModuleType("ultralytics.engine.trainer")

    class BaseTrainer:
        def __init__(self) -> None:
            self.accumulate = max(round(64 / 4), 1)

    ultralytics.BaseTrainer = BaseTrainer
    lightning: Any = types.ModuleType("lightning.pytorch.trainer.trainer")

    class Trainer:
        def __init__(self, *, precision: str = "16-mixed") -> None:
            self.precision = precision
            self.accumulate_grad_batches = 1

    lightning.Trainer = Trainer
    settings = Settings(accumulate=3, amp=False)
    for module in (ultralytics, lightning):
        done = [change(module, settings, patches) for change in codebases.CHANGES]
        assert "accumulate" in done
    trainer = BaseTrainer()
    trainer.accumulate = 9
    assert trainer.accumulate == 3
    fitting = Trainer(precision="16-mixed")
    fitting.accumulate_grad_batches = 16  # as MultimediaTechLab's callback does
    assert (fitting.precision, fitting.accumulate_grad_batches) == ("32-true", 3)
    patches.undo()
    assert Trainer().precision == "16-mixed"
    assert BaseTrainer().accumulate == 16
    words = codebases.added_arguments("ultralytics", Settings(mosaic=0.0, mixup=0.5))
    assert words == ("mosaic=0", "mixup=0.5")
    assert codebases.added_arguments("pack", Settings(mosaic=0.0)) == ()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    noted: list[Path] = []

    def full(obj: Any, f: Any) -> None:
        Path(f).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    last = tmp_path / "weights" / "last.pt"
    last.parent.mkdir()
    value = {"model": None, "optimizer": None}
    files.whole(torch.save, noted.append)(value, last)
    good = last.read_bytes()
    stock = io.BytesIO()
    torch.save(value, stock)
    assert noted == [last]
    with pytest.raises(OSError, match="No space left"):
        files.whole(full, noted.append)(value, last)
    assert last.read_bytes() == good
    assert [path.name for path in last.parent.iterdir()] == ["last.pt"]
    buffer = io.BytesIO()
    files.whole(torch.save, noted.append)(value, buffer)
    assert buffer.getvalue() == stock.getvalue()
    torch.save(value, tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == good
    assert files.run_folder(last) == tmp_path


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path: Path) -> None:
    link, real = tmp_path / "link.pt", tmp_path / "real.pt"
    real.write_bytes(b"")
    link.symlink_to(real)
    files.whole(torch.save, lambda path: None)({"a": 1}, link)
    assert link.is_symlink()
    assert torch.load(real, weights_only=True) == {"a": 1}


def test_a_save_that_needs_no_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"model": None, "optimizer": None}
    save = files.whole(torch.save, lambda path: None)
    with pytest.raises(RuntimeError, match="Parent directory"):  # torch's own words
        save(value, tmp_path / "nowhere" / "last.pt")

    def refused(**options: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refused)
    save(value, tmp_path / "last.pt")  # a file that may be written in such a folder
    assert torch.load(tmp_path / "last.pt", weights_only=True) == value


def test_a_note_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / files.NOTE).mkdir()
    files.write_note(tmp_path / "last.pt", Settings())
    (tmp_path / files.NOTE).rmdir()
    (tmp_path / files.NOTE).write_bytes(b"\xff")
    files.write_note(tmp_path / "last.pt", Settings())
    assert (tmp_path / files.NOTE).read_text() == '{"flags": []}\n'


def new_pages(count: int) -> mmap.mmap:
    """Bytes of memory that the process did not have: malloc may hand out freed ones."""
    pages = mmap.mmap(-1, count)
    for offset in range(0, count, mmap.PAGESIZE):
        pages[offset] = 1
    return pages


def test_what_a_script_holds_is_not_what_validation_adds() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the memory of a process is read from /proc, which is not here")
    measure = Measure()
    measure.begin(torch.device("cpu"))
    measure.training(1)
    measure.evaluation()
    measure.evaluated()
    held = new_pages(100_000_000)  # as a best.pt that is loaded
    measure.evaluation()
    added = new_pages(40_000_000)
    measure.evaluated()
    held.close()
    added.close()
    assert measure.validation_peak is not None and measure.validation_growth is not None
    assert measure.validation_peak > 135e6
    assert 38e6 < measure.validation_growth < 60e6


def test_a_peak_on_cuda_belongs_to_the_phase_that_reached_it(monkeypatch) -> None:
    asked, highest = [], 900

    def max_memory_allocated(device: torch.device) -> int:
        asked.append(device)
        return highest

    def reset(device: torch.device) -> None:
        nonlocal highest
        asked.append(device)
        highest = 0

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", max_memory_allocated)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    measure = Measure()
    measure.begin(torch.device("cuda:1"))
    for at_training, at_validation in ((300, 300), (300, 500), (500, 600), (600, 600)):
        measure.training(1)
        highest = at_training
        measure.evaluation()
        highest = at_validation
        measure.evaluated()
    assert set(asked) == {torch.device("cuda:1")}
    assert measure.training_peak == 300  # not validation's 500
    assert measure.validation_peak == 600
    assert measure.other_peak is None
    assert banner.end_lines(measure, 0)[0] == ("measured peak", "300 B in training")


def test_results_that_cannot_be_joined_are_not_sliced() -> None:
    slices = Slices()
    slices.trained = 4
    images = torch.zeros(5, 3, 4, 4)

    def whole(images: torch.Tensor) -> Any:
        return {"a": images[:, 0], "n": [images.flatten(1), None, 3]}

    with torch.no_grad():
        assert slices.wanted(nn.Identity().eval(), (images,), {"augment": False})
        made = slices.run(whole, images)
    assert made["a"].shape == (5, 4, 4) and made["n"][1:] == [None, 3]
    assert slices.count == 1 and slices.refused is None
    assert slices.run(lambda x: x.sum(), images).item() == 0
    assert slices.refused == "a result of shape () for 2 images"
    assert not slices.wanted(nn.Identity().eval(), (images,), {})
    slices.refused = None
    with torch.no_grad():
        assert slices.wanted(nn.Identity().eval(), (images,), {"mask": None})
        assert not slices.wanted(nn.Identity().eval(), (images,), {"mask": images})


def test_results_that_slices_give_differently_are_those_of_the_whole() -> None:
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    results: list[Callable[[torch.Tensor], Any]] = [
        lambda x: (x, float(x.sum())),
        lambda x: [x] * len(x),
        lambda x: {"best": str(x.argmax().item()), "x": x},
        lambda x: x[:, :, : len(x)],
    ]
    for forward in results:
        slices = Slices()
        slices.trained = 4
        made = tree_flatten(slices.run(forward, images))
        wanted = tree_flatten(forward(images))
        assert made[1] == wanted[1]
        for found, whole in zip(made[0], wanted[0], strict=True):
            is_tensor = isinstance(whole, torch.Tensor)
            assert torch.equal(found, whole) if is_tensor else found == whole
        assert slices.refused == "results that slices give differently"


def test_sizes_and_tables() -> None:
    assert banner.size(512) == "512 B"
    assert banner.size(15_360_000) == "15.4 MB"
    assert banner.size(999_999) == "1 MB"  # not 1e+03 kB
    text = banner.table("the run ends", [("a", "1"), ("longer", "2")])
    assert text == "yolov9mem: the run ends\n  a       1\n  longer  2"
    name, text = banner.rate_line(0.01, 16, 2)
    assert name == "learning rate"
    assert "would give 0.005 for 16 x 2 images a step" in text
