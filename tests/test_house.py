# SPDX-License-Identifier: MIT
"""The limits of the house, checked by a machine: sizes, layers, licence lines."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("csrc", "yolov9mem", "tests", "benchmarks", "examples")
C_PATTERNS = ("*.c", "*.h", "*.cu", "*.cuh", "*.cpp")
SOURCES = sorted(
    path
    for folder in FOLDERS
    for pattern in (*C_PATTERNS, "*.py", "*.pyi")
    for path in (ROOT / folder).rglob(pattern)
)
C_SOURCES = [path for path in SOURCES if f"*{path.suffix}" in C_PATTERNS]
# The library itself; tests/arm is a program that says what it found.
LIBRARY = [path for path in C_SOURCES if ROOT / "csrc" in path.parents]
# Ends the process where a kernel is wrong: the emulation's scheduler, of tests alone.
SCHEDULER = ROOT / "csrc/emulation/threads.cpp"
# Each folder of csrc may use those before it, and itself.
LAYERS = ("core", "math", "ops", "ref", "cpu", "cuda", "python", "python_cuda")
TOP_LEVEL = {
    *FOLDERS, ".ci", ".clang-format", ".gitignore", "CONTRIBUTING.md", "LICENSE",
    "MANIFEST.in", "Makefile", "README.md", "build_cuda.py", "pyproject.toml", "setup.py",
}  # fmt: skip
FILE_LINES = 400
FUNCTION_LINES = 60  # about 50, says CONTRIBUTING.md


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of the functions of a formatted C file: `{` and `}` at column 0."""
    found = []
    lines = path.read_text().split("\n")
    begin = None
    for i, line in enumerate(lines):
        if line == "{":
            begin = i
        elif line.startswith("}") and begin is not None:
            head = " ".join(lines[max(0, begin - 6) : begin])
            name = re.findall(r"(\w+)\(", head)
            found.append((name[-1] if name else "?", i - begin + 1))
            begin = None
    return found


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of what an import statement names; the whole module is ""."""
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "", alias.name) for alias in node.names]
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    return []


def test_there_is_something_to_check() -> None:
    assert len(C_SOURCES) > 50
    assert sum(len(functions(path)) for path in C_SOURCES) > 300


def test_the_top_level_has_nothing_else() -> None:
    """A log or a scratch file is committed easily, and not seen for long."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git work tree: what is tracked is not known")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip(f"git does not tell what is tracked: {listed.stderr.strip()}")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} <= TOP_LEVEL


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}: {name} has {lines} lines"
        for path in C_SOURCES
        for name, lines in functions(path)
        if lines > FUNCTION_LINES
    ]
    assert not long


def test_the_makefile_formats_every_file() -> None:
    made = subprocess.run(
        ["make", "--no-print-directory", "-f", "-", "shown"],
        input="include Makefile\nshown: ; @echo $(C_FORMATTED)\n",
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert sorted(made.stdout.split()) == sorted(map(name_of, C_SOURCES))


def test_licence_lines() -> None:
    missing = [
        name_of(path)
        for path in SOURCES
        if "SPDX-License-Identifier: MIT" not in path.read_text()[:120]
    ]
    assert not missing


def test_layers_use_those_before_them() -> None:
    wrong = []
    for path in LIBRARY:
        layer = path.relative_to(ROOT / "csrc").parts[0]
        for used in re.findall(r'^#include "(\w+)/', path.read_text(), re.MULTILINE):
            if layer in LAYERS and used not in LAYERS[: LAYERS.index(layer) + 1]:
                wrong.append(f"{name_of(path)} includes {used}/")
    assert not wrong


def test_tests_import_no_helpers_from_one_another() -> None:
    """Those are modules of their own. Tests may be run again, on another device."""
    wrong = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for module, name in imported(node):
                if module.startswith("test_") and not name.startswith(("test_", "*")):
                    wrong.append(f"{name_of(path)} imports {name} of {module}")
    assert not wrong


def test_python_stays_in_its_folder() -> None:
    wrong = [
        name_of(path)
        for path in C_SOURCES
        if "<Python.h>" in path.read_text() and "python" not in path.parent.name
    ]
    assert not wrong


def test_torch_stays_in_its_folder() -> None:
    wrong = [
        name_of(path)
        for path in (ROOT / "yolov9mem").glob("*.py")
        if re.search(r"^\s*(import|from) torch\b", path.read_text(), re.MULTILINE)
    ]
    assert not wrong


def test_nothing_prints_or_exits_in_c() -> None:
    call = re.compile(r"(?<![\w.])(printf|puts|exit|abort|perror)\s*\(")
    wrong = [
        f"{name_of(path)}: {match[0]}"
        for path in LIBRARY
        if path != SCHEDULER
        for match in call.finditer(path.read_text())
    ]
    assert not wrong


def test_no_open_ends() -> None:
    words = re.compile(
        r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b"
    )
    wrong = [name_of(path) for path in SOURCES if words.search(path.read_text())]
    assert not wrong


@pytest.mark.parametrize(
    "package",
    ["torch", "torch/recording", "torch/running", "torch/optimizer", "launch"],
)
def test_the_map_of_a_package_is_whole(package: str) -> None:
    folder = ROOT / "yolov9mem" / package
    head = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    named = set(re.findall(r"\w+", head))
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert modules <= named
