# SPDX-License-Identifier: MIT
"""The launcher's command line: what is ours, what is the script's, what is an error."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from yolov9mem import launch
from yolov9mem.launch.cli import Settings, UsageError, parse

# The commands of the guide that people follow, without `python`.
COMMON = (
    "--workers 8 --device 0 --data data.yaml --cfg models/detect/yolov9-s.yaml "
    "--weights '' --hyp hyp.scratch-high.yaml --min-items 0 --epochs 20 "
    "--close-mosaic 15"
)
GUIDE = [
    ("--batch 32 --img 640 --name b32", "", Settings()),
    ("--batch 32 --img 640 --name b32-ckpt", "--ckpt", Settings("conv")),
    ("--batch 32 --img 512 --name b32-512", "--ckpt", Settings("conv")),
    (
        "--batch 32 --img 512 --noautoanchor",
        "--mosaic 0 --mixup 0",
        Settings(mosaic=0.0, mixup=0.0),
    ),
    ("--batch 64 --img 640 --name dp", "", Settings()),
    (
        "--batch 16 --img 512 --name acc4",
        "--accumulate 4 --ckpt",
        Settings(accumulate=4),
    ),
]


@pytest.mark.parametrize(("theirs", "ours", "settings"), GUIDE)
def test_commands_of_the_guide(theirs: str, ours: str, settings: Settings) -> None:
    words = [*COMMON.split(), *theirs.split()]
    command = parse(["train_dual.py", *words, *ours.split()])
    assert command is not None
    assert command.settings == settings
    assert command.arguments == tuple(words)
    # Our flags may stand anywhere, also before the script.
    for mixed in (
        [*ours.split(), "train_dual.py", *words],
        ["train_dual.py", *words[:4], *ours.split(), *words[4:]],
    ):
        assert parse(mixed) == command


def test_values() -> None:
    words = "t.py --ckpt=min --accumulate=3 --mosaic .5 --mixup=1 --no-amp --strict"
    command = parse(words.split())
    assert command is not None
    assert command.settings == Settings("min", 3, 0.5, 1.0, amp=False, strict=True)
    flags = "--ckpt min --accumulate 3 --mosaic 0.5 --mixup 1 --no-amp"
    assert command.settings.flags() == flags.split()


def test_keep_may_be_a_size() -> None:
    for words in ("t.py --ckpt 6GB 3", "--ckpt 6GB t.py 3", "t.py 3 --ckpt=6GB"):
        command = parse(words.split())
        assert command is not None
        assert command.settings == Settings("6GB") and command.arguments == ("3",)
    command = parse(["t.py", "--ckpt", "3"])
    assert command is not None
    assert command.settings == Settings() and command.arguments == ("3",)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(accumulate=1234567),
        Settings(mosaic=0.123456789, mixup=1e-7),
        Settings("all", 1, 0.0, 1.0, amp=False),
        Settings("1.5GiB"),
    ],
)
def test_flags_bring_the_same_settings_about(settings: Settings) -> None:
    command = parse(["t.py", *settings.flags()])
    assert command is not None and command.settings == settings


@pytest.mark.parametrize(
    "wrong",
    [{"accumulate": 0}, {"accumulate": 1.5}, {"mosaic": 2.0}, {"mixup": float("nan")}],
)
def test_values_given_in_python_are_checked_too(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"--{name}: is"):
        Settings(**wrong)


@pytest.mark.parametrize("name", ["amp", "strict", "stock_loss"])
@pytest.mark.parametrize("value", ["False", 0, None])
def test_flags_given_in_python_are_true_or_false(name: str, value: object) -> None:
    """Any text would be true."""
    with pytest.raises(TypeError, match=f"{name}: is {value!r}, must be True or False"):
        Settings(**{name: value})


def test_numbers_given_in_python_are_what_words_are_read_as() -> None:
    given = Settings(accumulate="4", mosaic="0.5", mixup=np.float32(1))
    assert (given.accumulate, given.mosaic, given.mixup) == (4, 0.5, 1.0)
    assert type(given.mixup) is float
    with pytest.raises(TypeError, match="ckpt: is 6, must be a str"):
        Settings(keep=6)


def test_modules_and_words_after_them() -> None:
    words = "-m ultralytics detect train model=a.yaml --ckpt epochs=1"
    command = parse(words.split())
    assert command is not None
    assert command.is_module and command.target == "ultralytics"
    assert command.arguments == ("detect", "train", "model=a.yaml", "epochs=1")


def test_two_dashes_end_our_flags() -> None:
    command = parse(["t.py", "--", "--ckpt", "nonsense"])
    assert command is not None
    assert command.arguments == ("--", "--ckpt", "nonsense")
    for target in (["t.py"], ["-m", "t"]):
        command = parse(["--ckpt", "min", "--", *target, "--ckpt", "own", "--strict"])
        assert command is not None
        assert command.arguments == ("--ckpt", "own", "--strict")
        assert command.left_to_script == ("--ckpt", "--strict")
        assert command.settings == Settings("min")
    with pytest.raises(UsageError, match="no script given"):
        parse(["--ckpt", "--"])


def test_the_flags_of_a_script_are_its_own() -> None:
    command = parse(
        ["t.py", "--ckpt", "deep", "--mixup", "0"], lambda *target: {"--ckpt"}
    )
    assert command is not None
    assert command.arguments == ("--ckpt", "deep")
    assert command.left_to_script == ("--ckpt",)
    assert command.settings == Settings(mixup=0.0)


def test_help_is_ours_before_the_script_and_its_own_after() -> None:
    assert parse(["--help"]) is None
    assert parse(["--ckpt", "-h"]) is None
    command = parse(["t.py", "--help"])
    assert command is not None and command.arguments == ("--help",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("t.py --accumulate 0", "--accumulate: is '0', must be a whole number of at"),
        ("t.py --accumulate 1.5", "--accumulate: is '1.5'"),
        ("t.py --accumulate", "--accumulate: needs a value"),
        ("t.py --accumulate --ckpt", "--accumulate: needs a value"),
        ("t.py --accumulate 2 --accumulate 2", "--accumulate: given twice"),
        (
            "t.py --ckpt deep",
            "--ckpt: is 'deep', must be one of conv, min, all or off, or",
        ),
        ("t.py --ckpt 6XB", "--ckpt: is '6XB', must be one of conv"),
        ("t.py --ckpt=600", "--ckpt: is '600', must be one of conv"),
        ("t.py --ckpt=0GB", "--ckpt: is '0GB', must be one of conv"),
        ("--ckpt --ckpt t.py", "--ckpt: given twice"),
        ("t.py --ckpt --ckpt", "--ckpt: given twice"),
        ("t.py --mosaic 1.01", "--mosaic: is '1.01', must be a number from 0 to 1"),
        ("t.py --mixup nan", "--mixup: is 'nan'"),
        ("t.py --mixup -0.1", "--mixup: is '-0.1'"),
        ("t.py --no-amp=1", "--no-amp: takes no value, is given '1'"),
        ("t.py --report /nowhere/at/all.json", "--report: '/nowhere/at/all.json' is"),
        ("--batch 4 t.py", "--batch: unknown flag before the script"),
        ("--ckpt min", "no script given"),
        ("-- --ckpt t.py", "--ckpt: unknown flag before the script"),
        ("-m", "-m: needs the name of a module"),
    ],
)
def test_nonsense(words: str, message: str) -> None:
    with pytest.raises(UsageError, match="^" + message.replace(".", r"\.")):
        parse(words.split())


def test_without_pytorch_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("print('ran')\n")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "yolov9mem.launch.launch", raising=False)
    assert launch.main([str(tmp_path / "train.py")]) == 2
    shown = capsys.readouterr()
    assert "error: needs PyTorch (pip install torch)" in shown.err
    assert not shown.out


def test_errors_are_shown_with_the_program(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch.main([str(tmp_path / "train.py")]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("python -m yolov9mem: error: ")
    assert shown.endswith("train.py: no such file\n")
    assert launch.main([str(tmp_path)]) == 2
    assert "is a folder, must be a script" in capsys.readouterr().err
    assert launch.main(["-m", "no_such.module"]) == 2
    assert "-m no_such.module: no such module" in capsys.readouterr().err
    assert launch.main(["--help"]) == 0
    shown = capsys.readouterr().out
    ours = "--ckpt", "--accumulate N", "--mosaic P", "--mixup P", "--no-amp"
    for flag in (*ours, "--stock-loss"):
        assert flag in shown
