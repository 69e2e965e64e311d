# SPDX-License-Identifier: MIT
"""torch.optim.SGD as a launched script finds it: made, told apart, copied, pickled."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolov9mem.launch.cli import Settings
from yolov9mem.launch.launch import Launch
from yolov9mem.torch import AccumulatingSGD

STOCK = torch.optim.SGD
OPTIONS = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


@pytest.fixture
def launched() -> Iterator[None]:
    launch = Launch(Settings())
    launch.start()
    yield
    launch.stop()
    assert torch.optim.SGD is STOCK


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        net(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def pair(kind: type, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = make_net()
    return net, kind(net.parameters(), 0.1, **{**OPTIONS, **options})


@pytest.mark.usefixtures("launched")
def test_what_is_an_sgd_in_stock_is_one_to_a_launched_script() -> None:
    class Own(torch.optim.SGD):
        pass

    parameters = [nn.Parameter(torch.ones(3))]
    plain, own = torch.optim.SGD(parameters, 0.1), Own(parameters, 0.1)
    fused = torch.optim.SGD(parameters, 0.1, fused=True)
    others = torch.optim.Adam(parameters), None
    for made in (plain, own, fused):
        assert isinstance(made, torch.optim.SGD) and isinstance(made, STOCK)
        torch.optim.lr_scheduler.LambdaLR(made, float)
    assert not any(isinstance(other, torch.optim.SGD) for other in others)
    assert [isinstance(made, Own) for made in (plain, own, fused)] == [0, 1, 0]
    assert issubclass(STOCK, torch.optim.SGD) and issubclass(Own, torch.optim.SGD)
    assert not issubclass(torch.optim.Adam, torch.optim.SGD)
    assert not issubclass(torch.optim.SGD, Own) and not issubclass(STOCK, Own)


@pytest.mark.usefixtures("launched")
def test_a_fused_one_of_the_script_s_own_class_stays_of_it() -> None:
    class Counting(torch.optim.SGD):
        def __init__(self, parameters: Any, *args: Any, **options: Any) -> None:
            super().__init__(parameters, *args, fused=True, **options)
            self.count = 0

        def step(self, closure: Any = None) -> None:
            self.count += 1
            super().step(closure)

    net, ours = pair(Counting)
    other, stock = pair(STOCK, foreach=False)
    train(net, ours, 3), train(other, stock, 3)
    assert ours.count == 3
    assert isinstance(ours, AccumulatingSGD)
    assert torch.equal(net.weight, other.weight)
    assert type(pair(torch.optim.SGD, fused=True)[1]) is STOCK
    with pytest.raises(NotImplementedError, match="differentiable"):
        pair(Counting, differentiable=True)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy])
def test_copies_step_as_the_original(copied: Any) -> None:
    net, ours = pair(torch.optim.SGD)
    other, stock = pair(STOCK, foreach=False)
    train(net, ours), train(other, stock)
    net, ours = copied((net, ours)) if copied is copy.deepcopy else (net, copied(ours))
    assert type(ours) is torch.optim.SGD
    net(torch.ones(4, 3)).square().mean().backward()
    other(torch.ones(4, 3)).square().mean().backward()
    ours.step(), stock.step()
    assert torch.equal(net.weight, other.weight)
    assert torch.equal(net.weight.grad, other.weight.grad)  # the script zeroes


def through_pickle(what: Any) -> Any:
    return pickle.loads(pickle.dumps(what))


def through_python(what: Any) -> Any:
    """By the pickler that is written in Python."""
    file = io.BytesIO()
    pickle._Pickler(file).dump(what)
    return pickle.loads(file.getvalue())


def through_torch(what: Any) -> Any:
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("through", [through_pickle, through_python, through_torch])
def test_a_pickle_is_that_of_a_stock_sgd(through: Any) -> None:
    net, ours = pair(torch.optim.SGD)
    other, stock = pair(STOCK, foreach=False)
    train(net, ours), train(other, stock)
    net, ours = through((net, ours))
    assert type(ours) is STOCK
    assert vars(ours).keys() == vars(through(stock)).keys()
    train(net, ours, 2), train(other, stock, 2)
    assert torch.equal(net.weight, other.weight)
    assert through(torch.optim.SGD) is STOCK


SCRIPT = """
    import sys
    {refuse}
    import torch

    class Own(torch.optim.SGD):
        def twice(self):
            return 2 * self.param_groups[0]["lr"]

    {run}
"""
REFUSE = """
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "yolov9mem":
                raise ImportError("yolov9mem is not here")
    sys.meta_path.insert(0, Refuse())
"""
SAVE = """
    net = torch.nn.Linear(3, 2)
    made = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), Own(net.parameters(), 0.2)
    for optimizer in made:
        net(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert "AccumulatingSGD" in repr(made[0])
    torch.save({"made": made, "net": net}, sys.argv[1])
"""
OPEN = """
    there = torch.load(sys.argv[1], weights_only=False)
    plain, own = there["made"]
    assert not any(name.startswith("yolov9mem") for name in sys.modules)
    assert type(plain) is torch.optim.SGD and type(own) is Own and own.twice() == 0.4
    weight = there["net"].weight
    assert plain.param_groups[0]["params"][0] is weight
    assert plain.state[weight]["momentum_buffer"].shape == weight.shape
    for optimizer in (plain, own):
        there["net"](torch.ones(4, 3)).sum().backward()
        optimizer.step()
    print("opened")
"""


def test_a_launched_script_s_pickle_opens_without_yolov9mem(tmp_path: Path) -> None:
    def script(name: str, refuse: str, run: str) -> str:
        file = tmp_path / f"{name}.py"
        text = textwrap.dedent(SCRIPT)
        parts = {"refuse": textwrap.dedent(refuse), "run": textwrap.dedent(run)}
        file.write_text(text.format(**parts))
        return str(file)

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command, str(tmp_path / "last.pt")],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("-m", "yolov9mem", script("save", "", SAVE))
    assert "opened" in run(script("open", REFUSE, OPEN))
