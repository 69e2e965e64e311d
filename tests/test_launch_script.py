# SPDX-License-Identifier: MIT
"""Running a script as __main__: its exit code, traceback, accumulate, workers."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lookalike_runs import (
    ENVIRONMENT,
    FOLDER,
    NO_EQUAL_BITS,
    PACKAGE,
    SCRIPT,
    command,
    python,
)

from yolov9mem.launch import script

# accumulate


def changed(source: str, count: int = 7) -> tuple[str, int]:
    tree = ast.parse(source)
    found = script.set_accumulate(tree, count)
    return ast.unparse(tree), found


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("accumulate = max(round(64 / b), 1)", "accumulate = 7"),
        ("accumulate: int = 3", "accumulate: int = 7"),
        ("accumulate += 1", "accumulate = 7"),
        ("a, accumulate = 1, 2", "a, accumulate = (1, 2)\n    accumulate = 7"),
        ("a = accumulate = 2", "a = accumulate = 2\n    accumulate = 7"),
        ("[a, *accumulate] = x", "[a, *accumulate] = x\n    accumulate = 7"),
    ],
)
def test_every_assignment_in_train_is_set(line: str, becomes: str) -> None:
    expected = ast.unparse(ast.parse(f"def train():\n    {becomes}"))
    assert changed(f"def train():\n    {line}") == (expected, 1)


def test_nested_assignments_are_set_and_others_are_not() -> None:
    source = (
        "accumulate = 1\n"
        "def train(n):\n"
        "    for i in range(9):\n"
        "        if i < n and (accumulate := i):\n"
        "            accumulate = i\n"
        "    accumulated = accumulate = n\n"
        "class T:\n"
        "    def train(self):\n"
        "        accumulate = 4\n"
        "    def other(self):\n"
        "        accumulate = 5\n"
    )
    text, found = changed(source)
    assert found == 4
    assert text.count("accumulate = 7") == 3 and "(accumulate := 7)" in text
    assert "accumulate = 5" in text and text.startswith("accumulate = 1")
    space: dict[str, object] = {}
    exec(text + "\nprint_me = T().train()", space)


def test_accumulate_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "plain.py"
    file.write_text("def train():\n    steps = 3\nprint('ran')\n")
    done = python("-m", "yolov9mem", file, "--accumulate", 4)
    assert done.returncode == 2 and "ran" not in done.stdout
    message = "has no assignment to `accumulate` in a function train()"
    assert message in done.stderr


# As python runs it

PLAIN = """\
import sys
from pathlib import Path
if __name__ == "__main__":
    import __main__
    assert __main__.__file__ == sys.argv[0] == __file__, (sys.argv, __file__)
    assert sys.modules["__main__"].__dict__ is globals()
    assert __spec__ is None
    assert sys.path[0] == str(Path(__file__).resolve().parent), sys.path
    print(sys.argv[1:])
    if "raise" in sys.argv:
        raise KeyError("told to")
    sys.exit(5 if "exit" in sys.argv else 0)
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plain") / "plain.py"
    file.write_text(PLAIN)
    return file


def test_exit_code_arguments_and_nothing_to_swap(plain: Path) -> None:
    done = python("-m", "yolov9mem", plain, "exit", "--ckpt", "min", "--epochs=3")
    assert done.returncode == 5, done.stderr
    assert done.stdout == "['exit', '--epochs=3']\n"
    assert f"nothing to swap in {plain}" in done.stderr


def test_a_flag_of_the_script_stays_its_own_and_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import argparse\np = argparse.ArgumentParser()\n"
        "p.add_argument('--ckpt', type=int)\nprint(p.parse_args())\n"
    )
    done = python("-m", "yolov9mem", file, "--ckpt", 5)
    assert done.returncode == 0 and done.stdout == "Namespace(ckpt=5)\n", done.stderr
    assert "yolov9mem: flags: --ckpt is the script's own" in done.stderr


def test_strict_makes_nothing_to_swap_an_error(plain: Path) -> None:
    done = python("-m", "yolov9mem", "--strict", plain)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("source", [b"x = 1\0\n", b"\x7fELF\x00\x01"])
def test_what_is_no_source_is_said(source: bytes, tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(source)
    try:
        with pytest.raises(script.UsageError, match="is no Python source"):
            script.find(str(file), False)
    except SyntaxError:  # what newer versions of Python raise, as python itself does
        assert sys.version_info >= (3, 11, 4)


def test_a_report_that_cannot_be_written_does_not_hide_the_script_s_end(
    plain: Path,
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    done = python("-m", "yolov9mem", "--report", "/dev/full", plain, "exit")
    assert done.returncode == 5, done.stderr
    assert "--report: [Errno 28]" in done.stderr and "Traceback" not in done.stderr


def test_a_script_that_closes_stderr_ends_as_stock(tmp_path: Path) -> None:
    file = tmp_path / "quiet.py"
    file.write_text("import sys\nsys.stderr.close()\nsys.exit(3)\n")
    assert python("-m", "yolov9mem", file).returncode == python(file).returncode == 3


def test_a_rank_that_is_no_number_is_the_script_s_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from yolov9mem.launch.cli import Settings
    from yolov9mem.launch.launch import Launch

    for rank, quiet in (("", False), ("x", False), ("0", False), ("10", True)):
        monkeypatch.setenv("RANK", rank)
        assert Launch(Settings()).is_quiet is quiet


def test_an_import_from_above_the_root_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "deep.py"
    file.write_text(f"from {'.' * 99} import nothing\n")
    assert script.find(str(file), False).own_flags() == set()


def test_a_traceback_starts_in_the_script(plain: Path) -> None:
    stock = python(plain, "raise")
    ours = python("-m", "yolov9mem", plain, "raise")
    assert ours.returncode == stock.returncode == 1
    assert ours.stderr[ours.stderr.index("Traceback") :] == stock.stderr


def test_modules_run_as_python_runs_them(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "value.py").write_text("V = 3\n")
    (package / "__main__.py").write_text(
        "import sys\nfrom .value import V\n"
        "print(__spec__.name, __package__, V, sys.argv[1:], sys.argv[0] == __file__)\n"
    )
    for words in (["-m", "yolov9mem", "-m", "pack", "a"], ["-m", "pack", "a"]):
        done = subprocess.run(
            [sys.executable, *words],
            env={**ENVIRONMENT, "PYTHONPATH": PACKAGE},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "pack.__main__ pack 3 ['a'] True\n", done.stderr


def test_an_interrupt_ends_it_as_stock(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text("import time\nprint('on', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        command("-m", "yolov9mem", file),
        env=ENVIRONMENT,
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "yolov9mem/launch" not in errors


# Training


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_make_our_mosaic(tmp_path: Path, context: str) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    words = ["--epochs", 1, "--images", 8, "--workers", 1, "--context", context]
    done = python("-m", "yolov9mem", SCRIPT, "--save-dir", tmp_path, *words)
    assert done.returncode == 0, done.stderr
    used = (tmp_path / "worker0.txt").read_text()
    assert used == "yolov9mem.launch.dataset sample"
    assert "yolov9mem: the run ends" in done.stderr


def test_workers_run_the_script_s_own_code_on_pictures(tmp_path: Path) -> None:
    if NO_EQUAL_BITS:
        pytest.skip(NO_EQUAL_BITS)
    images = []
    for launcher, used in (
        ([], "parts None"),
        (["-m", "yolov9mem"], "yolov9mem.launch.dataset recorded"),
    ):
        words = ["--epochs", 1, "--images", 8, "--workers", 1, "--context", "spawn"]
        done = python(*launcher, SCRIPT, "--own", "--save-dir", tmp_path, *words)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "worker0.txt").read_text() == used
        images.append(json.loads((tmp_path / "trace.json").read_text())["images"])
    assert images[0] == images[1]


def peaks(report: Path, change: str = "pass") -> tuple[float, float]:
    """Of training and of the model in validation, bytes, in a process of its own."""
    code = (
        "import sys; from yolov9mem import launch; from yolov9mem.launch import "
        f"validation; {change}; sys.exit(launch.main(sys.argv[1:]))"
    )
    words = [SCRIPT, "--save-dir", report.parent, "--ckpt", "--report", report]
    words += ["--epochs", 2, "--imgsz", 256, "--width", 32, "--depth", 3]
    words += ["--batch-size", 8]
    done = subprocess.run(
        command("-c", code, *words),
        # Large blocks go back to the system when they are freed.
        env={**ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "65536"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(report.read_text())
    kinds = ("training", "validation")
    found = [figures[f"measured_{kind}_peak_bytes"] for kind in kinds]
    return found[0], found[1]


def test_validation_does_not_raise_the_peak(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is read from /proc, which is not here")
    training, validation = peaks(tmp_path / "ours.json")
    assert training > 50e6
    assert validation <= training
    # The batch as the script has it, twice that of training, would.
    off = "validation.Slices.wanted = lambda *args: False"
    training, whole = peaks(tmp_path / "whole.json", off)
    assert whole > 1.2 * training > 1.2 * validation


def test_a_failing_training_still_shows_its_figures(tmp_path: Path) -> None:
    words = ["--save-dir", tmp_path, "--fail", 2, "--mixup", 0.5]
    done = python("-m", "yolov9mem", SCRIPT, *words)
    assert done.returncode == 1
    shown = done.stderr
    assert shown.index("training starts") < shown.index("the run ends")
    assert "Traceback (most recent call last):\n" in shown
    first = shown[shown.index("Traceback") :].split("\n")[1]
    assert str(SCRIPT) in first
    assert shown.endswith("RuntimeError: told to fail\n")


def test_a_killed_run_leaves_a_checkpoint_that_opens(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("-m", "yolov9mem", SCRIPT, "--save-dir", tmp_path, "--epochs", 500),
        env=ENVIRONMENT,
        cwd=FOLDER,
        stderr=subprocess.DEVNULL,
    )
    last = tmp_path / "weights" / "last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    code = "import torch, sys; torch.load(sys.argv[1], weights_only=False)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(last)],
        env={**ENVIRONMENT, "PYTHONPATH": f"{FOLDER}:{FOLDER.parent}"},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_torchrun_trains_in_parallel_as_stock(tmp_path: Path) -> None:
    traces = []
    for name, launcher in (("stock", []), ("ours", ["-m", "yolov9mem"])):
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
        folder = tmp_path / name
        done = python(*words, *launcher, SCRIPT, "--save-dir", folder, "--images", 12)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("training starts") == len(launcher) // 2
        files = (folder / "trace.json", folder / "trace1.json")
        traces.append([json.loads(file.read_text()) for file in files])
    stock, ours = traces
    assert stock[0]["weights"] == stock[1]["weights"]
    assert ours[0]["weights"] == ours[1]["weights"]
    for rank in (0, 1):
        if not NO_EQUAL_BITS:
            assert ours[rank]["images"] == stock[rank]["images"]
        assert ours[rank]["losses"] == pytest.approx(stock[rank]["losses"], rel=5e-4)
    assert stock[0]["images"] != stock[1]["images"]


def test_flags_are_found_in_the_modules_of_a_script(tmp_path: Path) -> None:
    package = tmp_path / "own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("from . import words\nfrom .options import p\n")
    (package / "words.py").write_text("TEXT = '--mosaic'\n")
    (package / "options.py").write_text("p.add_argument('-c', '--ckpt', help='-')\n")
    file = tmp_path / "go.py"
    file.write_text("import os, numpy\nfrom own.main import main\n")
    assert script.find(str(file), is_module=False).own_flags() == {"-c", "--ckpt"}
    file.write_text("from own.main import main\nq.add_argument('--mixup')\n")
    assert script.find(str(file), is_module=False).own_flags() == {"--mixup"}
    file.write_text(
        "add = q.add_argument\nadd('--mixup')\n@click.option('--ckpt')\n"
        "def main(ckpt):\n    print('--')\n"
    )
    assert script.find(str(file), is_module=False).own_flags() == {"--mixup", "--ckpt"}
    ours = FOLDER.parents[1] / "examples" / "train_dual.py"
    flags = script.find(str(ours), is_module=False).own_flags()
    assert {"--ckpt", "--accumulate", "--mosaic", "--mixup"} <= flags


def test_a_flag_that_reaches_nothing_ends_the_run(tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text(
        "import torch\nnet = torch.nn.Conv2d(3, 4, 1)\n"
        "made = torch.optim.SGD(net.parameters(), lr=0.1)\n"
        "net(torch.zeros(1, 3, 2, 2)).sum().backward()\nmade.step()\nprint('done')\n"
    )
    done = python("-m", "yolov9mem", file)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert "model, stock    Conv2d: " in done.stderr  # one convolution saves nothing
    done = python("-m", "yolov9mem", file, "--mosaic", "0.5")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"python -m yolov9mem: error: --mosaic: {file} has no data set with a `hyp` "
        "that has `mosaic`\n"
    )
