# SPDX-License-Identifier: MIT
"""A look-alike of the official trainer, launched and stock: what must be equal is."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lookalike_runs import FOLDER, NO_EQUAL_BITS, Run, run
from torch import nn
from torch.utils.data import DataLoader

import yolov9mem.torch
from yolov9mem.launch.cli import Settings, UsageError

STOCK = (torch.optim.SGD, DataLoader.__init__, nn.Module.__call__, torch.save)
Runner = Callable[..., Run]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    """(name, arguments, settings, edits) -> the finished run."""

    def train(name: str, *args: object, **kwargs: object) -> Run:
        return run(monkeypatch, tmp_path / name, *args, **kwargs)  # type: ignore[arg-type]

    return train


def test_a_launched_run_trains_as_the_stock_one(trained: Runner) -> None:
    stock = trained("stock", "")
    ours = trained("ours", "", Settings())
    if not NO_EQUAL_BITS:
        assert ours["images"] == stock["images"]
        assert "swapped" in ours.start["data set"]
    assert ours["losses"] == pytest.approx(stock["losses"], rel=5e-4)
    assert ours["means"] == pytest.approx(stock["means"], rel=1e-4)
    assert ours["updates"] == stock["updates"] == 3
    assert ours.start["model"] == "swapped: Net; keep=conv"
    assert "Average in a third" in ours.start["optimizer"]
    assert ours.start["image batch"].startswith("4x3x64x64: uint8 49.2 kB, float32 197")
    now = (torch.optim.SGD, DataLoader.__init__, nn.Module.__call__, torch.save)
    assert now == STOCK


def test_without_ckpt_every_bit_is_stock(trained: Runner) -> None:
    """SGD, moving average and mosaic are the official bits.

    So is clipping while the norm is below the limit: PyTorch's own order of summing a
    norm is not specified, and depends on the processor.
    """
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    edits = (("max_norm=10.0", "max_norm=1e6"),)
    stock = trained("stock", "", None, edits)
    ours = trained("ours", "", Settings("off"), edits)
    for name in ("images", "losses", "gradients", "weights", "average", "updates"):
        assert ours[name] == stock[name], name
    assert ours.start["model, stock"] == "--ckpt off"


def test_accumulate_sums_as_if_the_script_said_so(trained: Runner) -> None:
    by_hand = (
        ("accumulate = max(round(nbs / batch_size), 1)", "accumulate = 3"),
        (
            "accumulate = max(1, np.interp(ni, xi, [1, nbs / batch_size]).round())",
            "accumulate = 3",
        ),
    )
    edited = trained("edited", "", Settings("min"), by_hand)
    ours = trained("ours", "", Settings("min", accumulate=3))
    assert [ni for ni, _ in ours["gradients"]] == [2, 5]
    for name in ("gradients", "weights", "weight_decay", "average"):
        assert ours[name] == edited[name], name
    assert ours["weight_decay"] == 0.0005 * 4 * 3 / 16
    assert ours.start["accumulate"] == "a step every 3 batches, from the first on"
    assert "the linear rule would give" in ours.start["learning rate"]


def test_validation_runs_in_slices_with_equal_results(trained: Runner) -> None:
    stock, ours = trained("stock", ""), trained("ours", "", Settings("off"))
    assert stock["sizes"] == [8, 4]
    assert ours["sizes"] == [2] * 6
    # A convolution of fewer images may sum in another order.
    assert ours["means"] == pytest.approx(stock["means"], rel=1e-7, abs=0)


def test_mosaic_and_mixup_reach_the_hyper_parameters(trained: Runner) -> None:
    ours = trained("ours", "--epochs 1", Settings(mosaic=0.0, mixup=0.0))
    assert ours["hyp"]["mosaic"] == 0.0 and ours["hyp"]["mixup"] == 0.0


def test_no_amp(trained: Runner) -> None:
    with_amp = trained("amp", "--epochs 1 --amp", Settings())
    without = trained("none", "--epochs 1 --amp", Settings(amp=False))
    assert with_amp["amp"] and not without["amp"]
    plain = trained("plain", "--epochs 1", Settings())
    assert without["losses"] == plain["losses"] != with_amp["losses"]


def test_another_optimizer_is_kept_and_named(trained: Runner) -> None:
    ours = trained("ours", "--epochs 1 --optimizer AdamW", Settings())
    assert ours.start["optimizer, stock"] == "AdamW: only SGD has a counterpart"
    kept = "Average: its update is part of our step of SGD"
    assert ours.start["average, stock"] == kept
    assert ours.start["model"].startswith("swapped")


def test_autobatch_measures_the_swapped_model(trained: Runner) -> None:
    arguments = "--epochs 1 --batch-size -1"
    assert trained("stock", arguments)["autobatch"] == ["Tensor"]
    assert trained("ours", arguments, Settings())["autobatch"] == ["FakeTensor"]


def test_training_again_and_again_keeps_nothing(trained: Runner) -> None:
    ours = trained("ours", "--epochs 1 --evolve 3", Settings())
    assert ours["live"] <= 1  # of two before
    assert ours["updates"] == 2


def test_checkpoints_open_without_yolov9mem(trained: Runner) -> None:
    ours = trained("ours", "--epochs 1", Settings())
    code = (
        "import sys; sys.modules['yolov9mem'] = None; import torch;"
        "saved = torch.load(sys.argv[1], weights_only=False);"
        "net = saved['ema'].float().eval();"
        "net(torch.zeros(1, 3, 64, 64));"
        "torch.optim.SGD(net.parameters()).load_state_dict({**saved['optimizer'],"
        "'param_groups': [{**saved['optimizer']['param_groups'][0],"
        "'params': list(range(len(list(net.parameters()))))}]})"
    )
    file = ours.folder / "weights" / "last.pt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={"PYTHONPATH": f"{FOLDER}:{FOLDER.parent}", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_resume_says_which_flags_the_run_had(trained: Runner) -> None:
    first = trained("first", "--epochs 1", Settings("min", accumulate=2))
    last = first.folder / "weights" / "last.pt"
    note = json.loads((first.folder / "yolov9mem.json").read_text())
    assert note == {"flags": ["--ckpt", "min", "--accumulate", "2"]}
    again = trained("again", f"--resume {last}", Settings())
    assert again.start["resumed"] == (
        "the run that is resumed had the flags: --ckpt min --accumulate 2; this one "
        "has: none"
    )
    stock = trained("stock", f"--resume {last}")
    assert again["losses"] == pytest.approx(stock["losses"], rel=5e-4)


def test_flags_that_reach_nothing_are_errors(trained: Runner) -> None:
    edits = (
        ("kind(opt.imgsz, opt.images, hyp, True)", "Other(opt, hyp)"),
        ("MADE = []", OTHER),
        ("hyp = yaml.safe_load(file)", "hyp = dict(lr0=0.01, weight_decay=0.0)"),
    )
    with pytest.raises(
        UsageError, match="--mosaic: train_lookalike.py has no data set"
    ):
        trained("ours", "--epochs 1", Settings(mosaic=0.0), edits)
    ours = trained("stock_data", "--epochs 1", Settings(), edits)
    assert ("data set, stock", "Other: not one of the official kind") in ours.lines


OTHER = """MADE = []
class Other(torch.utils.data.Dataset):
    def __init__(self, opt, hyp):
        self.mosaic = True
        self.size = opt.imgsz
    def __len__(self):
        return 8
    def __getitem__(self, index):
        image = torch.full((3, self.size, self.size), index, dtype=torch.uint8)
        return image, torch.zeros(1, 6), str(index), None
"""


def test_a_data_set_that_does_more_keeps_its_own_code(trained: Runner) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    edits = (
        ("kind(opt.imgsz, opt.images, hyp, True)", "More(64, 16, hyp, True)"),
        ("MADE = []", MORE),
    )
    stock = trained("stock", "--epochs 1", None, edits)
    ours = trained("ours", "--epochs 1", Settings(), edits)
    assert ours["images"] == stock["images"]
    text = "More swapped: its own augmentation code, its pictures drawn in one pass"
    assert ("data set", text) in ours.lines


def test_a_data_set_with_other_random_draws_stays_stock(trained: Runner) -> None:
    edits = (
        ("kind(opt.imgsz, opt.images, hyp, True)", "More(64, 16, hyp, True)"),
        ("MADE = []", MORE.replace("image // 2", "image // next(NUMBERS)")),
        ("\n\ndef train(", "\nNUMBERS = itertools.cycle((1, 2, 3))\n\n\ndef train("),
        ("import argparse", "import argparse\nimport itertools"),
    )
    ours = trained("ours", "--epochs 1", Settings(), edits)
    reason = "More: samples from the same random states have other bits"
    assert ("data set, stock", reason) in ours.lines


MORE = """MADE = []
class More(parts.Shapes):
    def __getitem__(self, index):
        image, *rest = super().__getitem__(index)
        return image // 2, *rest
"""


def test_the_report_is_what_was_shown(trained: Runner, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    ours = trained("ours", "", Settings(report=file))
    assert ours.launch is not None
    report = json.loads(file.read_text())
    assert [tuple(line) for line in report["start"]] == ours.launch.lines
    assert report["swapped"] == ["optimizer", "moving average", "model"]
    assert 0 < report["held_bytes"] < 0.5 * report["stock_held_bytes"]
    assert report["training_forwards"] == 8
    assert report["sliced_validation_forwards"] == 4
    assert math.isfinite(report["seconds_per_image"])


def test_one_line_in_a_script_does_the_same(
    trained: Runner, capfd: pytest.CaptureFixture[str]
) -> None:
    launched = trained("launched", "--epochs 1", Settings("min"))
    capfd.readouterr()
    patched = yolov9mem.torch.patch(ckpt="min")
    try:
        ours = trained("ours", "--epochs 1")
    finally:
        patched.stop()  # type: ignore[attr-defined]
    assert "yolov9mem: training starts" in capfd.readouterr().err
    assert ours["weights"] == launched["weights"]
    assert (torch.optim.SGD, DataLoader.__init__) == STOCK[:2]
    with pytest.raises(UsageError, match="must be one of conv, min, all or off"):
        yolov9mem.torch.patch(ckpt="most")


PATCHED = (
    ("MADE = []", "import yolov9mem.torch as ym\nMADE = []"),
    ("    ema = parts.Average", '    ym.patch("min")\n    ema = parts.Average'),
)


def test_one_line_that_runs_again_begins_anew(trained: Runner) -> None:
    """As a cell of a notebook does."""
    once = yolov9mem.torch.patch("off")
    again = yolov9mem.torch.patch("min")
    try:
        ours = trained("ours", "--epochs 1")
    finally:
        again.stop()  # type: ignore[attr-defined]
        once.stop()  # type: ignore[attr-defined]
    now = (torch.optim.SGD, DataLoader.__init__, nn.Module.__call__, torch.save)
    assert now == STOCK
    assert (
        ours["weights"] == trained("launched", "--epochs 1", Settings("min"))["weights"]
    )


def test_the_command_line_holds_where_the_script_has_that_line(trained: Runner) -> None:
    launched = trained("launched", "--epochs 1", Settings("all"))
    ours = trained("ours", "--epochs 1", Settings("all"), PATCHED)
    assert ours.start["patch()"] == "of the script: the command line's flags hold"
    assert "keep=all" in ours.start["model"]
    assert ours["weights"] == launched["weights"]


def test_what_a_script_swaps_by_itself_is_left_alone(trained: Runner) -> None:
    edits = (
        ("MADE = []", "import yolov9mem.torch as ym\nMADE = []"),
        ("torch.optim.SGD(", "ym.AccumulatingSGD("),
        ("ema = parts.Average", 'ym.checkpoint(model, "min")\n    ema = parts.Average'),
    )
    ours = trained("ours", "--epochs 1", Settings(), edits)
    assert ("optimizer", "the script's own AccumulatingSGD") in ours.lines
    assert ("model", "checkpointed by the script itself") in ours.lines
    assert ("model", "swapped: Net; keep=min") in ours.lines


def test_data_parallel_replicas_run_in_c(trained: Runner) -> None:
    """--device 0,1 of the official scripts, with two threads of this CPU as devices."""
    edits = (
        ("    net = model\n", "    net = parts.TwoReplicas(model)\n"),
        ("ema.update(net)", "ema.update(model)"),
    )
    stock = trained("stock", "--epochs 1", None, edits)
    ours = trained("ours", "--epochs 1", Settings("min"), edits)
    assert ours["losses"] == pytest.approx(stock["losses"], rel=5e-4)
    assert ours.start["model"] == "swapped: Net; keep=min"
    assert ours.start["held for backward"].endswith(
        "for a batch of 2 on each of 2 devices"
    )
    assert ours["sizes"] == [1] * 12  # half of what a replica trains on
    assert ours["means"] == pytest.approx(stock["means"], rel=1e-4)
