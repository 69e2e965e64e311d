# SPDX-License-Identifier: MIT
"""What a loss reads of a detector's output, and the gradient of that, without a float32
copy of the output.

The levels (N, boxes + classes, H, W) are mostly cells without an object, of which the
loss asks one thing alone: a sum over their class logits. That sum, and its gradient, are
made of some images at a time; the few cells with an object are gathered in float32. The
gradient of a level is written once, in its dtype and layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..running.arenas import unfilled

ELEMENTS = 1 << 22  # logits in float32 at a time


class Cells(NamedTuple):
    """P cells of a batch, (P,) each; those that are not real only fill up."""

    image: Tensor
    place: Tensor  # among the cells of all levels
    label: Tensor
    is_real: Tensor


class Levels:
    """Levels of one branch; cells are counted row by row, level by level."""

    def __init__(self, levels: Sequence[Tensor], box_channels: int) -> None:
        """box_channels: how many of the channels, the first, are no classes."""
        self.levels, self.box_channels = list(levels), box_channels

    def boxes(self, elements: int) -> Iterator[Iterator[Tensor]]:
        """Of each level, float32 parts (n, box_channels, cells) of some images."""
        for level in self.levels:
            yield _in_parts(level[:, : self.box_channels].flatten(2), elements)

    def class_logits(self, image: Tensor, label: Tensor) -> Tensor:
        """(..., A) float32, of one class in all cells of an image, for each pair."""
        classes = (level[:, self.box_channels :].flatten(2) for level in self.levels)
        return torch.cat([logits[image, label] for logits in classes], -1).float()

    def read(
        self, cells: Cells, of_absent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(boxes (P, box_channels) and the label's logit (P,) of the cells, the sum of
        of_absent, an elementwise function, over all class logits), float32."""
        made = _Read.apply(self.box_channels, cells, of_absent, *self.levels)
        return made[0], made[1], made[2]


def _in_parts(values: Tensor, elements: int) -> Iterator[Tensor]:
    """Some images at a time, in float32."""
    images = max(1, elements // max(1, values[0].numel()))
    return (part.float() for part in values.split(images))


def _rows(level: Tensor, cells: Cells, start: int) -> tuple[Tensor, Tensor]:
    """(cell within the level, is it there and real) of cells; others have any."""
    own = cells.place - start
    inside = own.clamp(0, level.shape[2] * level.shape[3] - 1)
    return inside, (inside == own).logical_and_(cells.is_real)


def _channels(box_channels: int, label: Tensor) -> Tensor:
    """(P, box_channels + 1): those of the boxes, and of each cell's label."""
    boxes = torch.arange(box_channels, device=label.device)
    return torch.cat((boxes.expand(len(label), -1), label[:, None] + box_channels), 1)


class _Read(torch.autograd.Function):
    """Levels.read."""

    @staticmethod
    def forward(
        ctx: Any,
        box_channels: int,
        cells: Cells,
        of_absent: Callable[[Tensor], Tensor],
        *levels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.box_channels, ctx.of_absent = box_channels, of_absent
        device, start = levels[0].device, 0
        total = torch.zeros((), dtype=torch.float32, device=device)
        channel = _channels(box_channels, cells.label)
        image, read = cells.image[:, None], total.new_zeros(channel.shape)
        rows: list[Tensor] = []
        for level in levels:
            for part in _in_parts(level[:, box_channels:], ELEMENTS):
                total += of_absent(part).sum()
            inside, here = _rows(level, cells, start)
            found = level.flatten(2)[image, channel, inside[:, None]].float()
            read = found.where(here[:, None], read)
            rows += [inside, here]
            start += level.shape[2] * level.shape[3]
        boxes, logit = read.split((box_channels, 1), 1)
        logit = logit.squeeze(1)
        ctx.save_for_backward(cells.image, cells.label, logit, *rows, *levels)
        return boxes, logit, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        image, label, logit, *saved = ctx.saved_tensors
        channel, count = _channels(ctx.box_channels, label), len(saved) // 3
        rows, levels = saved[: 2 * count], saved[2 * count :]
        of_boxes, of_logit, of_total = grads
        # The label's logit is one of the sum as well.
        of_logit = of_logit + _derivative(ctx.of_absent, logit, of_total)
        of_read = torch.cat((of_boxes, of_logit[:, None]), 1)
        # Where what is elsewhere or not real goes, behind the gradient.
        nobodys = torch.arange(channel.numel(), device=label.device).view_as(channel)
        made = []
        for level, inside, here in zip(levels, rows[::2], rows[1::2], strict=True):
            memory, grad = _gradient(level, channel.numel())
            _write_background(level, grad, ctx.box_channels, ctx.of_absent, of_total)
            of_image, of_channel, _, of_cell = grad.stride()
            first = image * of_image + inside * of_cell  # the cell's, of its channels
            place = first[:, None] + channel * of_channel
            place = place.where(here[:, None], nobodys + grad.numel())
            _put(memory, place, of_read.to(level.dtype))
            made.append(grad)
        return (None, None, None, *made)


def _gradient(level: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """Memory for a level's gradient and `more` numbers, and the gradient in it, laid out
    as the level. In a row, because PyTorch's deterministic way to write single numbers
    copies whatever else there and back."""
    n, c, h, w = level.shape
    with unfilled():  # all is written that is read
        memory = torch.empty(
            level.numel() + more, dtype=level.dtype, device=level.device
        )
    is_last = level.stride(1) == 1 and not level.is_contiguous()
    strides = (1, w * c, c) if is_last else (h * w, w, 1)
    return memory, memory.as_strided((n, c, h, w), (c * h * w, *strides))


def _put(memory: Tensor, place: Tensor, values: Tensor) -> None:
    """memory[place] = values, each place being there and given once.

    PyTorch's deterministic way on a GPU goes through all values of a place one after the
    other, which one place for all that is elsewhere made long. And in some versions it
    makes the host wait for whether all places are there, unless that is said.
    """
    torch._index_put_impl_(memory, (place,), values, accumulate=False, unsafe=True)


def _write_background(
    level: Tensor,
    grad: Tensor,
    box_channels: int,
    of_absent: Callable[[Tensor], Tensor],
    of_total: Tensor,
) -> None:
    """The gradient of a level without an object."""
    grad[:, :box_channels].zero_()
    first = 0
    for part in _in_parts(level[:, box_channels:], ELEMENTS):
        to = grad[first : first + len(part), box_channels:]
        to.copy_(_derivative(of_absent, part, of_total))
        first += len(part)


def _derivative(
    function: Callable[[Tensor], Tensor], x: Tensor, factor: Tensor
) -> Tensor:
    """factor times function'(x), element by element."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = function(x)
    (found,) = torch.autograd.grad(y, x, factor.expand_as(y))
    return found
