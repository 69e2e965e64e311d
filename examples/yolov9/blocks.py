# SPDX-License-Identifier: MIT
"""Building blocks of YOLOv9 and GELAN in stock PyTorch.

Names, constructor arguments and state_dict keys are those of the field (WongKinYiu,
YOLOv9, arXiv:2402.13616), so that weights and yolov9mem's own blocks fit. Every
forward takes (N, C, H, W) and uses convolution, batch norm, SiLU, chunk, split, cat,
add, pooling, nearest interpolation, stack and sum only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def same_padding(kernel: int, dilation: int = 1) -> int:
    """Padding that keeps H and W at stride 1 for an odd kernel."""
    return (dilation * (kernel - 1) + 1) // 2


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU (or no activation)."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        padding = same_padding(k, d) if p is None else p
        self.conv = nn.Conv2d(c1, c2, k, s, padding, dilation=d, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        if isinstance(act, nn.Module):
            self.act = act
        else:
            self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class AConv(nn.Module):
    """2x2 mean at stride 1, then a 3x3 convolution at stride 2."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c2, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv1(F.avg_pool2d(x, 2, 1, 0, False, True))


class ADown(nn.Module):
    """Halves H and W: one half of the channels by 3x3 conv, the other by max pool."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1 = Conv(c1 // 2, self.c, 3, 2, 1)
        self.cv2 = Conv(c1 // 2, self.c, 1, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.avg_pool2d(x, 2, 1, 0, False, True).chunk(2, 1)
        return torch.cat((self.cv1(left), self.cv2(F.max_pool2d(right, 3, 2, 1))), 1)


class RepConvN(nn.Module):
    """Sum of a 3x3 and a 1x1 convolution, each with its batch norm, then SiLU."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv(c1, c2, k, s, g=g, act=False)
        self.conv2 = Conv(c1, c2, 1, s, g=g, act=False)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv1(x) + self.conv2(x))


class RepNBottleneck(nn.Module):
    """RepConvN, 3x3 Conv, and the input added when the widths agree."""

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = RepConvN(c1, hidden)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class RepNCSP(nn.Module):
    """Two 1x1 paths, one of them through n bottlenecks, joined by a 1x1 Conv."""

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
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(c1, hidden)
        self.cv3 = Conv(2 * hidden, c2)
        self.m = nn.Sequential(
            *(RepNBottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class ELAN1(nn.Module):
    """ELAN with plain 3x3 convolutions: c1 -> c3, c4, c4 -> c2 channels."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, c3)
        self.cv2 = Conv(c3 // 2, c4, 3, 1)
        self.cv3 = Conv(c4, c4, 3, 1)
        self.cv4 = Conv(c3 + 2 * c4, c2)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for branch in (self.cv2, self.cv3):
            parts.append(branch(parts[-1]))
        return self.cv4(torch.cat(parts, 1))


class RepNCSPELAN4(nn.Module):
    """GELAN's block: ELAN whose branches are RepNCSP (c5 deep) and a 3x3 Conv."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int, c5: int = 1) -> None:
        super().__init__()
        self.c = c3 // 2
        self.cv1 = Conv(c1, c3)
        self.cv2 = nn.Sequential(RepNCSP(c3 // 2, c4, c5), Conv(c4, c4, 3, 1))
        self.cv3 = nn.Sequential(RepNCSP(c4, c4, c5), Conv(c4, c4, 3, 1))
        self.cv4 = Conv(c3 + 2 * c4, c2)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for branch in (self.cv2, self.cv3):
            parts.append(branch(parts[-1]))
        return self.cv4(torch.cat(parts, 1))


class SP(nn.Module):
    """Max pool that keeps H and W."""

    def __init__(self, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(k, s, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x)


class SPPELAN(nn.Module):
    """Spatial pyramid: a 1x1 Conv and three 5x5 max pools in a row, concatenated."""

    def __init__(self, c1: int, c2: int, c3: int) -> None:
        super().__init__()
        self.c = c3
        self.cv1 = Conv(c1, c3)
        self.cv2 = SP(5)
        self.cv3 = SP(5)
        self.cv4 = SP(5)
        self.cv5 = Conv(4 * c3, c2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for pool in (self.cv2, self.cv3, self.cv4):
            parts.append(pool(parts[-1]))
        return self.cv5(torch.cat(parts, 1))


class CBLinear(nn.Module):
    """1x1 convolution with bias whose output is split into len(c2s) tensors."""

    def __init__(self, c1: int, c2s: Sequence[int], k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.c2s = list(c2s)
        self.conv = nn.Conv2d(c1, sum(c2s), k, s, same_padding(k), bias=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).split(self.c2s, 1)


class CBFuse(nn.Module):
    """Adds to the last input one part of each CBLinear output, nearest-resized."""

    def __init__(self, idx: Sequence[int]) -> None:
        super().__init__()
        self.idx = list(idx)

    def forward(self, xs: list) -> Tensor:
        base = xs[-1]
        parts = [
            F.interpolate(x[i], size=base.shape[2:], mode="nearest")
            for x, i in zip(xs[:-1], self.idx, strict=True)
        ]
        return torch.sum(torch.stack([*parts, base]), dim=0)


class Concat(nn.Module):
    """Concatenation over channels."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, self.d)


class Silence(nn.Module):
    """Hands its input on; it gives the image an index in the layer table."""

    def forward(self, x: Tensor) -> Tensor:
        return x
