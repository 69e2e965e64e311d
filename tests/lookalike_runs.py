# SPDX-License-Identifier: MIT
"""Runs tests/lookalike/train_lookalike.py in this process, launched or stock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import official_chain
import pytest

import yolov9mem
from yolov9mem.launch import script
from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch

FOLDER = Path(__file__).parent / "lookalike"
SCRIPT = FOLDER / "train_lookalike.py"
NO_EQUAL_BITS = official_chain.why_not_equal()


class Run:
    """One run: its trace, its folder, and the launch that was on."""

    def __init__(self, folder: Path, launch: Launch | None, namespace: Any) -> None:
        self.folder, self.launch, self.namespace = folder, launch, namespace
        self.trace: dict[str, Any] = json.loads((folder / "trace.json").read_text())

    def __getitem__(self, name: str) -> Any:
        return self.trace[name]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The start table."""
        assert self.launch is not None
        return self.launch.lines

    @property
    def start(self) -> dict[str, str]:
        """The start table, the last line of each name."""
        return dict(self.lines)


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    arguments: str = "",
    settings: Settings | None = None,
    edits: tuple[tuple[str, str], ...] = (),
) -> Run:
    """Runs the script; settings None: without yolov9mem. edits: of its source."""
    monkeypatch.syspath_prepend(str(FOLDER))
    words = ["--save-dir", str(folder), *arguments.split()]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    source = SCRIPT.read_text()
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    path = folder.with_suffix(".py")
    path.write_text(source)
    program = script.find(str(path), is_module=False)
    assert program.tree is not None
    launch, applied = None, ()
    if settings is not None:
        if settings.accumulate is not None:
            assert script.set_accumulate(program.tree, settings.accumulate) == 2
            applied = ("accumulate",)
        launch = Launch(settings, "train_lookalike.py", tuple(words), applied)
    namespace: dict[str, Any] = {"__name__": "lookalike", "__file__": str(SCRIPT)}
    try:
        if launch is not None:
            launch.start()
        exec(compile(program.tree, str(path), "exec"), namespace)
        namespace["main"](namespace["parse_opt"]())
    finally:
        if launch is not None:
            launch.finish()
            launch.stop()
    return Run(folder, launch, namespace)


PACKAGE = str(Path(yolov9mem.__file__).parents[1])
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([PACKAGE, str(FOLDER.parent)]),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
}


def command(*words: object) -> list[str]:
    return [sys.executable, *map(str, words)]


def python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env=ENVIRONMENT, cwd=FOLDER, capture_output=True, text=True
    )
