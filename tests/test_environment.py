# SPDX-License-Identifier: MIT
"""Threads, masks, quotas, forks and instruction sets: the same results everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import yolov9mem
from yolov9mem import _core

ROOT = Path(__file__).resolve().parents[1]
CPUS = len(os.sched_getaffinity(0))
NAMES = ("OMP_NUM_THREADS", "YOLOV9MEM_NUM_THREADS", "YOLOV9MEM_ISA")


def mosaic() -> np.ndarray:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    hsv = rng.integers(0, 180, (3, 256), dtype=np.uint8)
    return yolov9mem.mosaic(tiles, image_size=64, center=(50, 70), hsv=hsv)[0]


def optimizer_step() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = [
        [rng.standard_normal(n, np.float32) for n in (300_001, 7)] for _ in range(4)
    ]
    group = yolov9mem.SGDGroup(*arrays, momentum=0.9, nesterov=True, weight_decay=0.01)
    yolov9mem.sgd_step(group, max_norm=1.0, ema_decay=0.9)
    return [array for four in arrays for array in four]


def training_step() -> list[np.ndarray]:
    block = yolov9mem.elan1(5, 11, 6, 7)
    params = block.initial_params()
    x = np.random.default_rng(2).standard_normal((2, 13, 11, 5), np.float32)
    y = block.forward(x, params)
    dx, gradients = block.backward(y)
    return [y, dx, *(gradients[name] for name in sorted(gradients))]


def results() -> dict[str, str]:
    """Bytes of everything, as text; the training step's sums depend on the kernels."""
    made = {"mosaic": mosaic().tobytes().hex()[:20000]}
    made["sgd"] = b"".join(a[-500:].tobytes() for a in optimizer_step()).hex()
    made["training"] = b"".join(a.tobytes() for a in training_step()).hex()
    made["threads"] = str(yolov9mem.get_num_threads())
    return made


def results_with(first_cpu_only: bool = False, **changes: str) -> dict[str, str]:
    """`results` in a process with these variables."""
    environment = {k: v for k, v in os.environ.items() if k not in NAMES} | changes
    command = [sys.executable, __file__]
    if first_cpu_only:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def usual() -> dict[str, str]:
    return results_with()


@pytest.mark.parametrize(
    "variables, threads",
    [
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"YOLOV9MEM_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}, 1),
        ({"YOLOV9MEM_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, min(2, CPUS)),
        ({"YOLOV9MEM_NUM_THREADS": "100000"}, CPUS),
        ({"YOLOV9MEM_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "junk"}, CPUS),
    ],
)
def test_numbers_of_threads(usual, variables, threads):
    found = results_with(**variables)
    assert int(found["threads"]) == min(threads, int(usual["threads"]))
    assert found | {"threads": ""} == usual | {"threads": ""}


@pytest.mark.parametrize(
    "name, value, rule",
    [
        *(
            ("YOLOV9MEM_NUM_THREADS", value, "a whole number of at least 1")
            for value in ("0", "00", "-3", "abc", "1e3", "2 ", "+2", "4,2")
        ),
        ("YOLOV9MEM_ISA", "bogus", "one of plain, neon, avx2, avx512, avx512_bf16"),
        ("YOLOV9MEM_ISA", "AVX2", "one of plain, neon, avx2, avx512, avx512_bf16"),
    ],
)
def test_a_variable_that_says_nothing_is_refused(name, value, rule):
    done = subprocess.run(
        [sys.executable, "-c", "import yolov9mem"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: {name}: is '{value}', must be {rule}"
    )


def test_names_of_another_machine_are_known():
    for isa in ("neon", "avx512_bf16", ""):
        assert int(results_with(YOLOV9MEM_ISA=isa)["threads"]) >= 1


def test_affinity_mask(usual):
    found = results_with(first_cpu_only=True)
    assert found == usual | {"threads": "1"}


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_lesser_instruction_sets(usual, isa):
    """Bit-equal mosaic and optimizer step; test_kernels.py has the training step."""
    found = results_with(YOLOV9MEM_ISA=isa)
    assert [found[k] for k in ("mosaic", "sgd")] == [
        usual[k] for k in ("mosaic", "sgd")
    ]


def test_two_python_threads_in_a_step():
    expected = training_step()
    wrong: list[int] = []

    def work() -> None:
        for i in range(30):
            found = training_step()
            if not all(map(np.array_equal, found, expected)):
                wrong.append(i)

    before = yolov9mem.get_num_threads()
    _core.set_num_threads(2)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _core.set_num_threads(before)
    assert wrong == []


FORKING = """
import os, sys, threading
sys.path.insert(0, {folder!r})
from test_environment import np, training_step
expected = training_step()
stop = threading.Event()
def work():
    while not stop.is_set():
        training_step()
thread = threading.Thread(target=work)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(not all(map(np.array_equal, training_step(), expected)))
    if os.waitpid(child, 0)[1] != 0:
        stop.set()
        sys.exit("a child's results differ")
stop.set()
thread.join()
assert all(map(np.array_equal, training_step(), expected))
"""


def test_fork_in_the_middle_of_another_threads_step():
    code = FORKING.format(folder=str(Path(__file__).parent))
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        check=True,
        timeout=120,
    )


LIMITS = """
#include "cpu/limits.h"
#include <stdio.h>
int main(int count, char **argument)
{
    for (int i = 1; i < count; i++) {
        printf("%d\\n", cpu_limit_threads(argument[i], 0));
    }
    return 0;
}
"""
MOUNT = "sys/fs/cgroup"
GROUPS = {
    "v2, own root": {f"{MOUNT}/cpu.max": "100000 100000\n"},
    "v2, no quota": {f"{MOUNT}/cpu.max": "max 100000\n"},
    "v2, rounded up": {f"{MOUNT}/cpu.max": "110000 100000\n"},
    "v2, below the root": {f"{MOUNT}/a.slice/b/cpu.max": "50000 100000\n"},
    "v2, the one above": {
        f"{MOUNT}/a.slice/cpu.max": "100000 100000\n",
        f"{MOUNT}/a.slice/b/cpu.max": "max 100000\n",
    },
    "v1": {
        f"{MOUNT}/cpu,cpuacct/a.slice/b/cpu.cfs_quota_us": "100000\n",
        f"{MOUNT}/cpu,cpuacct/a.slice/b/cpu.cfs_period_us": "100000\n",
    },
    "v1, no quota": {
        f"{MOUNT}/cpu/cpu.cfs_quota_us": "-1\n",
        f"{MOUNT}/cpu/cpu.cfs_period_us": "100000\n",
    },
    "nonsense": {f"{MOUNT}/cpu.max": "\n"},
    "none": {},
}
ONE_CPU = {"v2, own root", "v2, below the root", "v2, the one above", "v1"}


def test_quotas_of_control_groups(tmp_path):
    program = tmp_path / "limits"
    (tmp_path / "main.c").write_text(LIMITS)
    sources = [str(tmp_path / "main.c"), str(ROOT / "csrc/cpu/limits.c")]
    include = f"-I{ROOT / 'csrc'}"
    subprocess.run(["gcc", include, *sources, "-o", str(program)], check=True)
    roots = []
    for number, (name, files) in enumerate(GROUPS.items()):
        root = tmp_path / str(number)
        lines = "4:memory:/x\n3:cpu,cpuacct:/a.slice/b\n1:cpuset:/\n"
        files = {
            "proc/self/cgroup": lines if "v1" in name else "0::/a.slice/b\n",
            **files,
        }
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        roots.append(str(root))
    environment = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(
        [str(program), *roots],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(zip(GROUPS, map(int, done.stdout.split()), strict=True))
    expected = {name: 1 if name in ONE_CPU else CPUS for name in GROUPS}
    assert found == expected | {"v2, rounded up": min(2, CPUS)}


if __name__ == "__main__":
    print(json.dumps(results()))
