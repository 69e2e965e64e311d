# SPDX-License-Identifier: MIT
"""The convolutions of "cuda": errors without cuDNN, and cuDNN's plans without a GPU.

cuDNN 9.8 and newer chooses engines for a device that it is only told about, so every
convolution of the YOLOv9 models is planned here for five GPUs. The devices' properties
are from their data sheets (tests/cudnn_devices.json). Needs the wheel nvidia-cudnn-cu13
(`make cudnn` installs it) or YOLOV9MEM_CUDNN with the library's path.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_emulation as ce
import pytest
import torch
from cuda_emulation import BF16, F16, F32
from emulated_cudnn import run
from torch import nn

TESTS = Path(__file__).resolve().parent
COMMON = {
    "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64],
    "regsPerBlock": 65536,
    "smCountOrigin": 0,
    "warpSize": 32,
    "maxSharedMemoryPerBlock": 49152,
    "oversizedSharedMemoryPerBlock": 0,
    "maxRegistersPerSM": 65536,
    "maxThreadsPerBlock": 1024,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
    "cudaDeviceId": 0,
    "driverVer": 13000,
}
CAP = 32 << 20
MODELS = ("yolov9-t", "yolov9-s", "yolov9-m", "yolov9-c", "yolov9-e")


def find_library(variable: str, folder: str, name: str) -> str | None:
    """A library of NVIDIA's wheels, or what the environment says."""
    if os.environ.get(variable):
        return os.environ[variable]
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / folder / name
        if path.is_file():
            return str(path)
    return None


def find_cudnn() -> str | None:
    """One that knows absent devices; asked in a process that it may be loaded into."""
    found = find_library("YOLOV9MEM_CUDNN", "cudnn/lib", "libcudnn.so.9")
    code = f"import ctypes; print(ctypes.CDLL({found!r}).cudnnGetVersion())"
    words = [sys.executable, "-c", code]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
    return found if found is not None and int(told or 0) >= 90800 else None


CUDNN = find_cudnn()
REQUIRED = os.environ.get("YOLOV9MEM_REQUIRE_CUDNN") == "1"  # CI skips nothing here
needs_cudnn = pytest.mark.skipif(
    CUDNN is None and not REQUIRED, reason="no cuDNN 9.8 here: `make cudnn` installs it"
)


def devices() -> dict[str, dict]:
    found = json.loads((TESTS / "cudnn_devices.json").read_text())
    return {name: {**COMMON, **properties} for name, properties in found.items()}


def ask(problems: list[list[int]], tf32: bool = False) -> dict[str, list[list[int]]]:
    """cuDNN's answers for all devices; see cudnn_probe.py."""
    asked = {
        "cudnn": CUDNN,
        "devices": devices(),
        "problems": problems,
        "tf32": tf32,
    }
    done = subprocess.run(
        [sys.executable, "-B", str(TESTS / "cudnn_probe.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@functools.cache
def convolutions() -> tuple[tuple[int, ...], ...]:
    """n, h, w, oh, ow and ym_conv's numbers of each one that differs, 640 px, batch 16."""
    from yolov9.model import DetectionModel

    seen = set()

    def note(conv: nn.Conv2d, inputs: tuple, y: torch.Tensor) -> None:
        n, c, h, w = inputs[0].shape
        numbers = (*conv.kernel_size, *conv.stride, *conv.padding, *conv.dilation)
        seen.add((n, h, w, *y.shape[2:], y.shape[1], c, *numbers, conv.groups))

    for name in MODELS:
        with torch.device("meta"):
            model = DetectionModel(name, nc=80)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(note)
        model.train()(torch.empty(16, 3, 640, 640, device="meta"))
    return tuple(sorted(seen))


def passes(shape: tuple[int, ...]) -> list[int]:
    """An image needs no gradient."""
    every = [ce.FORWARD, ce.BACKWARD_DATA, ce.BACKWARD_WEIGHT]
    return [p for p in every if p != ce.BACKWARD_DATA or shape[6] > 3]


@needs_cudnn
@pytest.mark.timeout(280)
def test_every_convolution_of_the_models_has_a_plan() -> None:
    """Within the cap, compiled beforehand, deterministic; for a few small 1x1 ones cuDNN
    itself ranks an engine without tensor cores first."""
    problems = [[p, F16, 0, *shape] for shape in convolutions() for p in passes(shape)]
    assert len(problems) > 300
    answers = ask(problems)
    for device, plans in answers.items():
        for problem, (workspace, _, _, compiles, found) in zip(
            problems, plans, strict=True
        ):
            assert found and not compiles, (device, problem)
            assert workspace <= CAP, (device, problem, workspace)
        fast = sum(tensor_core for _, _, tensor_core, _, _ in plans)
        assert fast >= 0.97 * len(plans), (device, fast, len(plans))


@needs_cudnn
def test_types_and_accumulation() -> None:
    shape = (8, 80, 80, 80, 80, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    problems = [[p, t, 0, *shape] for p in range(3) for t in (F32, BF16, F16)]
    problems += [[ce.BACKWARD_DATA, t, 1, *shape] for t in (F32, F16)]
    for device, plans in ask(problems).items():
        for problem, plan in zip(problems, plans, strict=True):
            tensor_core, found = plan[2], plan[4]
            if device == "T4" and problem[1] == BF16:
                # It has none; cuDNN 9.24 has a plan for gradients of weights all the same.
                assert not found or problem[0] == ce.BACKWARD_WEIGHT, (problem, plan)
                continue
            assert found, (device, problem, plan)
            if problem[1] == F32:
                assert not tensor_core, (device, problem, "TF32 was not allowed")


@needs_cudnn
def test_float32_keeps_its_tensor_cores() -> None:
    """Before Hopper their engines want more than the cap of workspace, and get it rather
    than one that is several times slower."""
    shape = (16, 80, 80, 80, 80, 128, 128, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    for device, plans in ask([[p, F32, 0, *shape] for p in range(3)], True).items():
        for workspace, _, tensor_core, _, found in plans:
            assert found
            assert tensor_core or device == "T4"  # has none for float32
            assert workspace <= 8 * CAP
    over = ask([[ce.FORWARD, F32, 0, *shape]], True)["A100"][0][0]
    assert over > CAP, "this GPU's engines fit by now: the rule is not tried"


def failing_cudnn(path: str) -> str:
    script = """
        import cuda_emulation as ce, test_cuda_conv as t
        case = t.Case(t.CASES["3x3"], ce.F32)
        attempt(lambda: case.run("cuda", "cudnn_conv", False))
    """
    (line,) = run(script, YOLOV9MEM_CUDNN=path)
    assert line.startswith("Failed ")
    return line


def test_without_cudnn_the_error_says_what_to_do() -> None:
    text = failing_cudnn("/nowhere/libcudnn.so.9")
    assert "libcudnn.so.9 cannot be opened (/nowhere/libcudnn.so.9:" in text
    assert "nvidia-cudnn-cu13" in text
    assert "cuda:plain" in text


def test_a_library_that_is_not_cudnn() -> None:
    text = failing_cudnn("libm.so.6")
    assert "cuDNN has no function cudnnGetVersion" in text


@needs_cudnn
def test_without_a_gpu_cudnn_says_so() -> None:
    text = failing_cudnn(str(CUDNN))
    assert "cudnnCreate" in text
