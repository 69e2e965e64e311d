# SPDX-License-Identifier: MIT
"""When AccumulatingSGD takes the last step's table again, and when it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sgd_twins import OFFICIAL, Net
from torch import nn

from yolov9mem.torch import versions
from yolov9mem.torch.optimizer import table_cache
from yolov9mem.torch.optimizer.ema import ModelEMA
from yolov9mem.torch.optimizer.sgd import AccumulatingSGD


class Run:
    """Counts the tables that are made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        self.net = Net()
        self.ema = ModelEMA(self.net)
        self.optimizer = AccumulatingSGD(
            self.net.parameters(), ema=self.ema, model=self.net, **OFFICIAL
        )
        self.made = 0
        stock = table_cache.StepTable

        def counted(*args: object) -> object:
            self.made += 1
            return stock(*args)  # type: ignore[arg-type]

        patch.setattr(table_cache, "StepTable", counted)

    def step(self) -> None:
        """With new gradients, some in another place of memory than before."""
        for name, p in self.net.named_parameters():
            if p.requires_grad and not name.startswith("unused"):
                p.grad = torch.ones_like(p)
        self.optimizer.step()

    @property
    def weight(self) -> nn.Parameter:
        return self.net.conv.weight

    @property
    def buffer(self) -> torch.Tensor:
        return self.optimizer.state[self.weight]["momentum_buffer"]


@pytest.fixture(params=["guards", "columns"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    if request.param == "columns":
        monkeypatch.setattr(versions, "_GUARDS", None)
    elif versions._GUARDS is None:
        pytest.skip("this PyTorch has none")
    made = Run(monkeypatch)
    for _ in range(4):
        made.step()
    assert made.made == 2, "one without momentum buffers, one with them"
    return made


def new_memory(run: Run) -> None:
    run.weight.data = run.weight.data.clone()


def new_memory_of_an_average(run: Run) -> None:
    run.ema.ema.norm.running_var.data = torch.ones(13)


def another_layout(run: Run) -> None:
    run.weight.data = run.weight.data.as_strided(run.weight.shape, (1, 13, 39, 117))


def another_shape_of_a_buffer(run: Run) -> None:
    for net in (run.net, run.ema.ema):
        net.norm.running_var.data = net.norm.running_var.data.view(13, 1)


def another_momentum(run: Run) -> None:
    run.optimizer.state[run.weight]["momentum_buffer"] = run.buffer.clone()


def another_state(run: Run) -> None:
    run.optimizer.load_state_dict(run.optimizer.state_dict())


def no_momentum(run: Run) -> None:
    run.optimizer.param_groups[0]["momentum"] = 0.0


def another_module(run: Run) -> None:
    run.net.norm = nn.BatchNorm2d(13)


def another_tensor(run: Run) -> None:
    run.net.norm.running_mean = torch.zeros(13)


def another_gradient(run: Run) -> None:
    run.net.unused.bias.grad = torch.ones(3)


def another_frozen(run: Run) -> None:
    run.net.frozen.weight = nn.Parameter(torch.ones(7, 7, 1, 1), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [
        new_memory,
        new_memory_of_an_average,
        another_layout,
        another_shape_of_a_buffer,
        another_momentum,
        another_state,
        no_momentum,
        another_module,
        another_tensor,
        another_gradient,
        another_frozen,
    ],
)
def test_a_change_is_seen(run: Run, change: Callable[[Run], None]) -> None:
    change(run)
    run.step()
    assert run.made == 3


def test_a_gradient_of_another_layout_is_seen(run: Run) -> None:
    run.step()
    last = run.net.last.weight
    last.grad = torch.ones(last.shape)
    run.optimizer.step()
    assert run.made == 3
    assert "not laid out" in str(run.optimizer.fallback)


def test_a_sparse_gradient_is_refused(run: Run) -> None:
    """And ends no process."""
    weight = run.net.frozen.weight.requires_grad_()
    weight.grad = torch.ones_like(weight)
    run.optimizer.step()
    run.optimizer.step()
    made = run.made
    weight.grad = torch.ones_like(weight).to_sparse()
    with pytest.raises(TypeError, match="must be dense"):
        run.optimizer.step()
    assert run.made == made + 1


def test_what_guards_cannot_tell_is_asked_otherwise(run: Run) -> None:
    """Autocast changes what they see, and one gradient of two parameters is none."""
    with torch.autocast("cpu", torch.bfloat16):
        run.step()
    shared = torch.ones(13)
    run.net.norm.weight.grad = run.net.norm.bias.grad = shared
    with pytest.raises(ValueError, match="overlap"):
        run.optimizer.step()
    assert run.made == 2
