# SPDX-License-Identifier: MIT
"""The example's optimizer, validation, checkpoints and whole short runs."""

import csv
import errno
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from example_sets import arguments, small_set  # noqa: F401

from yolov9 import checkpoints, options
from yolov9.ema import ModelEMA
from yolov9.main import main
from yolov9.memory import held_by_autograd
from yolov9.model import DetectionModel
from yolov9.nms import detections, suppress
from yolov9.optim import StockStep, Warmup, parameter_groups, schedule
from yolov9.val import _Collector, evaluate

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "train_dual.py"
HYP = {
    "warmup_epochs": 3.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1,
    "momentum": 0.937,
}


def test_groups_are_biases_weights_norms() -> None:
    with torch.device("meta"):
        model = DetectionModel("yolov9-c", 80)
    groups = parameter_groups(model, 0.01)
    # facts of the released yolov9-c: 253 biases, 255 weights, 238 norm weights.
    assert [len(g["params"]) for g in groups] == [253, 255, 238]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.01, 0.0]


def test_schedules() -> None:
    assert schedule("linear", 0.1, 10)(5) == pytest.approx(0.55)
    assert schedule("cos", 0.01, 8)(4) == pytest.approx(0.505)
    assert schedule("flat-cos", 0.1, 10)(5) == 1.0
    assert schedule("flat-cos", 0.1, 10)(10) == pytest.approx(0.1)
    assert schedule("fixed", 0.1, 10)(7) == 1.0


def test_warmup_ramps_and_explicit_accumulate() -> None:
    model = torch.nn.Linear(2, 2)
    groups = [{"params": [model.bias]}, {"params": [model.weight]}]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.937)
    for group in sgd.param_groups:
        group["initial_lr"] = 0.01
    warmup = Warmup(HYP, batches=50, batch_size=8, accumulate=None)
    assert (warmup.iterations, warmup.accumulate) == (150, 8)
    seen = []
    for iteration in (0, 75, 150, 151):
        warmup.apply(sgd, iteration, 1.0)
        lr = [g["lr"] for g in sgd.param_groups]
        seen.append((warmup.accumulate, *lr, sgd.param_groups[0]["momentum"]))
    expected = [(1, 0.1, 0, 0.8), (4, 0.055, 0.005, 0.8685), (8, 0.01, 0.01, 0.937)]
    np.testing.assert_allclose(seen, [*expected, expected[-1]])
    fixed = Warmup(HYP, batches=5, batch_size=8, accumulate=3)
    fixed.apply(sgd, 1, 1.0)
    assert fixed.accumulate == 3
    assert fixed.iterations == 100


def test_stock_step_sums_micro_batches_and_averages() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    ema = ModelEMA(model)
    step = StockStep(model, sgd, torch.amp.GradScaler("cpu", enabled=False), ema)
    inputs = torch.rand(2, 1, 3)
    done = []
    for x in inputs:
        model(x).sum().backward()
        done.append(step(2))
    assert done == [False, True]
    torch.testing.assert_close(model.weight, start - 0.5 * inputs.sum(0))
    d = 0.9999 * (1 - math.exp(-1 / 2000))
    torch.testing.assert_close(ema.ema.weight, d * start + (1 - d) * model.weight)
    assert ema.updates == 1


def test_suppression_against_loops() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (80, 2))
    boxes = np.concatenate((low, low + rng.uniform(5, 30, (80, 2))), 1)
    scores = rng.permutation(80) / 80
    kept: list[int] = []
    for i in np.argsort(-scores):
        overlap = 0.0
        for j in kept:
            w, h = (
                np.minimum(boxes[i], boxes[j])[2:] - np.maximum(boxes[i], boxes[j])[:2]
            )
            inter = max(w, 0) * max(h, 0)
            area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            overlap = max(overlap, inter / (sum(area) - inter))
        if overlap <= 0.4:
            kept.append(i)
    assert suppress(boxes, scores, 0.4, 300).tolist() == kept
    assert suppress(boxes, scores, 0.4, 5).tolist() == kept[:5]
    assert len(suppress(boxes[:0], scores[:0], 0.4, 5)) == 0


def test_detections_keep_classes_apart_and_drop_nan() -> None:
    cells = np.array([[10, 10, 4, 4, 0.9, 0.8], [11, 10, 4, 4, 0.5, 0.0]]).T
    found = detections(cells, threshold=0.5)
    assert found[:, 4:].tolist() == [[0.9, 0], [0.8, 1]]
    cells[0, 1] = np.nan
    cells[4, 0] = 0.0
    assert detections(cells)[:, 4:].tolist() == [[0.8, 1]]


def test_average_precision_of_known_cases() -> None:
    box = np.array([[0, 10, 10, 30, 30], [1, 50, 50, 80, 80]], np.float64)
    right = np.array([[10, 10, 30, 30, 0.9, 0], [50, 50, 80, 80, 0.8, 1]])
    perfect, half, none = _Collector(), _Collector(), _Collector()
    perfect.add(box, right)
    assert evaluate(perfect, 2).map == pytest.approx(1.0)
    half.add(box, right[:1])
    result = evaluate(half, 3)
    assert result.map50 == pytest.approx(0.5)
    assert result.per_class == {0: (pytest.approx(1.0),) * 2, 1: (0.0, 0.0)}
    none.add(box, np.zeros((0, 6)))
    assert evaluate(none, 2).map50 == 0.0
    # A box with IoU 0.62 counts at thresholds 0.50, 0.55 and 0.60.
    loose = _Collector()
    loose.add(box[:1], np.array([[10, 10, 30, 22.4, 0.9, 0]]))
    result = evaluate(loose, 1)
    assert (result.map50, result.map) == (pytest.approx(1.0), pytest.approx(0.3))


def content() -> dict:
    return {"model": {"w": torch.zeros(20000)}, "name": "gelan-t", "nc": 1, "epoch": 0}


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(content(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, limits[1]))
    try:
        with pytest.raises(checkpoints.CheckpointError, match="untouched"):
            checkpoints.save({**content(), "epoch": 1}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_failed_sync_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoints.CheckpointError, match=r"No space left.*none yet"):
        checkpoints.save(content(), tmp_path / "last.pt")
    assert list(tmp_path.iterdir()) == []


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(checkpoints.CheckpointError, match="does not exist"):
        checkpoints.load(tmp_path / "none.pt")
    (tmp_path / "x.pt").write_bytes(b"junk")
    with pytest.raises(checkpoints.CheckpointError, match="not a checkpoint"):
        checkpoints.load(tmp_path / "x.pt")
    with pytest.raises(checkpoints.CheckpointError, match="is a folder"):
        checkpoints.load(tmp_path)
    torch.save({"model": torch.nn.Conv2d(1, 1, 1)}, tmp_path / "z.pt")
    with pytest.raises(checkpoints.CheckpointError, match=r"pickled .*train_dual\.py$"):
        checkpoints.load(tmp_path / "z.pt")
    torch.save({"a": 1}, tmp_path / "y.pt")
    with pytest.raises(checkpoints.CheckpointError, match="no 'model'"):
        checkpoints.load(tmp_path / "y.pt")
    with pytest.raises(checkpoints.CheckpointError, match=r"no last\.pt"):
        checkpoints.newest(tmp_path)


def test_held_bytes_of_a_known_graph() -> None:
    layer = torch.nn.Linear(4, 8)
    x = torch.rand(3, 4)
    with held_by_autograd(layer) as held:
        y = layer(x).exp()
    assert held.total == x.nbytes + y.nbytes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg", "yolov9-x"], "unknown model"),
        (["--stock", "--ckpt"], "can't be combined"),
        (["--mosaic", "2"], "--mosaic is 2"),
        (["--accumulate", "0"], "--accumulate is 0"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--workers", "-1"], "--workers is -1: must be at least 0"),
        (["--freeze", "3", "-1"], "--freeze is -1: must be at least 0"),
        (["--seed", str(2**63)], "--seed is 9223372036854775808: must be from"),
        (["--seed", str(-(2**64))], "2**63 - 1"),
        (["--img", "16353"], "--imgsz is 16353: must be at most 16352"),
        (["--quad"], "--quad is not in this script; the official"),
        (["--evolve"], "--evolve is not in this script; the official"),
        (["--cache", "disk"], "--cache disk is not in this script; the official"),
        (["--cache", "disc"], "--cache is 'disc': must be ram"),
        (["--optimizer", "LION"], "-m yolov9mem train_dual.py"),
        (["--batch", "0"], "--batch-size is 0: must be at least 1"),
        (["--demo", "--seed", str(2**64)], "--seed is 18446744073709551616"),
        (["--demo", "--resume"], "--resume can't be combined with --demo"),
        (["--demo", "--resume", "last.pt"], "--resume can't be combined with --demo"),
        (["--hyp", "/no/hyp.short.yaml"], "--hyp '/no/hyp.short.yaml'"),
        (["--hyp", "none.yaml"], "--hyp 'none.yaml'"),
        (["--data", "none.yaml"], "'none.yaml' does not exist"),
        (["--weights", "none.pt"], "'none.pt' does not exist"),
        (["--resume", "none.pt"], "'none.pt' does not exist"),
        (["--cfg", ""], "--cfg or --weights"),
        (["--project", ".", "--name", "x" * 300], "--name: [Errno 36] File name too"),
    ],
)
def test_bad_options_are_messages(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["--cfg", "gelan-t", "--device", "cpu", "--data", "d.yaml"]
    Path("d.yaml").write_text("train: .\nval: .\nnames: [a]\n")
    assert main([*base, *arguments]) == 1
    assert words in capsys.readouterr().err


def test_field_command_lines_parse() -> None:
    line = (
        "--workers 8 --device 0 --batch 16 --accumulate 4 --data data.yaml --img 512 "
        "--cfg models/detect/yolov9-s.yaml --weights  --name yolov9-s-acc4 --hyp "
        "hyp.scratch-high.yaml --min-items 0 --epochs 20 --close-mosaic 15 --ckpt "
        "--noautoanchor --mosaic 0 --mixup 0"
    )
    opt = options.parser().parse_args(line.split(" "))
    assert (opt.ckpt, opt.accumulate, opt.imgsz, opt.weights) == ("conv", 4, 512, "")
    hyp = options.read_hyp(opt.hyp, opt)
    assert hyp["mosaic"] == 0.0
    assert hyp["mixup"] == 0.0


def test_run_resume_and_what_it_writes(small_set: str, monkeypatch) -> None:  # noqa: F811
    keep = []
    strip = checkpoints.strip
    monkeypatch.setattr(checkpoints, "strip", keep.append)
    base = arguments(small_set, "--accumulate", "1", "--name", "a", "--epochs", "2")
    assert main(base) == 0
    folder = Path("runs/train/a")
    saved = checkpoints.load(folder / "weights/last.pt")
    assert saved["epoch"] == 1
    assert saved["updates"] == 4
    assert saved["opt"]["epochs"] == 2
    assert saved["names"][2] == "triangle"
    settings = yaml.safe_load((folder / "opt.yaml").read_text())
    settings["epochs"] = 3
    (folder / "opt.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(checkpoints, "strip", strip)
    assert main(["--resume", "--device", "cpu"]) == 0
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["epoch"] for r in rows] == ["0", "1", "2"]
    assert all(math.isfinite(float(r["train/box_loss"])) for r in rows)
    final = checkpoints.load(folder / "weights/last.pt")
    assert final["epoch"] == -1
    assert final["optimizer"] is None
    (folder / "opt.yaml").write_text("")  # damaged: the checkpoint knows them, too
    assert main(["--resume", str(folder / "weights/last.pt")]) == 1
    # The weights start another training, by name of the model in the file.
    extra = ("--noval", "--freeze", "10", "--accumulate", "1")
    again = arguments(small_set, "--epochs", "2", *extra)
    again[again.index("--cfg") + 1] = ""
    best = folder / "weights/best.pt"
    assert main([*again, "--name", "b", "--weights", str(best)]) == 0
    start = checkpoints.load(best)["model"]
    trained = [
        checkpoints.load(f"runs/train/b/weights/{name}.pt")["model"]
        for name in ("last", "best")
    ]
    # Averages of a constant differ from it by rounding only.
    for key, frozen in (
        ("model.9.cv1.conv.weight", 1),
        ("model.12.cv1.conv.weight", 0),
    ):
        assert torch.equal(trained[0][key], trained[1][key])
        assert torch.allclose(trained[0][key], start[key], atol=1e-7) == frozen


def test_patience_of_zero_never_stops(small_set: str) -> None:  # noqa: F811
    extra = ("--epochs", "2", "--name", "p", "--patience", "0", "--noval", "--nosave")
    assert main(arguments(small_set, *extra)) == 0
    with open("runs/train/p/results.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_what_does_not_fit_is_a_message(small_set: str, monkeypatch, capsys) -> None:  # noqa: F811
    line = [a for a in arguments(small_set, "--epochs", "1") if a != "--stock"]
    assert main([*line, "--ckpt", "some"]) == 1
    assert "--ckpt: keep: is 'some'" in capsys.readouterr().err
    assert main([*line, "--ckpt", "1kB"]) == 1
    assert "--ckpt 1kB: keep: a budget of 1000 bytes" in capsys.readouterr().err
    assert main([*line, "--freeze", "99"]) == 1
    assert "--freeze 99: no layer is left" in capsys.readouterr().err
    assert main([*line, "--freeze", *map(str, range(40))]) == 1
    assert "--freeze 0 1 2 3" in capsys.readouterr().err
    assert main([*line, "--img", "32", "--freeze", "9" * 12]) == 1
    assert "--img 32 must be at least 64: 64 is taken" in capsys.readouterr().out
    assert main([*line, "--img", "65", "--freeze", "99"]) == 1
    assert "--img 65 must be a multiple of 32: 96 is" in capsys.readouterr().out
    assert main([*line, "--project", small_set]) == 1
    assert "Not a directory" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "first")
    assert main(line) == 1
    assert "RANK is 'first'" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "")
    other = {"model": {"a": torch.zeros(1)}, "name": "gelan-t", "nc": 3}
    torch.save(other, "other.pt")
    assert main([*line, "--weights", "other.pt"]) == 1
    assert "other.pt: none of the 1 tensors" in capsys.readouterr().err


def test_one_seed_one_training(small_set: str) -> None:  # noqa: F811
    states = []
    for name in ("a", "b"):
        extra = ("--epochs", "1", "--name", name, "--seed", "3", "--nosave")
        assert main(arguments(small_set, *extra)) == 0
        states.append(checkpoints.load(f"runs/train/{name}/weights/last.pt")["model"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_a_loss_that_is_not_finite_stops_with_a_message(
    small_set: str,  # noqa: F811
    tmp_path: Path,
    capsys,
) -> None:
    hyp = yaml.safe_load((options.HYP_FOLDER / "hyp.short.yaml").read_text())
    hyp["box"] = 1e39  # infinite in float32
    Path("bad.yaml").write_text(yaml.safe_dump(hyp))
    assert main([*arguments(small_set), "--hyp", "bad.yaml", "--epochs", "1"]) == 1
    assert "the loss is inf in epoch 1" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--stock", "--ckpt"])
def test_missing_package_is_a_message(way: str, small_set: str) -> None:  # noqa: F811
    line = [a for a in arguments(small_set, "--epochs", "1") if a != "--stock"]
    without = "import runpy, sys; sys.modules['yolov9mem'] = None; "
    without += "sys.path.insert(0, sys.argv.pop(1)); "
    without += "runpy.run_module('train_dual', run_name='__main__')"
    command = [sys.executable, "-c", without, str(SCRIPT.parent), *line, way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ERROR yolov9mem.")
    assert "can't be imported" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_agree(small_set: str, tmp_path: Path) -> None:  # noqa: F811
    line = arguments(small_set, "--epochs", "1", "--name", "ddp", "--accumulate", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(20000 + os.getpid() % 20000), str(SCRIPT), *line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # a hang is a failure
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert checkpoints.load(tmp_path / "runs/train/ddp/weights/last.pt")["nc"] == 3
