# SPDX-License-Identifier: MIT
"""Under autocast only convolutions are in 16 bits: what is float32 in stock PyTorch, such
as an image that is added to the result, is as exact as there."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from emulated_gpu import autocast_of_a_gpu  # noqa: F401
from models_for_tests import (
    Brick,
    Elan,
    assert_same_training,
    image,
    leaves,
    ran_in_core,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import yolov9mem.torch as ym
from yolov9.model import DetectionModel
from yolov9mem.torch.recording.fakes import FakeCopy
from yolov9mem.torch.recording.record import record


class Features(nn.Module):
    """Features of an image, small beside it, and what is made of both."""

    def __init__(self, end: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.norm, self.elan = nn.BatchNorm2d(3), Elan(3, 8, 8)
        self.last, self.end = nn.Conv2d(8, 3, 1), end
        with torch.no_grad():
            self.last.weight.mul_(0.05), self.last.bias.mul_(0.05)

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.elan(x))

    def forward(self, x: Tensor) -> object:
        return self.end(self, x)


def in_place(net: Features, x: Tensor) -> Tensor:
    y = net.features(x)
    y += x
    return y


def pooled(net: Features, x: Tensor) -> list[Tensor]:
    small = F.avg_pool2d(x, 2)
    return [small, F.max_pool2d(x, 2), x[:, 1:], net.features(small)]


def twice(net: Features, x: Tensor) -> Tensor:
    x = x + net.features(x)
    return x + net.features(F.relu(x))


def as_one(net: Features, x: Tensor) -> Tensor:
    both = torch.cat((x, net.features(x)), 1)
    return net.features(F.max_pool2d(both, 3, 1, 1)[:, 2:5])


# The function, and how many stages a strict recording has.
ENDS = {
    "image added": (lambda net, x: x + net.features(x), 1),
    "image added in place": (in_place, 1),
    "image handed out": (pooled, 1),
    "norm of the image": (lambda net, x: [net.norm(x), net.features(net.norm(x))], 2),
    "norm of the sum": (lambda net, x: net.norm(x + net.features(x)), 2),
    "float32 in between": (twice, 2),
    "rounded by the next convolution": (as_one, 1),
}


def errors(module: nn.Module, exact: nn.Module) -> list[tuple[float, torch.dtype]]:
    """Of each output, the image's gradient and the running statistics of its norm."""
    made = []
    for net in (module, exact):
        dtype = next(net.parameters()).dtype
        x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        x = (x + 1).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=net is module):
            out = leaves(net(x))
        sum(y.to(dtype).square().sum() for y in out).backward()
        made.append([*out, x.grad, net.norm.running_mean, net.norm.running_var])
    return [
        (float((a.double() - b).norm() / b.norm().clamp(min=1e-30)), a.dtype)
        for a, b in zip(*[[x.detach() for x in part] for part in made], strict=True)
    ]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ENDS)
def test_float32_values_are_as_exact_as_stock_s(name: str, strict: bool) -> None:
    torch.manual_seed(0)
    end, stages = ENDS[name]
    stock = Features(end)
    exact = copy.deepcopy(stock).double()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=strict)
    made, expected = (errors(net, copy.deepcopy(exact)) for net in (ours, stock))
    assert [dtype for _, dtype in made] == [dtype for _, dtype in expected]
    for (a, _), (b, _) in zip(made, expected, strict=True):
        assert a <= 2 * b + 1e-7
    assert ran_in_core(ours) == 1
    detail = ym.report(ours).rows[0].detail
    assert ("stages" in detail) == (stages > 1)
    assert stages == 1 or f"in {stages} stages" in detail


def test_float32_alone_stays_one_graph() -> None:
    stock = Features(ENDS["norm of the sum"][0])
    ours = ym.checkpoint(stock)
    ours(torch.rand(2, 3, 32, 32))
    (row,) = ym.report(ours).rows
    assert row.detail == "keep=conv"


def test_a_size_needs_one_dtype() -> None:
    """Graphs of several dtypes have a plan each, of which none knows the others' bytes."""
    ours = ym.checkpoint(Features(ENDS["norm of the sum"][0]), keep="1GB", strict=False)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="needs the whole module in one graph"),
    ):
        ours(torch.rand(2, 3, 32, 32))


def test_a_division_by_dtypes_is_refused_by_name() -> None:
    """Each norm of float32 is a graph, and so is each convolution between."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for norm, conv in zip(self.norms, self.convs):
                x = x + conv(norm(x))
            return x

    ours, words = ym.checkpoint(Stream()), "divide 3 convolutions into 6 stages"
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ym.CannotLower, match=words),
    ):
        ours(torch.rand(2, 3, 8, 8))


class Attended(nn.Module):
    """Stock calls that autocast casts the argument for, and then bricks."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call, self.rest = call, nn.Sequential(Brick(8, 8, 3), Brick(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.call(x))


@pytest.mark.parametrize(
    "call",
    [
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.Linear(8, 8),
        lambda x: F.scaled_dot_product_attention(x, x, x),
    ],
    ids=["transposed", "linear", "attention"],
)
def test_autocasts_copies_of_an_input_that_learns(call: Callable[..., Tensor]) -> None:
    """Autocast would keep those of the recording's fakes: it goes on to keep the others."""
    torch.manual_seed(1)
    stock = Attended(call)
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    with torch.autocast("cpu", torch.bfloat16):
        x = image(2, 8, 8).requires_grad_()
        assert_same_training(ours, stock, x, tolerance=0.1)
        assert torch.is_autocast_cache_enabled()
    assert ym.report(ours).rows[0].state == "swapped"


@pytest.mark.usefixtures("autocast_of_a_gpu")
@pytest.mark.parametrize("name", ["yolov9-t", "yolov9-c", "gelan-e", "yolov9-e"])
def test_a_detector_is_one_graph_on_a_gpu(name: str) -> None:
    """Where autocast makes float32 of upsampling and sums, as the CPU's does not."""
    model = DetectionModel(name).train().requires_grad_(False)
    leaves, spec = tree_flatten(((torch.empty(2, 3, 64, 64),), {}))
    done = record(FakeCopy(model), leaves, spec, True)
    assert len(done.parts) == 1
    made = {node.op for node in done.nodes if node.dtype is torch.float32}
    assert "upsample" in made and ("add" in made or name == "yolov9-t")
