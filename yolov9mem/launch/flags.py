# SPDX-License-Identifier: MIT
"""Which command line flags a script defines by itself, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MOST_FILES = 100
OPTION = re.compile(r"--?[A-Za-z][\w-]*")


def own_flags(tree: ast.Module, path: Path) -> set[str]:
    """Every option string that the script gives to what makes its parser.

    A script that has none may have its parser in a module of its own folder: then
    those that it imports, and those that they import, are read.
    """
    found = _flags(tree)
    folder = path.parent
    waiting = [] if found else list(_imported(tree, path, folder))
    seen = {path}
    while waiting and not found and len(seen) < MOST_FILES:
        file = waiting.pop(0)
        if file in seen:
            continue
        seen.add(file)
        try:
            part = ast.parse(file.read_bytes(), str(file))
        except (OSError, SyntaxError, ValueError):
            continue  # the script will say what is wrong with it
        found = _flags(part)
        waiting += _imported(part, file, folder)
    return found


def _flags(tree: ast.Module) -> set[str]:
    """What calls are given by place: add_argument's, or add's, or click.option's."""
    return {
        word.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.args
        if isinstance(word, ast.Constant)
        and isinstance(word.value, str)
        and OPTION.fullmatch(word.value)
    }


def _imported(tree: ast.Module, path: Path, folder: Path) -> Iterator[Path]:
    """The files below the script's folder that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(path.parents):
                continue  # above the root: the script will say so
            base = folder if node.level == 0 else path.parents[node.level - 1]
            module = node.module or ""
            yield from _files(base, module)
            for alias in node.names:
                yield from _files(base, f"{module}.{alias.name}".lstrip("."))


def _files(base: Path, module: str) -> Iterator[Path]:
    place = base.joinpath(*module.split("."))
    for file in (place.with_suffix(".py"), place / "__init__.py"):
        if module and file.is_file():
            yield file
