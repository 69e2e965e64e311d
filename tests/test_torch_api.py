# SPDX-License-Identifier: MIT
"""checkpoint(), release() and report() themselves: arguments, errors, figures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from models_for_tests import (
    JIT,
    Brick,
    Net,
    backward,
    image,
    trains_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym


@pytest.mark.parametrize(
    "keep", ["everything", "", "GB", "-3GB", 0, -1, None, 1.5, True, "0MB"]
)
def test_bad_keep(keep) -> None:
    with pytest.raises(
        ValueError, match=r"keep: is .*must be 'all', 'conv', 'min' or a size"
    ):
        ym.checkpoint(Brick(3, 4), keep)


@pytest.mark.parametrize("keep", ["6GB", "1.5 GiB", "300MB", 10**9])
def test_sizes(keep) -> None:
    module = ym.checkpoint(Net(), keep)
    assert trains_in_core(module)


def test_a_budget_is_kept_to_and_the_smallest_possible_is_named() -> None:
    x = image(2, 3, 64)
    peaks = {}
    for keep in ("all", "conv", "min"):
        module = ym.checkpoint(Net(), keep)
        backward(module(x))
        peaks[keep] = ym.report(module).rows[0].peak_bytes - x.nbytes
    budget = (peaks["min"] + peaks["all"]) // 2
    module = ym.checkpoint(Net(), budget)
    backward(module(x))
    assert ym.report(module).rows[0].peak_bytes - x.nbytes <= budget
    with pytest.raises(ValueError, match=str(peaks["min"])):
        ym.checkpoint(Net(), 1000)(x)


@JIT
def test_bad_modules() -> None:
    for call in (ym.release, ym.report):
        with pytest.raises(
            TypeError, match=r"module: is a NoneType, must be a torch\.nn"
        ):
            call(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: is a int, must be a torch"):
        ym.ModelEMA(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="head: Identity has no attribute 'nc'"):
        ym.DetectionLoss(nn.Identity(), {})
    head = SimpleNamespace(nc=1, reg_max=16, stride=torch.tensor([8.0]))
    with pytest.raises(ValueError, match="hyp: has no 'dfl'"):
        ym.DetectionLoss(head, {"box": 7.5, "cls": 0.5})
    with pytest.raises(TypeError, match="module: is a function"):
        ym.checkpoint(lambda x: x)
    with pytest.raises(TypeError, match=r"is a DataParallel, checkpoint its \.module"):
        ym.checkpoint(nn.DataParallel(Brick(3, 4)))
    with pytest.raises(TypeError, match="ScriptModule"):
        ym.checkpoint(torch.jit.script(nn.SiLU()))


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"segments": 0}, ValueError, "segments: is 0, must be 1 to"),
        ({"segments": True}, TypeError, "segments: is True, must be a whole number"),
        ({"segments": 2.5}, TypeError, "segments: is 2.5, must be a whole number"),
        ({"backend": 3}, TypeError, "backend: is 3, must be a str"),
        ({"backend": None}, TypeError, "backend: is None, must be a str"),
        ({"backend": "gpu"}, ValueError, "backend: is 'gpu', must be one of auto, cpu"),
        ({"strict": "no"}, TypeError, "strict: is 'no', must be True or False"),
        ({"cuda_graphs": "no"}, TypeError, "cuda_graphs: is 'no', must be True or"),
    ],
)
def test_bad_options(option, error, words) -> None:
    with pytest.raises(error, match=words):
        ym.checkpoint(Brick(3, 4), **option)


def test_the_report_prints() -> None:
    module = nn.Sequential(ym.checkpoint(Brick(3, 4)), nn.Sigmoid(), Brick(4, 4))
    text = str(ym.report(module))
    assert "waiting" in text
    backward(module(image()))
    text = str(ym.report(module))
    assert "0 Brick" in text
    assert "swapped" in text
    assert "keep=conv" in text
    heading, rule, *values = ym.report(module).plan("0").splitlines()
    assert heading.split("  ")[0] == "value" and set(rule) == {"-"}
    assert any(line.endswith("kept") for line in values)
    with pytest.raises(KeyError, match="has no plan"):
        ym.report(module).plan("2")
    assert "nothing is checkpointed" in str(ym.report(nn.SiLU()))


def test_checkpoint_again_changes_keep() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    conv = ym.report(module).rows[0].held_bytes
    backward(ym.checkpoint(module, "min")(image()))
    assert ym.report(module).rows[0].held_bytes < conv


def test_a_report_counts_parts_once() -> None:
    """As of Darknet's YOLO layer, which sizes its grid in the first forward: the parts ran
    then, and the whole runs since."""

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.body = 0, nn.Sequential(Brick(3, 8, 3), Brick(8, 8, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            if self.side != x.shape[-1]:
                self.side = x.shape[-1]
            return x

    ours = ym.checkpoint(Grid(), strict=False)
    rows = []
    for _ in range(2):
        ours(image()).sum().backward()
        found = ym.report(ours).rows
        rows.append([row.path for row in found if row.state == "swapped"])
    assert rows == [["body"], [""]]
    ours.body(image()).sum().backward()  # somebody calls it by itself
    assert [row.path for row in ym.report(ours).rows] == ["", "body"]


def body(c: int = 8) -> nn.Sequential:
    bricks = Brick(3, c, 3), Brick(c, c, 3), nn.Sequential(nn.GroupNorm(2, c))
    return nn.Sequential(nn.Sequential(*bricks[:2]), bricks[2], Brick(c, c, 3))


def test_a_report_when_a_part_that_stayed_stock_has_gone() -> None:
    """Replaced, for fine-tuning."""
    ours = ym.checkpoint(body(), strict=False)
    ours(image()).sum().backward()
    paths = [row.path for row in ym.report(ours).rows]
    assert paths == ["", "1.0"]
    ours[1] = Brick(8, 8)
    assert [row.path for row in ym.report(ours).rows] == [""]


def test_a_report_of_parts_that_have_taken_over() -> None:
    ours = ym.checkpoint(body(), strict=False)
    ours(image()).sum().backward()
    (whole, _), x = ym.report(ours).rows, image()
    ours[2].register_forward_hook(lambda *_: None)
    with pytest.warns(ym.StockForwardWarning, match="has a hook"):
        ours(x).sum().backward()
    row, *parts = ym.report(ours).rows
    assert (row.state, row.held_bytes, row.calls) == ("stock", 0, 0)
    assert "has a hook" in row.detail
    assert [part.path for part in parts if part.state == "swapped"] == ["0", "2"]
    assert sum(part.stock_bytes for part in parts) <= whole.stock_bytes
