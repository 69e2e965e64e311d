# SPDX-License-Identifier: MIT
"""Graphs of several nodes for kernel_cases.py: of slices of one value, where kernels read
and write parts of wider pixels and add up gradients in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernel_calls import Net


def _of_slices(net: Net, x: int) -> tuple[int, list[int]]:
    """A slice of x; and it and another gated by their own means, a square and an outer
    product. Values are read several times, so that gradients are added up in place."""
    left, middle = net.slice(x, 0, 5), net.slice(x, 3, 6)
    a = net.multiply(middle, net.mean(middle, "hw"))
    b = net.multiply(net.mean(left, "c"), left)
    c = net.multiply(net.mean(middle, "h"), net.mean(middle, "w"))
    return left, [a, b, c, net.multiply(left, left), net.multiply(a, c)]


def products(net: Net, xs: list[int]) -> int:
    """Products and means."""
    return net.concat(*_of_slices(net, xs[0])[1])


def gates(net: Net, xs: list[int]) -> int:
    """The same with maxima."""
    left, made = _of_slices(net, xs[0])
    most = net.multiply(left, net.maximum(left, "hw"))
    return net.concat(*made, net.multiply(net.maximum(left, "c"), most))


def twins(net: Net, xs: list[int]) -> int:
    """The second data gradient is added to the first; slices are read and written."""
    left, right = net.conv(xs[0], 16, 32, 3, 1, 1), net.conv(xs[0], 32, 32, 3, 1, 1)
    both = net.concat(right, left)
    return net.concat(net.conv(net.slice(both, 16, 32), 16, 32, 3, 1, 1), left)


def depthwise_slices(net: Net, xs: list[int]) -> int:
    """Depthwise convolutions that read and write parts of wider pixels; the second data
    gradient is added to the first."""
    left, right = net.slice(xs[0], 0, 35), net.slice(xs[0], 3, 40)
    a = net.conv(left, 35, 35, 3, 1, 1, 1, 35, True)
    b = net.conv(right, 80, 40, 3, 1, 2, 2, 40)
    return net.concat(a, net.conv(right, 40, 40, 3, 1, 1, 1, 40), b, left)


def adjoints(net: Net, xs: list[int]) -> int:
    """Transposed convolutions that read and write parts of wider pixels, with biases
    and numbers behind them; what they read is read again."""
    left, middle = net.slice(xs[0], 0, 5), net.slice(xs[0], 3, 6)
    a = net.conv_transpose(middle, 6, 7, 4, 2, 1, 0, 1, 1)
    b = net.conv_transpose(left, 5, 3, 2, 2, 0, 0, 1, 1)
    a, b = net.affine(a, bias=net.param(7)), net.affine(b, -0.3)
    c = net.add(net.affine(left, shift=0.7), net.norm(net.conv(middle, 5, 6, 1), 5))
    d = net.conv_transpose(net.add(c, left), 5, 2, 3, 2, 1, 1, 1, 1)
    b = net.affine(b, gamma=net.param(1), bias=net.param(1))
    return net.concat(net.affine(d, 0.5), b, net.act(a, "silu"))


def slices(net: Net, xs: list[int]) -> int:
    """Convolutions, bricks and pools that read and write parts of wider pixels; the
    middle slice is read three times, so that gradients are added up in place."""
    left, middle = net.slice(xs[0], 0, 5), net.slice(xs[0], 3, 6)
    a = net.conv(middle, 7, 6, 3, 1, 1)
    b = net.act(net.norm(net.conv(left, 3, 5, 1), 3), "silu")
    c = net.pool("max", middle, 3, 1, 1)
    d = net.pool("avg", middle, 3, 1, 1)
    return net.conv(net.concat(b, a, left, c, d, b), 4, 30, 3, 2, 1)


def resized_slices(net: Net, xs: list[int]) -> int:
    """From and to parts of wider pixels; the gradient of a slice is added up."""

    def bilinear(x: int, size: tuple[int, int], align: bool = False) -> int:
        return net.upsample(x, size, mode="bilinear", align_corners=align)

    left, right = net.slice(xs[0], 0, 5), net.slice(xs[0], 3, 6)
    up = net.concat(bilinear(left, (13, 20)), bilinear(right, (13, 20), True))
    down = bilinear(net.slice(up, 4, 7), (9, 11))
    return net.concat(down, xs[0], bilinear(up, (9, 11), True))
