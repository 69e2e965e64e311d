# SPDX-License-Identifier: MIT
"""The package as others get it: installed from source, without PyTorch."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import yolov9mem
from yolov9mem import _core

ROOT = Path(__file__).resolve().parents[1]
BLOCK_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "cv2", "PIL"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, as `pip install .` does."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.so", ".*_cache")
    for name in ("csrc", "yolov9mem"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    environment = os.environ | {"YOLOV9MEM_DEBUG": "1", "YOLOV9MEM_SANITIZE": "0"}
    environment |= {"YOLOV9MEM_CUDA": "0"}
    environment = {k: v for k, v in environment.items() if k != "LD_PRELOAD"}
    subprocess.run(command, check=True, env=environment, timeout=280)
    return next(folder.glob("yolov9mem-*.whl"))


def test_the_wheel_has_what_it_needs_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        metadata = next(n for n in names if n.endswith("METADATA"))
        needed = re.findall(
            r"^Requires-Dist: (.*)$", content.read(metadata).decode(), re.M
        )
    assert [n for n in needed if "extra ==" not in n] == ["numpy<3,>=1.26"]
    assert sum(n.endswith(".so") for n in names) == 1
    for name in ("_core.pyi", "py.typed", "torch/__init__.py"):
        assert f"yolov9mem/{name}" in names
    assert not [n for n in names if n.startswith(("csrc", "tests", "examples"))]
    assert [n for n in names if n.endswith("licenses/LICENSE")]


def test_it_works_where_there_is_no_torch(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    program = BLOCK_TORCH + (
        "import numpy as np, yolov9mem\n"
        "assert 'site' in yolov9mem.__file__, yolov9mem.__file__\n"
        "assert yolov9mem.info()['debug']\n"
        "block = yolov9mem.sppelan(4, 4, 2); params = block.initial_params()\n"
        "y = block.forward(np.ones((1, 8, 8, 4), np.float32), params)\n"
        "block.backward(y)\n"
        "tiles = [np.full((32, 32, 3), i, np.uint8) for i in range(4)]\n"
        "image, labels = yolov9mem.mosaic(tiles, image_size=32, center=(32, 32))\n"
        "assert image.shape == (3, 32, 32)\n"
        "try:\n    yolov9mem.torch\n"
        "except ImportError as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "torch is not installed here" in done.stdout


def test_diagnosis(tmp_path: Path) -> None:
    root = str(Path(yolov9mem.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "yolov9mem"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    for word in ("version", "compiler", "cpu, ref", "isa", "threads", "numpy"):
        assert word in done.stdout
    built = importlib.util.find_spec("yolov9mem._cuda") is not None
    assert ("cuda" in yolov9mem.info()["backends"]) is built


def test_the_stub_names_what_the_core_has() -> None:
    stub = ast.parse((ROOT / "yolov9mem" / "_core.pyi").read_text())
    names: dict[str, set[str]] = {"": set()}
    for node in stub.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[""].add(node.name)
        if isinstance(node, ast.ClassDef):
            members = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            names[node.name] = {n for n in members if not n.startswith("_")}
    assert names[""] == {n for n in dir(_core) if not n.startswith("_")}
    for kind in (_core.Graph, _core.Plan):
        public = {n for n in dir(kind) if not n.startswith("_")}
        assert names[kind.__name__] == public


def test_threads() -> None:
    before = yolov9mem.get_num_threads()
    try:
        yolov9mem.set_num_threads(3)
        assert yolov9mem.get_num_threads() == 3
        for wrong in (0, -1, 257, 10**6):
            with pytest.raises(ValueError, match=f"count: is {wrong}"):
                yolov9mem.set_num_threads(wrong)
        with pytest.raises(TypeError):
            yolov9mem.set_num_threads(1.5)  # type: ignore[arg-type]
    finally:
        yolov9mem.set_num_threads(before)


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = yolov9mem.nothing


def test_mosaic_is_the_function_however_it_is_reached() -> None:
    import yolov9mem.mosaic

    assert callable(yolov9mem.mosaic)
    assert isinstance(yolov9mem.Mosaic, type)
