# SPDX-License-Identifier: MIT
"""Images in PyTorch's own layout, which the plan packs itself: beside the same module fed
channels_last, bit for bit, and what of them is held meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from allocations import peak_of
from emulated_gpu import emulated_gpu
from models_for_tests import (
    Brick,
    Elan,
    Net,
    assert_close,
    assert_same_gradients,
    backward,
    grads,
    image,
    leaves,
    pair,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running.registry import runner_of


def planar_of(module: nn.Module) -> tuple[torch.dtype | None, ...]:
    """Of the plan of the latest forward: the dtype of each input that comes planar."""
    (graph,) = runner_of(module).latest.graphs
    return graph.last.planar


def twins(make: Callable[[], nn.Module], **options: str) -> list[nn.Module]:
    """Two checkpointed modules with the same parameters."""
    torch.manual_seed(0)
    module = make()
    return [ym.checkpoint(m, **options) for m in (copy.deepcopy(module), module)]


def train(module: nn.Module, *images: Tensor) -> list[Tensor]:
    """Outputs, gradients of the parameters and of the images."""
    images = [x.detach().requires_grad_(x.requires_grad) for x in images]
    made = module(*images)
    backward(made)
    inputs = [x.grad for x in images if x.grad is not None]
    return [*leaves(made), *grads(module).values(), *inputs]


def assert_as_channels_last(make: Callable[[], nn.Module], *images: Tensor) -> None:
    """What comes planar gives the bits of what comes packed."""
    ours, other = twins(make)
    packed = [x.detach().contiguous(memory_format=torch.channels_last) for x in images]
    for x, y in zip(images, packed, strict=True):
        y.requires_grad_(x.requires_grad)
    made, expected = train(ours, *images), train(other, *packed)
    assert any(planar_of(ours)) and not any(planar_of(other))
    for a, b in zip(made, expected, strict=True):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        assert torch.equal(a.isnan(), b.isnan())


class Twice(nn.Module):
    """The image is read at the start, in part, and by a concat at the end."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.first, self.other = Brick(c, 8, 3), Brick(c // 2, 8, 3)
        self.last = Brick(16 + c, 4)

    def forward(self, x: Tensor) -> Tensor:
        part = x.chunk(2, 1)[1]
        return self.last(torch.cat((self.first(x), x, self.other(part)), 1))


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 4, 17, 13), (1, 4, 8, 8), (3, 34, 5, 9)], ids=str
)
def test_layouts_give_the_same_bits(shape: tuple[int, ...], wants: bool) -> None:
    """A gradient of the image is packed in either case."""
    x = torch.randn(shape).requires_grad_(wants)
    assert_as_channels_last(lambda: Twice(shape[1]), x)


@pytest.mark.parametrize("size", [1, 3, 16, 37])
@pytest.mark.parametrize("n", [1, 5])
def test_odd_sizes(n: int, size: int) -> None:
    make = lambda: nn.Sequential(Brick(17, 8, 3), Brick(8, 4))  # noqa: E731
    x = torch.randn(n, 17, size, size + 1)
    assert_as_channels_last(make, x)


def test_a_nan_and_an_infinity_stay() -> None:
    x = image()
    x[0, 1, 2, 3], x[1, 2, 3, 4] = torch.nan, torch.inf
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())  # noqa: E731
    assert_as_channels_last(make, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    """Images of float32 are rounded by the plan, those in its dtype only move."""
    (ours, other), x = twins(Net), image().to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(x)
        expected = other(x.bfloat16().contiguous(memory_format=torch.channels_last))
    backward(made)
    backward(expected)
    assert (planar_of(ours), planar_of(other)) == ((dtype,), (None,))
    both = zip(leaves(made), leaves(expected), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    assert_close(list(grads(ours).values()), list(grads(other).values()), 0)


@pytest.mark.parametrize("kind", ["auto", "cuda:plain"])
def test_on_an_emulated_gpu(kind: str) -> None:
    """In float16, with and without cuDNN, again and again at two addresses."""
    with emulated_gpu():
        ours, other = twins(Net, backend=kind)
        for x in (image(), image() + 1, *[image(size=18)[..., :16, :16]] * 2):
            packed = x.half().contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.float16):
                made, expected = train(ours, x), train(other, packed)
            for a, b in zip(made, expected, strict=True):
                assert torch.equal(a, b)
            ours.zero_grad()
            other.zero_grad()


class TestMemory:
    """What is allocated beside the image, which is half of what the module holds."""

    def net(self) -> nn.Module:
        late = nn.Sequential(Brick(4, 8, 3, 2), Elan(8, 16, 8), nn.Conv2d(16, 32, 3))
        return nn.Sequential(Brick(3, 4, 3, 4), late)

    def peak(self, module: nn.Module, x: Tensor) -> int:
        backward(module(x))
        module.zero_grad(set_to_none=False)
        out = module(x)
        return peak_of(lambda: backward(out))

    def test_the_packed_image_is_gone_when_backward_begins(self) -> None:
        """With a packed one's peak, that of channels_last, or less than the image more:
        where it was a copy of the adapter's it was added to it."""
        x = image(2, 3, 128)
        ours, other = twins(self.net, keep="min")
        mine = self.peak(ours, x)
        theirs = self.peak(other, x.contiguous(memory_format=torch.channels_last))
        assert mine < theirs + x.nbytes / 2

    def test_the_report_counts_it_in_the_plan(self) -> None:
        ours = ym.checkpoint(self.net())
        backward(ours(image(2, 3, 128)))
        rows = ym.report(ours).tables[""]
        assert (rows[0]["op"], rows[0]["state"]) == ("planar_input", "rebuilt")


def test_another_layout_has_another_plan() -> None:
    """Each is made once; results are stock's whichever way they take turns."""
    ours, stock = pair(lambda: Elan(6, 8, 4))
    x = image(2, 6)
    ways = [
        x,
        x.contiguous(memory_format=torch.channels_last),
        image(4, 6)[1:3],
        image(2, 6, 20)[..., 2:-2, 2:-2],
        image(1, 6).expand(2, -1, -1, -1),
        x.transpose(2, 3),
    ]
    for y in [*ways, *ways[::-1]]:
        assert_close(train(ours, y), train(stock, y), 1e-3)
        assert planar_of(ours) == (torch.float32 if y.is_contiguous() else None,)
        ours.load_state_dict(stock.state_dict())
        ours.zero_grad()
        stock.zero_grad()
    assert ym.report(ours).rows[0].plans == 2


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 5, 1, 1)])
def test_what_is_packed_in_either_layout_is_read_in_place(shape: tuple) -> None:
    make = lambda: nn.Sequential(nn.Conv2d(shape[1], 6, 1), nn.SiLU())  # noqa: E731
    ours, stock = pair(make)
    x = torch.randn(shape)
    assert_close(train(ours, x), train(stock, x), 1e-3)
    assert planar_of(ours) == (None,)
    assert ym.report(ours).rows[0].inputs_converted == 0


def test_other_dtypes_are_converted_as_before() -> None:
    ours, stock = pair(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU()))
    x = image()
    with torch.autocast("cpu", torch.bfloat16):
        made, expected = train(ours, x.half()), train(stock, x.half())
    assert planar_of(ours) == (None,)
    assert_close(made, expected, 0.1)


def test_an_image_changed_before_backward_is_refused() -> None:
    module, x = ym.checkpoint(Elan(3, 8, 4)), image()
    out = module(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward(out)


@pytest.mark.parametrize(
    "unpack",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.double(),
        lambda x: x.clone(),
    ],
)
def test_autograd_may_give_back_another_tensor(unpack: Callable) -> None:
    """As hooks do that hold what is saved elsewhere."""
    ours, stock = pair(lambda: Elan(3, 8, 4))
    x = image()

    def give(tensor: Tensor) -> Tensor:
        return unpack(tensor) if tensor.shape == x.shape else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, give):
        made = ours(x)
    backward(made)
    backward(stock(x))
    assert planar_of(ours) == (torch.float32,)
    assert_same_gradients(ours, stock)
