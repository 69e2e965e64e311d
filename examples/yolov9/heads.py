# SPDX-License-Identifier: MIT
"""Detection heads: DDetect (GELAN) and DualDDetect (YOLOv9 with auxiliary branch)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Conv

REG_MAX = 16  # bins of the distance distribution of each box side


def cells_of(feats: Sequence[Tensor], strides: list[float]) -> tuple[Tensor, Tensor]:
    """Centres (2, A) of the cells, x and y in cells, and strides (1, A) in pixels."""
    made = []
    for f, stride in zip(feats, strides, strict=True):
        rows, columns = (
            torch.arange(side, device=f.device) + 0.5 for side in f.shape[2:]
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        made.append(torch.stack((x, y, torch.full_like(x, stride))).flatten(1))
    return torch.cat(made, 1).split((2, 1))


class DFL(nn.Module):
    """Mean of a distribution over REG_MAX bins, as a frozen 1x1 convolution."""

    def __init__(self, c1: int = REG_MAX) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(c1, dtype=torch.float32).view(
            1, c1, 1, 1
        )
        self.c1 = c1

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4 * c1, A) -> (N, 4, A)."""
        n, _, anchors = x.shape
        bins = x.view(n, 4, self.c1, anchors).transpose(1, 2).softmax(1)
        return self.conv(bins).view(n, 4, anchors)


def _box_branch(c: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        Conv(c, hidden, 3),
        Conv(hidden, hidden, 3, g=4),
        nn.Conv2d(hidden, 4 * REG_MAX, 1, groups=4),
    )


def _class_branch(c: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        Conv(c, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, classes, 1)
    )


def _branch_widths(c: int, classes: int) -> tuple[int, int]:
    box = math.ceil(max(c // 4, 4 * REG_MAX, 16) / 4) * 4
    return box, max(c, min(classes * 2, 128))


def _branches(ch: Sequence[int], nc: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    box, cls = _branch_widths(ch[0], nc)
    return (
        nn.ModuleList(_box_branch(c, box) for c in ch),
        nn.ModuleList(_class_branch(c, cls, nc) for c in ch),
    )


def _set_biases(
    boxes: nn.ModuleList, classes: nn.ModuleList, strides: Sequence[float]
) -> None:
    """Boxes start at one cell; classes at 5 objects in a 640-pixel image."""
    for box, cls, s in zip(boxes, classes, strides, strict=True):
        box[-1].bias.data.fill_(1.0)
        nc = cls[-1].out_channels
        cls[-1].bias.data.fill_(math.log(5 / nc / (640 / s) ** 2))


class _Head(nn.Module):
    """What both heads share: sizes, strides and the decoding of predictions."""

    def __init__(self, nc: int, levels: int) -> None:
        super().__init__()
        self.nc = nc
        self.nl = levels
        self.reg_max = REG_MAX
        self.no = nc + 4 * REG_MAX
        self.stride = torch.zeros(levels)

    def decode(self, feats: list[Tensor], dfl: DFL) -> Tensor:
        """Levels (N, no, H, W) -> (N, 4 + nc, A): box xywh in pixels, class scores."""
        points, stride = cells_of(feats, self.stride.tolist())
        flat = torch.cat([f.flatten(2) for f in feats], 2)
        box, cls = flat.split((4 * self.reg_max, self.nc), 1)
        low, high = dfl(box).float().chunk(2, 1)
        low, high = points - low, points + high
        xywh = torch.cat(((low + high) / 2, high - low), 1) * stride
        return torch.cat((xywh, cls.float().sigmoid()), 1)


class DDetect(_Head):
    """One branch. Training: levels (N, no, H, W). Eval: (decoded, levels)."""

    def __init__(self, nc: int = 80, ch: Sequence[int] = ()) -> None:
        super().__init__(nc, len(ch))
        self.cv2, self.cv3 = _branches(ch, nc)
        self.dfl = DFL()

    def forward(self, xs: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        feats = [
            torch.cat((self.cv2[i](x), self.cv3[i](x)), 1) for i, x in enumerate(xs)
        ]
        return feats if self.training else (self.decode(feats, self.dfl), feats)

    def bias_init(self, strides: Sequence[float]) -> None:
        _set_biases(self.cv2, self.cv3, strides)


class DualDDetect(_Head):
    """Auxiliary branch (cv2, cv3) and main branch (cv4, cv5).

    Training: [auxiliary levels, main levels]. Eval: (decoded main, the same pair).
    """

    def __init__(self, nc: int = 80, ch: Sequence[int] = ()) -> None:
        super().__init__(nc, len(ch) // 2)
        self.cv2, self.cv3 = _branches(ch[: self.nl], nc)
        self.cv4, self.cv5 = _branches(ch[self.nl :], nc)
        self.dfl = DFL()
        self.dfl2 = DFL()

    def forward(
        self, xs: list[Tensor]
    ) -> list[list[Tensor]] | tuple[Tensor, list[list[Tensor]]]:
        aux, main = [], []
        for i in range(self.nl):
            x, y = xs[i], xs[self.nl + i]
            aux.append(torch.cat((self.cv2[i](x), self.cv3[i](x)), 1))
            main.append(torch.cat((self.cv4[i](y), self.cv5[i](y)), 1))
        if self.training:
            return [aux, main]
        return self.decode(main, self.dfl2), [aux, main]

    def bias_init(self, strides: Sequence[float]) -> None:
        _set_biases(self.cv2, self.cv3, strides)
        _set_biases(self.cv4, self.cv5, strides)
