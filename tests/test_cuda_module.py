# SPDX-License-Identifier: MIT
"""yolov9mem._cuda where there is no GPU, and what the build does about it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from yolov9mem import BackendError, _core

ROOT = Path(__file__).resolve().parents[1]
BUILT = importlib.util.find_spec("yolov9mem._cuda") is not None
needs_build = pytest.mark.skipif(not BUILT, reason="built without CUDA")


def has_gpu() -> bool:
    from yolov9mem import _cuda

    try:
        return bool(_cuda.devices())
    except BackendError:
        return False


needs_no_gpu = pytest.mark.skipif(
    not BUILT or has_gpu(), reason="built without CUDA, or there is a GPU"
)


@needs_build
def test_importing_makes_no_cuda_call(tmp_path: Path) -> None:
    """The runtime opens the driver's library with the first call, not before."""
    code = (
        "import yolov9mem, yolov9mem._cuda as c\n"
        "print(c.build_info()['archs'])\n"
        "assert 'libcuda.so' not in open('/proc/self/maps').read()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,  # else Python would look into the checkout first
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@needs_no_gpu
def test_without_a_driver_every_call_is_an_exception() -> None:
    from yolov9mem import _cuda

    calls = [
        _cuda.devices,
        lambda: _cuda.backend("cuda"),
        lambda: _cuda.backend("cuda:1:plain"),
        lambda: _core.Plan(_core.Graph(), [], backend="cuda:0"),
    ]
    for call in calls:
        with pytest.raises(
            BackendError, match="cuda: cudaGetDeviceCount: .*driver|GPU"
        ):
            call()


@needs_build
@pytest.mark.parametrize(
    "text", ["cudax", "cuda:", "cuda:1:fast", "cuda:-1", "gpu", ""]
)
def test_names_of_backends(text: str) -> None:
    from yolov9mem import _cuda

    with pytest.raises(ValueError, match="must be cuda, cuda:N"):
        _cuda.backend(text)


@needs_build
def test_a_table_of_tensors_is_checked() -> None:
    from yolov9mem import _cuda

    rows = np.zeros((2, 7), np.int64)
    rows[:, 0], rows[:, 4] = (64, 1 << 20), 100
    groups = np.array([[0.01, 0, 0, 0, 0, 0]])
    table = _cuda.sgd_table(rows, groups)
    assert len(table) % 64 == 0
    rows[1, 0] = 128  # the first tensor has 400 bytes from 64 on
    with pytest.raises(
        ValueError, match="tensor 1: param overlaps the param of tensor 0"
    ):
        _cuda.sgd_table(rows, groups)
    with pytest.raises(NotImplementedError, match="129, at most 128"):
        _cuda.sgd_table(rows, np.zeros((_cuda.SGD_GROUPS + 1, 6)))
    with pytest.raises(ValueError, match="rows of 56 bytes"):
        _cuda.sgd_table(np.zeros(3, np.int64), groups)


def image(address: int, shape: tuple, device: int = 0) -> tuple:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return (address, "uint8", shape, tuple(strides), device)


@needs_build
@pytest.mark.parametrize(
    "change, message",
    [
        ({"device": 1}, "out: is on device 0, must be on 1"),
        ({"tile": image(128, (20, 10, 4))}, r"tile 0: shape is \(20, 10, 4\)"),
        ({"tile": image(128, (21, 10, 3))}, "must lie on the canvas"),
        ({"hsv": image(64, (2, 256))}, r"hsv: shape is \(2, 256\), must be \(3, 256\)"),
        (
            {"paste": image(64, (5, 3))},
            r"paste: shape is \(5, 3\), must be \(20, any\)",
        ),
        ({"jobs": 0}, "0 of them, must be 1"),
    ],
)
def test_mosaic_jobs_are_checked(change: dict, message: str) -> None:
    from yolov9mem import _cuda

    tile = change.get("tile", image(128, (10, 10, 3)))
    scene = (((tile, 0, 0),), (20, 20), 0, None, change.get("paste"))
    job = (image(4096, (3, 20, 20)), (scene,), 1.0, change.get("hsv"), False, False)
    device = change.get("device", 0)
    scratch = image(64, (_cuda.mosaic_scratch_bytes(1),), device)
    with pytest.raises(ValueError, match=message):
        _cuda.mosaic_batch((job,) * change.get("jobs", 1), scratch, device)


@pytest.fixture
def build_cuda(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("setuptools", reason="building needs it")
    monkeypatch.syspath_prepend(str(ROOT))
    import build_cuda

    return build_cuda


def test_the_build_can_be_told_to_leave_cuda_out(build_cuda, monkeypatch) -> None:
    monkeypatch.setenv("YOLOV9MEM_CUDA", "0")
    assert build_cuda.extension([], []) is None
    monkeypatch.setenv("YOLOV9MEM_CUDA", "yes")
    with pytest.raises(RuntimeError, match="'yes', must be auto, 0, 1 or only"):
        build_cuda.find_toolkit()


def test_a_build_without_nvcc(build_cuda, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build_cuda, "_candidates", list)
    monkeypatch.setenv("YOLOV9MEM_CUDA", "auto")
    assert build_cuda.find_toolkit() is None
    assert "building for the CPU only" in capsys.readouterr().out
    for wanted in ("1", "only"):
        monkeypatch.setenv("YOLOV9MEM_CUDA", wanted)
        with pytest.raises(RuntimeError, match=f"CUDA={wanted}, but no CUDA toolkit"):
            build_cuda.find_toolkit()


def test_architectures(build_cuda, monkeypatch) -> None:
    monkeypatch.delenv("YOLOV9MEM_CUDA_ARCHS", raising=False)
    every = ["75", "80", "86", "89", "90", "100", "120"]
    assert build_cuda.architectures((13, 0)) == every
    assert build_cuda.architectures((12, 4)) == every[:5]
    monkeypatch.setenv("YOLOV9MEM_CUDA_ARCHS", "9.0, 120")
    assert build_cuda.architectures((13, 0)) == ["90", "120"]
    monkeypatch.setenv("YOLOV9MEM_CUDA_ARCHS", "native")
    with pytest.raises(RuntimeError, match="no compute capabilities"):
        build_cuda.architectures((13, 0))


def test_machine_code_is_made_of_few_ptx(build_cuda, monkeypatch) -> None:
    def codes(archs: str) -> list[str]:
        monkeypatch.setenv("YOLOV9MEM_CUDA_ARCHS", archs)
        toolkit = build_cuda.Toolkit("nvcc", (13, 0), Path(), Path())
        flags = build_cuda.nvcc_flags(toolkit)
        return [flags[i + 1] for i, f in enumerate(flags) if f == "-gencode"]

    assert codes(" ".join(build_cuda.ARCHS)) == [
        "arch=compute_75,code=[sm_75]",
        "arch=compute_80,code=[sm_80,sm_86,sm_89,sm_90]",
        "arch=compute_100,code=[sm_100,sm_120,compute_100]",
    ]
    assert codes("90") == ["arch=compute_80,code=[sm_90,compute_80]"]
    assert codes("90 90a 70") == [
        "arch=compute_80,code=[sm_90]",
        "arch=compute_90a,code=[sm_90a]",
        "arch=compute_70,code=[sm_70,compute_70]",
    ]


def test_kernels_ask_for_no_architecture_between_those(build_cuda) -> None:
    """What a kernel has for one GPU alone would be left out of its code."""
    asked = set()
    for path in (ROOT / "csrc").glob("*/*.cu*"):
        for line in path.read_text().splitlines():
            if line.lstrip().startswith("#") and "__CUDA_ARCH__" in line:
                asked.update(re.findall(r"__CUDA_ARCH__ *[<>=!]+ *(\w+)", line))
    assert asked <= {f"{arch}0" for arch in build_cuda.VIRTUAL_ARCHS}
    assert asked
