# SPDX-License-Identifier: MIT
"""The example's hyper-parameters, flags that meet, resuming, and its messages."""

import os
import re
import shutil
import signal
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from example_sets import arguments, epochs, small_set  # noqa: F401

from yolov9 import checkpoints, demo, options
from yolov9.main import main
from yolov9.optim import make_optimizer
from yolov9.train import Trainer
from yolov9.val import Metrics


@pytest.mark.parametrize(("text", "words"), [("a: 1", "missing lr0"), ("a: [", "YAML")])
def test_bad_hyper_parameters(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "hyp.yaml").write_text(text)
    opt = options.parser().parse_args([])
    with pytest.raises(options.OptionError, match=words):
        options.read_hyp(str(tmp_path / "hyp.yaml"), opt)


def test_numbers_of_hyper_parameters(tmp_path: Path) -> None:
    hyp = yaml.safe_load((options.HYP_FOLDER / "hyp.short.yaml").read_text())
    opt = options.parser().parse_args([])
    text = yaml.safe_dump({k: v for k, v in hyp.items() if k != "lr0"})
    (tmp_path / "hyp.yaml").write_text(text + "lr0: 1e-2\n")  # text, to YAML
    assert options.read_hyp(str(tmp_path / "hyp.yaml"), opt)["lr0"] == 0.01
    for wrong in ("fast", "true", "[1]", ""):
        (tmp_path / "hyp.yaml").write_text(text + f"lr0: {wrong}\n")
        with pytest.raises(options.OptionError, match="lr0 is .* must be a number"):
            options.read_hyp(str(tmp_path / "hyp.yaml"), opt)


def test_ranges_of_hyper_parameters(tmp_path: Path) -> None:
    hyp = yaml.safe_load((options.HYP_FOLDER / "hyp.scratch-high.yaml").read_text())
    opt = options.parser().parse_args([])
    rules = {
        "must be finite": dict.fromkeys(("translate", "hsv_h", "lr0"), ".nan")
        | {
            "warmup_epochs": ".inf",
            "degrees": "-.inf",
            "warmup_min_iterations": ".inf",
        },
        "must be at least 0": dict.fromkeys(
            ("lr0", "lrf", "weight_decay", "warmup_epochs", "warmup_bias_lr", "box"),
            "-0.1",
        )
        | {"warmup_min_iterations": "-1"},
        "must be at least 0 and below 1": {"momentum": "1", "warmup_momentum": "-0.1"},
        "must be from 0 to 1": {"copy_paste": "1.5", "mosaic": "-1", "fliplr": "2"},
        "must be a number": {"warmup_min_iterations": "abc"},
    }
    for rule, values in rules.items():
        for key, value in values.items():
            others = {k: v for k, v in hyp.items() if k != key}
            text = yaml.safe_dump(others) + f"{key}: {value}\n"
            (tmp_path / "hyp.yaml").write_text(text)
            with pytest.raises(options.OptionError) as caught:
                options.read_hyp(str(tmp_path / "hyp.yaml"), opt)
            assert str(caught.value).endswith(rule)
            assert f"hyp.yaml: {key} is " in str(caught.value)
    edge = dict.fromkeys(("lr0", "momentum", "warmup_epochs", "copy_paste"), 0)
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump(hyp | edge))
    assert options.read_hyp(str(tmp_path / "hyp.yaml"), opt)["momentum"] == 0


@pytest.mark.parametrize("stock", [True, False])
def test_momentum_of_zero_is_plain_sgd(stock: bool) -> None:
    hyp = {"lr0": 0.5, "momentum": 0.0, "weight_decay": 0.0}
    model = torch.nn.Linear(2, 1, bias=False)
    expected = model.weight.detach() - 0.5
    optimizer = make_optimizer(model, "SGD", hyp, None, stock)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, expected)
    groups = make_optimizer(model, "SGD", hyp | {"momentum": 0.9}, None, stock)
    assert all(group["nesterov"] for group in groups.param_groups)


def test_resuming_with_damaged_files(
    small_set: str,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "strip", lambda path: None)  # as if interrupted
        line = arguments(small_set, "--accumulate", "1", "--epochs", "2", "--name", "a")
        assert main([*line, "--noval"]) == 0
    stopped, folder = Path("runs/train/a"), Path("runs/train/b")
    last = folder / "weights/last.pt"
    saved = checkpoints.load(stopped / "weights/last.pt")
    saved["opt"]["epochs"] = 3
    checkpoints.save(saved, stopped / "weights/last.pt")
    results = (stopped / "results.csv").read_bytes()
    damaged = (
        (b"epochs: [1,\n", results[:-30], ["0", "2"]),  # epoch 1 is cut off
        (b"\xff\xfe", b"epoch\n\0\0\0\n", ["2"]),
        (b"5: 1\n", results, ["0", "1", "2"]),
        (b"epochs: three\n", results + b"\xff\nnan,\n", ["0", "1", "2"]),
        (b"epochs: null\n", results, ["0", "1", "2"]),
        (b"mosaic: often\n", results, ["0", "1", "2"]),
    )
    for settings, rows, kept in damaged:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stopped, folder)
        (folder / "opt.yaml").write_bytes(settings)
        (folder / "results.csv").write_bytes(rows)
        assert main(["--resume", str(last), "--device", "cpu"]) == 0
        assert "opt.yaml is missing or damaged" in capsys.readouterr().out
        assert epochs(folder) == kept
    for key in ("opt", "hyp"):
        checkpoints.save({k: v for k, v in saved.items() if k != key}, last)
        assert main(["--resume", str(last), "--device", "cpu"]) == 1
        assert f"last.pt: it has no '{key}' entry" in capsys.readouterr().err


def test_what_may_be_unset_is_known() -> None:
    unset = vars(options.parser().parse_args([]))
    assert {k for k, v in unset.items() if v is None} == set(options.MAY_BE_UNSET)
    assert options.is_value("accumulate", None, 4)
    assert not options.is_value("accumulate", True, None)
    assert not options.is_value("amp", 1, None)


def test_options_of_the_loggers_have_no_effect(capsys) -> None:
    words = (
        "--entity a --bucket b --upload_dataset --bbox_interval 1 --artifact_alias c"
    )
    opt = options.parser().parse_args(["--cfg", "gelan-t", *words.split()])
    options.check(opt)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 5
    assert all(line.endswith("no effect, this script has no loggers") for line in said)


# The options of the official script, which a guide may tell to give.
OFFICIAL = """weights cfg data hyp epochs batch-size imgsz img img-size rect resume nosave
    noval noautoanchor noplots evolve bucket cache image-weights device multi-scale
    single-cls optimizer sync-bn workers project name exist-ok quad cos-lr flat-cos-lr
    fixed-lr label-smoothing patience freeze save-period seed local_rank min-items
    close-mosaic entity upload_dataset bbox_interval artifact_alias"""
OURS = "ckpt accumulate mosaic mixup amp stock demo"


def test_the_demo_says_which_options_it_has_no_use_for(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = []

    class Quick:
        def __init__(self, opt, hyp, folder) -> None:
            trained.append(opt)

        def run(self) -> Metrics:
            return Metrics()

    monkeypatch.setattr(demo, "Trainer", Quick)
    monkeypatch.setattr(demo, "memory_table", lambda *_: None)
    assert main(["--demo"]) == 0
    assert "WARNING" not in capsys.readouterr().out
    ignored = (
        "--cfg x --epochs 0 --imgsz 64 --device 0 --ckpt junk --data d.yaml --stock"
    )
    ignored += " --batch-size 3 --fixed-lr --cache disk --name a"
    followed = "--optimizer Adam --freeze 3 --rect --min-items 1 --workers 0"
    assert main(["--demo", *ignored.split(), *followed.split()]) == 0
    said = capsys.readouterr().out
    (told,) = re.findall("WARNING (.*): no effect", said)
    assert set(told.split(", ")) == {x for x in ignored.split() if x.startswith("--")}
    assert [opt.stock for opt in trained] == [True, False] * 2
    assert {(opt.optimizer, opt.rect) for opt in trained[2:]} == {("Adam", True)}


def test_the_options_are_those_that_readme_names() -> None:
    actions = options.parser()._actions
    known = {name.removeprefix("--") for a in actions for name in a.option_strings}
    named = {*OFFICIAL.split(), *OURS.split()}
    assert named <= known
    assert known - named == {"batch", "local-rank", "no-amp", "help", "-h"}
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    start = readme.index("The command line of the official `train_dual.py`")
    said = readme[start : readme.index("```python", start)]
    assert set(OURS.split()) <= set(re.findall(r"--([\w-]+)", said))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("CUDA out of memory. Tried\nmore"), RuntimeError("x")],
)
def test_no_memory_is_one_line(error: Exception, monkeypatch, capsys) -> None:
    def train(_: object) -> None:
        raise error

    monkeypatch.setattr("yolov9.main.train", train)
    if str(error) == "x":
        with pytest.raises(RuntimeError, match="x"):
            main([])
        return
    assert main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith(("ERROR MemoryError. ", "ERROR CUDA out of memory. Tried. "))
    assert said.endswith(
        "Memory has run out: a smaller --batch or --img, and --ckpt, take less.\n"
    )
    assert said.count("\n") == 1


def test_images_drawn_by_weight_come_in_squares(small_set: str, capsys) -> None:  # noqa: F811
    for number, path in enumerate(sorted(Path(small_set).parent.rglob("train/*.png"))):
        picture = cv2.imread(str(path))
        size = (64, 32) if number % 2 else (32, 64)
        assert cv2.imwrite(str(path), cv2.resize(picture, size))
    line = arguments(small_set, "--rect", "--image-weights", "--epochs", "2", "--noval")
    assert main(line) == 0
    assert "WARNING --rect: off" in capsys.readouterr().out


def test_one_class_takes_labels_of_several(small_set: str, capsys) -> None:  # noqa: F811
    content = yaml.safe_load(Path(small_set).read_text())
    Path(small_set).write_text(yaml.safe_dump(content | {"names": ["shape"]}))
    line = arguments(small_set, "--epochs", "1")
    assert main(line) == 1
    assert "but the data set has 1 classes" in capsys.readouterr().err
    assert main([*line, "--single-cls"]) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_error_in_a_worker_is_one_line(
    workers: str,
    small_set: str,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def vanished(path: str) -> None:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("yolov9.dataset.read_image", vanished)
    line = arguments(small_set, "--epochs", "1")
    line[line.index("--workers") + 1] = workers
    assert main(line) == 1
    said = [
        x for x in capsys.readouterr().err.splitlines() if "ERROR" in x or "File" in x
    ]
    assert len(said) == 1
    assert said[0].startswith("ERROR /")
    assert "[Errno 2] No such file" in said[0]


def test_a_worker_that_is_killed_is_one_line(
    small_set: str,  # noqa: F811
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    main_process = os.getpid()

    def read_image(path: str) -> None:
        assert os.getpid() != main_process
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("yolov9.dataset.read_image", read_image)
    line = arguments(small_set, "--epochs", "1")
    line[line.index("--workers") + 1] = "1"
    assert main(line) == 1
    said = capsys.readouterr().err
    assert "ERROR DataLoader worker (pid" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("fitness", "epochs"),
    [
        ([0.1, 0.0, 0.2, 0.1, 0.1, 0.3], 5),  # the third is better, the fifth is not
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6),  # equal counts as better
        ([0.3, 0.2, 0.2, 0.3, 0.3, 0.3], 3),
    ],
)
def test_patience_counts_epochs_without_improvement(
    fitness: list[float],
    epochs: int,
    small_set: str,  # noqa: F811
    monkeypatch,
) -> None:
    found = [Metrics(map50=f, map=f) for f in fitness]
    monkeypatch.setattr(Trainer, "_validate", lambda self: found.pop(0))
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *_: torch.zeros(3))
    line = arguments(small_set, "--epochs", "6", "--name", "p", "--patience", "2")
    assert main([*line, "--nosave"]) == 0
    assert len(fitness) - len(found) == epochs
    assert Path("runs/train/p/weights/last.pt").is_file()
