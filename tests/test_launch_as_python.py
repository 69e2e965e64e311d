# SPDX-License-Identifier: MIT
"""A launched script finds itself as under plain python: started by a name in the working
folder it prints the same, fails with the same traceback and has the same exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import yolov9mem

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(yolov9mem.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
WHERE_IT_IS = """\
import os, sys
import beside
os.chdir("/")
print(__file__, os.path.exists(__file__), sys.argv, sys.path[0])
"""
SCRIPTS = {
    "moved": WHERE_IT_IS,
    "names": "print(__builtins__.len, __name__, __package__, __spec__, __doc__)\n",
    "warned": "import warnings\nwarnings.warn('so so')\nassert False, 'no'\n",
    "caused": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError from e",
    "unread": "print('not shown')\nx = = 3\n",
    "uncompiled": "print('not shown')\nreturn 3\n",
    "evaluates": "eval('1 +')\n",
}


def run(folder: Path, *words: str) -> tuple[str, str, int]:
    done = subprocess.run(
        [sys.executable, *words], env=ENVIRONMENT, cwd=folder, capture_output=True
    )
    errors = [
        line
        for line in done.stderr.decode().splitlines()
        if not line.startswith("yolov9mem: nothing to swap")
    ]
    return done.stdout.decode(), "\n".join(errors), done.returncode


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_of_the_working_folder_runs_as_under_python(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / f"{name}.py").write_text(SCRIPTS[name])
    (tmp_path / "beside.py").write_text("")
    stock = run(tmp_path, f"{name}.py")
    assert run(tmp_path, "-m", "yolov9mem", f"{name}.py") == stock


def test_so_does_one_behind_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "script.py").write_text(WHERE_IT_IS)
    (real / "beside.py").write_text("")
    (tmp_path / "link.py").symlink_to(real / "script.py")
    stock = run(tmp_path, "link.py")
    assert stock[0].startswith(f"{tmp_path / 'link.py'} True"), stock
    assert run(tmp_path, "-m", "yolov9mem", "link.py") == stock


def test_without_stderr_stdout_is_the_script_s_alone(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text("print('mine')\n")
    words = f"exec '{sys.executable}' -m yolov9mem prints.py 2>&-"
    done = subprocess.run(
        ["sh", "-c", words], env=ENVIRONMENT, cwd=tmp_path, capture_output=True
    )
    assert (done.stdout, done.returncode) == (b"mine\n", 0)


PENALTY = """\
import torch
from torch.nn import BatchNorm2d, Conv2d, ReLU, Sequential
model = Sequential(Conv2d(3, 8, 3), BatchNorm2d(8), ReLU(), Conv2d(8, 8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.rand(2, 3, 16, 16).requires_grad_()
found = model(images).square().mean()
(gradient,) = torch.autograd.grad(found, images, create_graph=True)
gradient.square().sum().backward()
print("trained")
"""


def test_where_the_model_must_be_stock_the_flag_is_named(tmp_path: Path) -> None:
    (tmp_path / "penalty.py").write_text(PENALTY)
    out, errors, code = run(tmp_path, "-m", "yolov9mem", "penalty.py")
    assert (out, code) == ("", 1)
    assert "yolov9mem: with --ckpt off the model runs in stock PyTorch" in errors
    out, errors, code = run(tmp_path, "-m", "yolov9mem", "penalty.py", "--ckpt", "off")
    assert (out, code) == ("trained\n", 0), errors
