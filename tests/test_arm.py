# SPDX-License-Identifier: MIT
"""The CPU backend on a 64-bit ARM: cross-compiled, run in QEMU (Debian: apt-get install
gcc-aarch64-linux-gnu qemu-user)."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER = "aarch64-linux-gnu-gcc"
CALLED = [
    "core/status.c",
    "ops/mosaic.c",
    "ops/sgd.c",
    "cpu/kernels*.c",
    "cpu/mosaic*.c",
]
CALLED += ["cpu/isa.c", "cpu/limits.c", "cpu/pool.c", "cpu/sgd.c"]
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror"]
EMULATOR = "qemu-aarch64"


def in_parallel(commands: list[list[str]]) -> None:
    def run_one(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run_one, commands))


def sources(*patterns: str) -> list[Path]:
    return [p for pattern in patterns for p in sorted((ROOT / "csrc").glob(pattern))]


def build(compiler: str, folder: Path) -> str:
    """check.c with what it calls."""
    folder.mkdir()
    files = [ROOT / "tests/arm/check.c", *sources(*CALLED)]
    objects = [str(folder / f"{i}.o") for i in range(len(files))]
    start = [compiler, *FLAGS, "-O1", f"-I{ROOT / 'csrc'}"]
    in_parallel(
        [[*start, "-c", str(f), "-o", o] for f, o in zip(files, objects, strict=True)]
    )
    program = str(folder / "check")
    in_parallel([[compiler, "-static", "-pthread", *objects, "-o", program, "-lm"]])
    return program


def run(command: list[str], isa: str | None = None) -> tuple[str, str]:
    """What it found (the same everywhere), and the kernels' name."""
    environment = {k: v for k, v in os.environ.items() if k != "YOLOV9MEM_ISA"}
    environment |= {"YOLOV9MEM_ISA": isa} if isa else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr.strip()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program of this machine."""
    if "YOLOV9MEM_EXPECT_SANITIZE" in os.environ:
        pytest.skip("compiles without sanitizers")
    return build("gcc", tmp_path_factory.mktemp("check") / "here")


def test_same_bits_on_every_path_of_this_machine(here: str) -> None:
    found = {run([here], isa)[0] for isa in (None, "avx512", "avx2", "plain")}
    assert len(found) == 1


def test_same_bits_on_arm(here: str, tmp_path: Path) -> None:
    """Mosaic and optimizer step; the NEON kernels are checked by the program itself."""
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    found, _ = run([here])
    program = build(COMPILER, tmp_path / "arm")
    assert run([EMULATOR, program]) == (found, "neon")
    assert run([EMULATOR, program], "plain") == (found, "plain")


def test_compiles_for_arm() -> None:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed")
    start = [COMPILER, *FLAGS, "-fsyntax-only", f"-I{ROOT / 'csrc'}"]
    files = sources("core/*.c", "ops/*.c", "ref/*.c", "cpu/*.c")
    in_parallel([[*start, str(file)] for file in files])
