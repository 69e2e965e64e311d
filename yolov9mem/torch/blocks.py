# SPDX-License-Identifier: MIT
"""The blocks of the YOLOv9 family, checkpointed from the start.

Names, constructor arguments and state_dict keys are those of the field (WongKinYiu/yolov9,
models/common.py), so weights load both ways and a model file can import these instead of
its own. Each instance runs through yolov9mem at training; the outermost block acts.
Channels: ``c1`` in, ``c2`` out; ``k`` kernel, ``s`` stride, ``p`` padding, ``g`` groups,
``d`` dilation. All take and give (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolov9mem._keep import Keep

from .running.entry import Entry
from .running.registry import make_automatic, register


def autopad(k: Any, p: Any = None, d: int = 1) -> Any:
    """Half of the kernel, which keeps H and W at stride 1 if it is odd; or ``p``."""
    if p is not None:
        return p
    if isinstance(k, int):
        return (d * (k - 1) + 1) // 2
    return [(d * (x - 1) + 1) // 2 for x in k]


class Conv(nn.Module):
    """Convolution, batch norm, activation (``act``: True for SiLU, False, or a module)."""

    default_act: nn.Module = nn.SiLU()

    def __init__(
        self,
        c1: int,
        c2: int,
        k: Any = 1,
        s: Any = 1,
        p: Any = None,
        g: int = 1,
        d: int = 1,
        act: Any = True,
    ) -> None:
        super().__init__()
        pad = autopad(k, p, d)
        self.conv = nn.Conv2d(c1, c2, k, s, pad, groups=g, dilation=d, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = self._activation(act)

    def _activation(self, act: Any) -> nn.Module:
        if act is True:
            return self.default_act
        return act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H', W')."""
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        """After the batch norm was folded into the convolution."""
        return self.act(self.conv(x))


class RepConvN(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, each with its batch norm, then SiLU.

    ``d``, ``bn`` and ``deploy`` are of YOLOv9's signature and have no effect, as there.
    Raises ValueError where ``k`` or ``p`` is not the default.
    """

    default_act: nn.Module = nn.SiLU()

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        p: int = 1,
        g: int = 1,
        d: int = 1,
        act: Any = True,
        bn: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        if k != 3 or p != 1:
            raise ValueError(f"RepConvN: kernel {k} with padding {p}, must be 3 with 1")
        self.g, self.c1, self.c2 = g, c1, c2
        self.act = Conv._activation(self, act)  # type: ignore[arg-type]
        self.bn = None
        self.conv1 = Conv(c1, c2, k, s, p=p, g=g, act=False)
        self.conv2 = Conv(c1, c2, 1, s, p=0, g=g, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H', W')."""
        return self.act(self.conv1(x) + self.conv2(x))

    def forward_fuse(self, x: Tensor) -> Tensor:
        """After both branches were folded into ``conv``."""
        return self.act(self.conv(x))

    @torch.no_grad()
    def fuse_convs(self) -> None:
        """Replaces both branches by one 3x3 convolution with bias, for inference."""
        if hasattr(self, "conv"):
            return
        weight, bias = _folded(self.conv1)
        pointwise, shift = _folded(self.conv2)
        step: Any = self.conv1.conv.stride
        self.conv = nn.Conv2d(self.c1, self.c2, 3, step, 1, groups=self.g)
        self.conv.requires_grad_(False)
        self.conv.weight.copy_(weight + F.pad(pointwise, [1, 1, 1, 1]))
        self.conv.bias.copy_(bias + shift)  # type: ignore[union-attr]
        del self.conv1, self.conv2, self.bn


def _folded(branch: Conv) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does its batch norm as well."""
    norm: Any = branch.bn
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = branch.conv.weight * scale.reshape(-1, 1, 1, 1)
    return weight, norm.bias - norm.running_mean * scale


class RepNBottleneck(nn.Module):
    """RepConvN and Conv with an optional shortcut."""

    def __init__(
        self,
        c1: int,
        c2: int,
        shortcut: bool = True,
        g: int = 1,
        k: Sequence[int] = (3, 3),
        e: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = RepConvN(c1, hidden, k[0], 1)
        self.cv2 = Conv(hidden, c2, k[1], 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class RepNCSP(nn.Module):
    """A chain of ``n`` bottlenecks beside a 1x1 convolution, joined by another."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        chain = (RepNBottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n))
        self.m = nn.Sequential(*chain)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class _Elan(nn.Module):
    """cv1's halves, then cv2 and cv3 in a row, all joined by cv4."""

    c: int
    cv1: nn.Module
    cv2: nn.Module
    cv3: nn.Module
    cv4: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H, W)."""
        parts = list(self.cv1(x).chunk(2, 1))
        for branch in (self.cv2, self.cv3):
            parts.append(branch(parts[-1]))
        return self.cv4(torch.cat(parts, 1))


class ELAN1(_Elan):
    """The plain ELAN block: two 3x3 convolutions of ``c4`` on half of ``c3``."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, c3, 1, 1)
        self.cv2 = Conv(c3 // 2, c4, 3, 1)
        self.cv3 = Conv(c4, c4, 3, 1)
        self.cv4 = Conv(c3 + 2 * c4, c2, 1, 1)


class RepNCSPELAN4(_Elan):
    """GELAN: ELAN whose branches are RepNCSP of depth ``c5`` and a 3x3 convolution."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int, c5: int = 1) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, c3, 1, 1)
        self.cv2 = nn.Sequential(RepNCSP(c3 // 2, c4, c5), Conv(c4, c4, 3, 1))
        self.cv3 = nn.Sequential(RepNCSP(c4, c4, c5), Conv(c4, c4, 3, 1))
        self.cv4 = Conv(c3 + 2 * c4, c2, 1, 1)


class SP(nn.Module):
    """Max pooling with a padding of ``k // 2``: at stride 1 it keeps H and W if ``k`` is
    odd, and makes them one larger if it is even."""

    def __init__(self, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(kernel_size=k, stride=s, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        return self.m(x)


class SPPELAN(nn.Module):
    """Three 5x5 max pools in a row, all joined."""

    def __init__(self, c1: int, c2: int, c3: int) -> None:
        super().__init__()
        self.c = c3
        self.cv1 = Conv(c1, c3, 1, 1)
        self.cv2, self.cv3, self.cv4 = SP(5), SP(5), SP(5)
        self.cv5 = Conv(4 * c3, c2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H, W)."""
        parts = [self.cv1(x)]
        for pool in (self.cv2, self.cv3, self.cv4):
            parts.append(pool(parts[-1]))
        return self.cv5(torch.cat(parts, 1))


class AConv(nn.Module):
    """2x2 average (stride 1), then a 3x3 convolution of stride 2."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H // 2, W // 2)."""
        return self.cv1(F.avg_pool2d(x, 2, 1, 0, False, True))


class ADown(nn.Module):
    """2x2 average; one half through a 3x3 convolution, the other through a max pool."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1 // 2, self.c, 3, 2, 1)
        self.cv2 = Conv(c1 // 2, self.c, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, c1, H, W) to (N, c2, H // 2, W // 2)."""
        first, second = F.avg_pool2d(x, 2, 1, 0, False, True).chunk(2, 1)
        pooled = F.max_pool2d(second, 3, 2, 1)
        return torch.cat((self.cv1(first), self.cv2(pooled)), 1)


class CBLinear(nn.Module):
    """One convolution (with bias), its output split into ``c2s`` channels."""

    def __init__(
        self,
        c1: int,
        c2s: Sequence[int],
        k: int = 1,
        s: int = 1,
        p: Any = None,
        g: int = 1,
    ) -> None:
        super().__init__()
        self.c2s = c2s
        self.conv = nn.Conv2d(c1, sum(c2s), k, s, autopad(k, p), groups=g, bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, c1, H, W) to len(c2s) tensors."""
        return self.conv(x).split(list(self.c2s), dim=1)


class CBFuse(nn.Module):
    """The sum of parts of other branches, brought to the size of the last argument."""

    def __init__(self, idx: Sequence[int]) -> None:
        super().__init__()
        self.idx = idx

    def forward(self, xs: Sequence[Any]) -> Tensor:
        """Branches of CBLinear and, last, (N, C, H, W); to (N, C, H, W)."""
        last = xs[-1]
        size = last.shape[2:]
        parts = [
            F.interpolate(branch[i], size=size, mode="nearest")
            for branch, i in zip(xs[:-1], self.idx)
        ]
        return torch.sum(torch.stack([*parts, last]), dim=0)


class Concat(nn.Module):
    """torch.cat of a list."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Any shapes that torch.cat takes."""
        return torch.cat(list(x), self.d)


class Silence(nn.Module):
    """Gives back its input."""

    def forward(self, x: Any) -> Any:
        """The very same object."""
        return x


def _checkpointed(module: nn.Module) -> Entry:
    entry = Entry(module, Keep("conv"), strict=False)
    register(module, entry)
    return entry


SWAPPED = (
    Conv,
    RepConvN,
    RepNBottleneck,
    RepNCSP,
    ELAN1,
    RepNCSPELAN4,
    SPPELAN,
    AConv,
    ADown,
)
for _cls in SWAPPED:
    make_automatic(_cls, _checkpointed)
