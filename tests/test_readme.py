# SPDX-License-Identifier: MIT
"""README.md is executed: its Python runs, its commands and folders exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(code_blocks("python"))))
def test_python_runs(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = code_blocks("python")[number]
    exec(compile(source, f"README.md, block {number}", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out


def test_the_example_of_use_is_short() -> None:
    assert len(code_blocks("python")[0].strip().splitlines()) <= 20


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make\s+(\w+)", TEXT, re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "sanitize"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_options_of_the_example_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from yolov9 import options

    commands = [
        block.replace("\\\n", " ")
        for block in code_blocks("sh")
        if "examples/train_dual.py" in block
    ]
    assert commands
    for command in commands:
        arguments = command.split()
        script = next(i for i, a in enumerate(arguments) if a.endswith(".py"))
        assert (ROOT / arguments[script]).exists()
        options.parser().parse_args(arguments[script + 1 :])
    assert "yolov9" in sys.modules


# What is installed under another name than it is imported by.
INSTALLED_AS = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}


def imported_by_the_example() -> set[str]:
    """What is neither Python's nor the example's own; yolov9mem is imported by name."""
    found = set()
    for path in (ROOT / "examples").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module)
    packages = {name.split(".")[0] for name in found}
    return packages - sys.stdlib_module_names - {"yolov9"}


def packages(name: str) -> set[str]:
    """Those of a list of pyproject.toml, without versions."""
    project = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(rf"^{name} = \[(.*?)\]$", project, re.MULTILINE | re.DOTALL)
    return set(re.findall(r'"([\w-]+)', listed))


def test_what_the_example_imports_is_installed() -> None:
    """All of it, and nothing else, by the command that README.md names."""
    extras = re.findall(r"^pip install '\.\[(\w+)\]'", TEXT, re.MULTILINE)
    assert "examples" in extras and all(map(packages, extras))
    imported = {INSTALLED_AS.get(name, name) for name in imported_by_the_example()}
    assert imported == packages("dependencies") | packages("examples")


def test_the_launched_command_is_understood() -> None:
    from yolov9mem.launch.cli import parse

    blocks = [b for b in code_blocks("sh") if "-m yolov9mem train" in b]
    assert blocks
    for block in blocks:
        words = block.replace("\\\n", " ").replace("''", "").split()
        settings = parse(words[words.index("yolov9mem") + 1 :]).settings
        assert settings.keep == "conv"
        assert settings.accumulate == 4


def test_folders_exist() -> None:
    table = TEXT[TEXT.index("## Map") :]
    folders = re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE)
    assert len(folders) >= 8
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder


def test_tables_are_rendered_and_not_typed() -> None:
    """Every figure of memory or time stands between the renderer's markers."""
    outside = re.sub(r"<!-- table:.*?<!-- /table -->", "", TEXT, flags=re.DOTALL)
    assert not re.search(r"\b\d+(\.\d+)? (MB|GB|ms|s)\b", outside)
