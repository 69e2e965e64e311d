# SPDX-License-Identifier: MIT
"""Small modules in the style of the YOLOv9 family, for the tests of the torch adapter."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from allocations import held_by
from torch import Tensor, nn

JIT = pytest.mark.filterwarnings("ignore:.*torch.jit")
TELLS_OF_HOOKS = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="this PyTorch does not tell which saved_tensors_hooks there are",
)
TELLS_OF_RETAINING = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_get_current_graph_task_keep_graph"),
    reason="this PyTorch does not tell whether a graph is retained",
)


class Brick(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


class Apply(nn.Module):
    """A brick, a function, a convolution."""

    def __init__(self, function, c: int = 8, c2: int | None = None) -> None:
        super().__init__()
        self.first, self.function = Brick(3, c, 3), function
        self.last = nn.Conv2d(c2 or c, 4, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Rep(nn.Module):
    """Two branches, summed with the zero that the field adds."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = Brick(c, c, 3), Brick(c, c, 1)
        self.a.act = self.b.act = nn.Identity()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.a(x) + self.b(x) + 0)


class Elan(nn.Module):
    """chunk, branches, cat."""

    def __init__(self, c1: int, c2: int, c: int) -> None:
        super().__init__()
        self.cv1 = Brick(c1, 2 * c)
        self.cv2 = nn.Sequential(Rep(c), Brick(c, c, 3))
        self.cv3 = Brick(3 * c, c2)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.append(self.cv2(y[-1]))
        return self.cv3(torch.cat(y, 1))


class Net(nn.Module):
    """An image to two heads of two levels each, by all calls of the family."""

    def __init__(self, nc: int = 3) -> None:
        super().__init__()
        self.stem = Brick(3, 8, 3, 2)
        self.elan = Elan(8, 16, 8)
        self.down = Brick(16, 16, 3, 2)
        self.side = nn.Conv2d(16, 24, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.spp = Brick(32, 16)
        self.aux = nn.ModuleList(nn.Conv2d(c, nc, 1) for c in (16, 16))
        self.main = nn.ModuleList(
            nn.Sequential(Brick(c, 8, 3, g=4), nn.Conv2d(8, nc, 1)) for c in (16, 16)
        )

    def forward(self, x: Tensor, augment: bool = False) -> list[list[Tensor]]:
        if augment:
            x = x.flip(3)
        fine = self.elan(self.stem(x))
        part, other = self.side(fine).split([8, 16], 1)
        coarse = self.down(F.avg_pool2d(fine, 2, 1, 0, False, True))
        coarse = self.spp(torch.cat((coarse, self.pool(coarse)), 1))
        up = F.interpolate(coarse, size=fine.shape[2:], mode="nearest")
        fine = torch.sum(torch.stack([up, other, fine]), dim=0)
        fine = torch.cat((fine[:, :8], part), 1)
        levels = [fine, coarse]
        return [
            [head(level) for head, level in zip(heads, levels)]
            for heads in (self.aux, self.main)
        ]


class Attention(nn.Module):
    """As in YOLOv10 and 11: positions by a convolution of the reshaped values."""

    def __init__(self, c: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Conv2d(c, 3 * c, 1), Brick(c, c)
        self.positions = Brick(c, c, 3, g=c)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).view(n, self.heads, -1, h * w).chunk(3, 2)
        weights = (q.transpose(-2, -1) @ k).mul(c**-0.5).softmax(-1)
        mixed = (v @ weights.transpose(-2, -1)).reshape(n, c, h, w)
        return x + self.proj(mixed + self.positions(v.reshape(n, c, h, w)))


class Detector(nn.Module):
    """Bytes in; space to depth; attention in the middle; a head with other weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.elan = Brick(12, 8, 3), Elan(8, 16, 8)
        self.attention, self.rep = Attention(16), Rep(16)
        self.neck, self.points = Elan(32, 16, 8), nn.Conv2d(16, 8, 1)
        self.bins = nn.Conv3d(4, 1, 1, bias=False)
        self.classes = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.dtype is torch.uint8:
            x = x.float() / 255
        x = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
        fine = self.elan(self.stem(x))
        mixed = self.rep(self.attention(fine))
        out = self.neck(torch.cat((mixed, fine), 1))
        points = self.points(out)
        bins = points.unflatten(1, (4, 2)).softmax(1)
        return [self.bins(bins)[:, 0], self.classes(mixed.mean((2, 3))), points]


def image(n: int = 2, c: int = 3, size: int = 16) -> Tensor:
    """(n, c, size, size), the same at every call."""
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(1))


def leaves(out: object) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, dict):
        out = list(out.values())
    return [leaf for part in out for leaf in leaves(part)]


def backward(out: object, seed: int = 0, only: slice = slice(None)) -> None:
    """Backward of a fixed random linear loss on the outputs."""
    made = [leaf for leaf in leaves(out) if leaf.requires_grad][only]
    random = torch.Generator().manual_seed(seed)
    grads = [torch.randn(leaf.shape, generator=random).to(leaf) for leaf in made]
    torch.autograd.backward(made, grads)


def assert_close(ours: object, stock: object, tolerance: float = 2e-4) -> None:
    """Relative L2 error, pooled: loose, since test_rule.py measures exactness."""
    a = [leaf.detach() for leaf in leaves(ours)]
    b = [leaf.detach() for leaf in leaves(stock)]
    assert [x.shape for x in a] == [y.shape for y in b]
    assert [x.dtype for x in a] == [y.dtype for y in b]
    wrong = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b))
    size = sum(float(y.double().square().sum()) for y in b)
    assert wrong**0.5 <= tolerance * max(size, 1e-30) ** 0.5


def assert_same_training(
    ours: nn.Module, stock: nn.Module, *inputs: object, tolerance: float = 1e-3
) -> None:
    """Outputs, gradients and buffers after one forward and backward of each."""
    for module in (ours, stock):
        module.zero_grad(set_to_none=True)
    made, expected = ours(*inputs), stock(*inputs)
    assert_close(made, expected, tolerance)
    backward(made)
    backward(expected)
    assert_same_gradients(ours, stock, tolerance)
    for (name, a), (_, b) in zip(ours.named_buffers(), stock.named_buffers()):
        if a.is_floating_point():
            assert_close(a, b, tolerance)
        else:
            assert torch.equal(a, b), name


def assert_same_gradients(
    ours: nn.Module, stock: nn.Module, tolerance: float = 1e-3
) -> None:
    """Of the same parameters."""
    of_ours, of_stock = grads(ours), grads(stock)
    assert of_ours.keys() == of_stock.keys()
    assert_close([of_ours[n] for n in of_stock], list(of_stock.values()), tolerance)


def without_pieces(detail: str) -> str:
    """Of a report, but for how many pieces of stock calls are made again."""
    return re.sub(r", (a piece|\d+ pieces) of stock calls made again", "", detail)


def ran_in_core(module: nn.Module) -> int:
    """How many training forwards of the module went through the C core."""
    import yolov9mem.torch as ym

    return sum(row.calls for row in ym.report(module).rows)


def trained_with_seed(module: nn.Module, x: Tensor) -> tuple[Tensor, list, Tensor]:
    """Result, gradients and the generator's state after a step of one seed."""
    torch.manual_seed(5)
    module.zero_grad()
    y = module(x)
    y.float().square().mean().backward()
    return y, list(grads(module).values()), torch.get_rng_state()


def held_in_core(module: nn.Module, size: int) -> int:
    """Bytes between a forward and its backward, of images of that size."""
    import yolov9mem.torch as ym

    ours = ym.checkpoint(module)
    ours(image(size=size)).sum().backward()
    return ym.report(ours).rows[0].held_bytes


def stocks_bytes(stock: nn.Module, x: Tensor) -> tuple[int, int]:
    """Bytes that stock PyTorch holds for a module with its input: as the report of a
    checkpointed copy says, and as counted."""
    import yolov9mem.torch as ym

    ours = ym.checkpoint(copy.deepcopy(stock))
    for module in (stock, ours):
        module(x).sum().backward()
    held = held_by(lambda: stock(x)) + x.nbytes - stock(x).nbytes
    return ym.report(ours).rows[0].stock_bytes, held


def assert_swapped_whole(stock: nn.Module, keep: str) -> None:
    """A checkpointed copy trains as it does, with no stock call in it."""
    import yolov9mem.torch as ym

    ours = ym.checkpoint(copy.deepcopy(stock), keep=keep)
    for size in (32, 24):
        assert_same_training(ours, stock, image(size=size))
    assert ran_in_core(ours) == 2
    (row,) = ym.report(ours).rows
    assert row.state == "swapped" and "stock" not in row.detail


def trains_in_core(module: nn.Module, *inputs: Tensor) -> bool:
    """One step of the module; whether its forward went through the C core."""
    before = ran_in_core(module)
    backward(module(*(inputs or (image(),))))
    return ran_in_core(module) == before + 1


def pair(
    make: Callable[[], nn.Module] = Net, **how: object
) -> tuple[nn.Module, nn.Module]:
    """Ours and stock, alike."""
    import yolov9mem.torch as ym

    stock = make()
    return ym.checkpoint(copy.deepcopy(stock), **how), stock


def grads(module: nn.Module) -> dict[str, Tensor]:
    """The gradients there are, by their parameters' names."""
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def replicate(module: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate does, on one CPU: parameters become attributes."""
    parts = list(module.modules())
    made = {part: part._replicate_for_data_parallel() for part in parts}
    for part in parts:
        for name, child in part._modules.items():
            made[part]._modules[name] = None if child is None else made[child]
        for name, param in part._parameters.items():
            if param is not None:
                setattr(made[part], name, param * 1)
            else:
                made[part]._parameters[name] = None
        made[part]._buffers = dict(part._buffers)
    return made[module]
