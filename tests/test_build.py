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
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable
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


@pytest.mark.parametrize("name", ["setup.py", "build_cuda.py"])
def test_older_pythons_read_the_build_and_are_refused_by_pip(name: str) -> None:
    """pip runs both before it reads requires-python from what they make."""
    tree = ast.parse((ROOT / name).read_text(), feature_version=(3, 9))
    postponed = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for node in tree.body
    )
    unions = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]
    unions = [node for node in unions if isinstance(node.op, ast.BitOr)]
    assert postponed or not unions


def test_the_source_distribution_has_what_its_makefile_reads(tmp_path: Path) -> None:
    for path in ("csrc", "tests", "examples", "benchmarks", "yolov9mem", ".ci"):
        shutil.copytree(
            ROOT / path, tmp_path / path, ignore=shutil.ignore_patterns("*.so")
        )
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats=tar"]
    env = os.environ | {"YOLOV9MEM_CUDA": "0"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    (made,) = (tmp_path / "dist").iterdir()
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {".clang-format", ".ci/run", "Makefile", "build_cuda.py"} <= names


def test_threads() -> None:
    before = yolov9mem.get_num_threads()
    try:
        yolov9mem.set_num_threads(3)
        assert yolov9mem.get_num_threads() == 3
        for wrong in (0, -1, 257, 10**6):
            with pytest.raises(ValueError, match=f"count: is {wrong}"):
                yolov9mem.set_num_threads(wrong)
        with pytest.raises(ValueError, match=f"count: is {2**80}"):
            yolov9mem.set_num_threads(2**80)
        with pytest.raises(TypeError, match=r"count: is 1\.5, must be a whole number"):
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


# Makes what it is told to with -o, and notes it.
FAKE_COMPILER = """#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit;;
--dryrun*) echo "#\\$ TOP=FOLDER"; exit;;
esac
for word in "$@"; do
    [ "$last" = -o ] && : >"$word" && echo "$word" >>FOLDER/made
    last="$word"
done
"""


def environment_without(*prefixes: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., list[str]]:
    """Builds the extensions by compilers that only pretend to; returns the names of what
    was made, and keeps it for the next build. The toolkit is a pretence too."""
    pytest.importorskip("setuptools", reason="building needs it")
    for name in ("bin/nvcc", "bin/cc"):
        tool = tmp_path / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(FAKE_COMPILER.replace("FOLDER", str(tmp_path)))
        tool.chmod(0o755)
    for name in ("include/cuda_runtime_api.h", "lib64/libcudart_static.a"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    cc = str(tmp_path / "bin/cc")
    kept = environment_without("YOLOV9MEM_") | {"CC": cc, "CUDA_HOME": str(tmp_path)}
    kept |= {"LDSHARED": f"{cc} -shared"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    command += ["--build-temp", str(tmp_path / "t"), "--build-lib", str(tmp_path / "l")]

    def run(**environment: str) -> list[str]:
        (tmp_path / "made").write_text("")
        subprocess.run(
            command, check=True, cwd=ROOT, env=kept | environment, capture_output=True
        )
        made = [Path(line).name for line in (tmp_path / "made").read_text().split()]
        return sorted(name.removesuffix(SUFFIX) for name in made)

    return run


SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KERNELS = sorted(f"{path.name}.o" for path in (ROOT / "csrc/cuda").glob("*.cu"))


def test_other_architectures_are_built(build) -> None:
    """As the message of a GPU without code says: by the next `pip install .`."""
    first = build(YOLOV9MEM_CUDA_ARCHS="90")
    assert {"_core", "_cuda", "plan.o", *KERNELS} <= set(first)
    assert build(YOLOV9MEM_CUDA_ARCHS="90") == []
    again = build(YOLOV9MEM_CUDA_ARCHS="90 120")
    assert "_cuda" in again and "_core" not in again
    assert [name for name in again if name.endswith(".cu.o")] == KERNELS
    assert build(YOLOV9MEM_CUDA_ARCHS="90 120") == []


def test_other_flags_are_built(build) -> None:
    build()
    again = build(YOLOV9MEM_DEBUG="1")
    assert {"_core", "_cuda", "plan.o"} <= set(again)
    assert not set(KERNELS) & set(again), "nvcc has the same flags"
    assert build(YOLOV9MEM_DEBUG="1") == []


def test_the_cuda_part_alone(build) -> None:
    made = build(YOLOV9MEM_CUDA="only")
    assert {"_cuda", *KERNELS} <= set(made)
    assert "_core" not in made and "plan.o" not in made


def test_a_build_without_cuda_leaves_none_of_the_last(build, tmp_path) -> None:
    build()
    library = tmp_path / f"l/yolov9mem/_cuda{SUFFIX}"
    assert library.exists()
    assert build(YOLOV9MEM_CUDA="0") == []
    assert not library.exists()
    assert build() != []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_builds_again_what_changed(tmp_path: Path) -> None:
    for name in (
        "csrc/core/a.c",
        "csrc/cuda/a.cu",
        "csrc/cuda/a.cuh",
        "pyproject.toml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("Makefile", "setup.py", "build_cuda.py"):
        shutil.copy(ROOT / name, tmp_path)
    pip = tmp_path / ".venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\necho "$*" >>pip.log\n')
    pip.chmod(0o755)
    (tmp_path / ".venv/.packages").touch()
    kept = environment_without("YOLOV9MEM_", "MAKE")

    def builds(**environment: str) -> bool:
        time.sleep(0.02)  # files' times are that coarse
        (tmp_path / "pip.log").write_text("")
        command = ["make", "--silent", "build"]
        subprocess.run(command, check=True, cwd=tmp_path, env=kept | environment)
        return (tmp_path / "pip.log").read_text() != ""

    assert builds()
    assert not builds()
    for name in ("csrc/core/a.c", "csrc/cuda/a.cu", "csrc/cuda/a.cuh", "build_cuda.py"):
        time.sleep(0.02)
        (tmp_path / name).touch()
        assert builds(), name
    assert builds(YOLOV9MEM_CUDA="1")
    assert not builds(YOLOV9MEM_CUDA="1")
    assert builds(YOLOV9MEM_CUDA="1", YOLOV9MEM_CUDA_ARCHS="90 120")
    assert builds()
