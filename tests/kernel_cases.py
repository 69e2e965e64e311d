# SPDX-License-Identifier: MIT
"""The cases of test_kernels.py: graphs of one or few nodes, and the same calls in torch.

The sizes are adversarial: primes, tails of vectors, one pixel, one channel, strides
larger than kernels, padding larger than images, slices of wider buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernel_calls import ACTIVATIONS, Net
from kernel_groups import SMALL_GROUPS, TRANSPOSED_SMALL_GROUPS
from kernel_nets import adjoints, depthwise_slices, gates, resized_slices, slices, twins


@dataclass
class Case:
    name: str
    shape: tuple[int, int, int, int]  # N, C, H, W of each input
    build: Callable[[Net, list[int]], int]
    inputs: int = 1
    frozen: bool = False
    seeds: int = 1  # of which the median error counts
    second: tuple[int, int, int, int] | None = None  # of input 1, where it is another

    @property
    def shapes(self) -> list[tuple[int, int, int, int]]:
        every = [self.shape] * self.inputs
        return [every[0], self.second, *every[2:]] if self.second else every


def conv_case(n, h, w, c, k, kernel, stride=1, pad=0, dilation=1, groups=1) -> Case:
    def build(net: Net, xs: list[int]) -> int:
        bias = (h + k) % 2 == 1
        return net.conv(xs[0], k, c, kernel, stride, pad, dilation, groups, bias)

    name = f"conv {n}x{h}x{w}x{c}-{k} k{kernel} s{stride} p{pad} d{dilation} g{groups}"
    return Case(name, (n, c, h, w), build)


def conv_transpose_case(
    n, h, w, c, k, kernel, stride=1, pad=0, more=0, dilation=1, groups=1
) -> Case:
    settings = kernel, stride, pad, more, dilation, groups

    def build(net: Net, xs: list[int]) -> int:
        return net.conv_transpose(xs[0], c, k, *settings)

    name = "conv_transpose {}x{}x{}x{}-{} k{} s{} p{} o{} d{} g{}"
    return Case(name.format(n, h, w, c, k, *settings), (n, c, h, w), build)


def affine_case(
    shape, scale=1.0, shift=0.0, bias=None, kind="identity", gamma=None
) -> Case:
    """bias, gamma: None, "each" channel its own, or "one" for all."""
    count = {"each": shape[1], "one": 1}

    def build(net: Net, xs: list[int]) -> int:
        b, g = (-1 if p is None else net.param(count[p]) for p in (bias, gamma))
        return net.act(net.affine(xs[0], scale, shift, b, g), kind)

    return Case(f"affine {shape} {scale} {shift} {bias} {gamma} {kind}", shape, build)


def brick_case(shape, kind, terms=1, norms=1, residual=False, frozen=False) -> Case:
    """activation(norm(x0) [+ norm(x1) or x1]) [+ x2]"""
    c = shape[1]

    def build(net: Net, xs: list[int]) -> int:
        parts = [net.norm(xs[t], c) if t < norms else xs[t] for t in range(terms)]
        z = net.act(net.add(*parts) if terms > 1 else parts[0], kind)
        return net.add(z, xs[terms]) if residual else z

    name = f"brick {shape} {kind} terms {terms} norms {norms}"
    name += (" residual" if residual else "") + (" frozen" if frozen else "")
    return Case(name, shape, build, terms + residual, frozen)


def pool_case(shape, kind, k, s, p, ceil=False, pad=True) -> Case:
    name = f"{kind} pool {shape} k{k} s{s} p{p} ceil {ceil} pad {pad}"
    return Case(name, shape, lambda net, xs: net.pool(kind, xs[0], k, s, p, ceil, pad))


def upsample_case(shape, size, **how) -> Case:
    name = f"{how.get('mode', 'upsample')} {shape} {size}"
    name += " corners" * how.get("align_corners", False)
    return Case(name, shape, lambda net, xs: net.upsample(xs[0], size, **how))


def bilinear_case(shape, size, align=False) -> Case:
    return upsample_case(shape, size, mode="bilinear", align_corners=align)


def mean_case(shape, axes) -> Case:
    return Case(f"mean {shape} {axes}", shape, lambda net, xs: net.mean(xs[0], axes))


def maximum_case(shape, axes) -> Case:
    name = f"maximum {shape} {axes}"
    return Case(name, shape, lambda net, xs: net.maximum(xs[0], axes))


def product_case(shape, second, seeds=1) -> Case:
    """A factor of other sides, such as the gate of an attention."""
    name = f"product {shape} {second}"
    build = lambda net, xs: net.multiply(xs[0], xs[1])  # noqa: E731
    return Case(name, shape, build, 2, seeds=seeds, second=second)


CASES = [
    conv_case(1, 1, 1, 1, 1, 1),
    conv_case(2, 5, 7, 3, 5, 3, 1, 1),
    conv_case(1, 13, 17, 3, 32, 3, 2, 1),
    conv_case(2, 11, 9, 64, 33, 3, 1, 1),
    conv_case(1, 12, 10, 8, 16, (5, 3), (1, 2), (2, 1)),
    conv_case(1, 15, 15, 4, 6, 7, 3, 3, 1, 2),
    conv_case(2, 9, 9, 16, 16, 3, 1, 1, 1, 4),
    conv_case(1, 10, 13, 12, 12, 3, 1, 1, 1, 12),
    conv_case(1, 10, 13, 6, 12, 3, 2, 1, 1, 6),
    conv_case(1, 14, 14, 5, 7, 3, 1, 2, 2),
    conv_case(1, 17, 13, 7, 9, (3, 2), (3, 2), (0, 1), (2, 3)),
    conv_case(2, 20, 20, 40, 48, 1),
    conv_case(2, 12, 13, 16, 32, 3, 1, 1),
    conv_case(1, 21, 19, 64, 48, 3, 1, 1),
    conv_case(2, 11, 12, 32, 64, 3, 1, 0, 1, 2),
    conv_case(3, 9, 14, 128, 32, 3, 1, 2),
    conv_case(2, 5, 5, 256, 256, 3, 1, 1),
    conv_case(3, 8, 10, 33, 48, 3, 2, 1),
    conv_case(1, 9, 9, 16, 24, 1, 2),
    conv_case(1, 6, 6, 8, 8, 1, 1, 1),
    conv_case(1, 8, 8, 4, 4, 4, 1, 3),
    conv_case(1, 9, 8, 6, 4, 1, (3, 2), 0, 1, 2),
    conv_case(1, 12, 12, 4, 8, 3, 2, 1, 3),
    conv_case(1, 3, 90, 300, 20, 3, 1, 1),
    conv_case(8, 1, 1, 40, 40, 3, 1, 1),
    conv_case(1, 7, 7, 6, 5, 3, 4, 1),
    # Taps far apart, some of which meet padding alone: csrc/cpu/tiling.c.
    conv_case(1, 12, 13, 260, 40, 3, 1, 12, 12),
    conv_case(2, 17, 20, 200, 33, (3, 2), 1, (9, 4), (9, 7)),
    conv_case(1, 21, 19, 130, 70, 3, (2, 3), 10, (10, 9)),
    conv_case(1, 14, 15, 96, 96, 3, 1, 24, 24, 96),
    conv_case(1, 5, 6, 512, 12, 3, 1, 20, 7, 2),
    conv_case(1, 1, 40, 300, 20, 3, 1, 6, 6),
    # Kernels larger than a side, and sides of one pixel: csrc/cpu/conv.c.
    conv_case(1, 3, 2, 18, 16, 9, 1, 4),
    conv_case(2, 1, 30, 16, 32, (9, 3), 1, (4, 1)),
    conv_case(2, 41, 1, 20, 33, (5, 3), (2, 1), (2, 1)),
    conv_case(1, 37, 1, 24, 24, (3, 5), 1, 4, 2, 24),
    conv_case(2, 90, 1, 32, 48, 3, 1, 1),
    conv_case(3, 1, 1, 64, 40, 3, 1, 1),
    # Few channels, whose taps are joined: csrc/cpu/conv_weight.c.
    conv_case(2, 33, 34, 3, 40, 8, 8),
    conv_case(1, 41, 37, 3, 20, 16, 16, 3),
    conv_case(3, 45, 38, 3, 33, 3, 2, 1),
    conv_case(1, 20, 21, 5, 9, (7, 4), (2, 3), (3, 2), (2, 1)),
    conv_case(2, 14, 15, 21, 28, 3, 1, 1, 1, 7),
    *(conv_case(*numbers) for numbers in SMALL_GROUPS),
    *(  # strides beyond the image, or a side of it
        conv_case(*numbers)
        for numbers in [
            (1, 10, 2, 1, 2, 3, 3, 1),
            (2, 8, 1, 4, 4, 2, 2, 1),
            (1, 2, 10, 3, 17, 3, 3, 1),
            (2, 4, 3, 6, 4, (2, 3), (5, 9), 1, (1, 2), 2),
            (1, 6, 5, 33, 18, 1, 7),
            (1, 5, 6, 3, 4, 3, 1000, 1),
        ]
    ),
    *(
        conv_transpose_case(*numbers)
        for numbers in [
            (1, 1, 1, 1, 1, 1),
            (2, 5, 7, 3, 5, 2, 2),
            (1, 13, 7, 32, 16, 4, 2, 1),
            (2, 6, 9, 33, 20, 3, 2, 1, 1),
            (1, 5, 6, 8, 12, (5, 3), (3, 2), (2, 0), (2, 1), (1, 2), 4),
            (2, 9, 8, 16, 24, 3, 1, 1),
            (1, 4, 3, 6, 6, 3, 4, 0, 3, 1, 6),
            (1, 1, 1, 64, 32, 7, 1, 3),
            (2, 23, 1, 32, 20, (5, 3), (2, 1), (2, 1), (1, 0)),
            *TRANSPOSED_SMALL_GROUPS,
        ]
    ),
    affine_case((2, 17, 5, 7), -0.3),
    affine_case((2, 3, 9, 7), -1.0, 0.7),
    affine_case((1, 40, 9, 9), bias="each"),
    affine_case((2, 33, 6, 5), 1.0, -2.0, "each", "silu"),
    affine_case((2, 40, 9, 9), gamma="each"),
    affine_case((2, 33, 6, 5), bias="one", gamma="one"),
    affine_case((3, 17, 8, 7), bias="each", gamma="one", kind="hardswish"),
    affine_case((1, 136, 20, 20), bias="one", gamma="each", kind="relu"),
    *(
        brick_case(shape, kind)
        for shape in [(2, 3, 5, 7), (1, 64, 20, 20), (2, 700, 3, 3), (1, 5, 90, 80)]
        for kind in ACTIVATIONS
        if kind not in ("identity", "relu")
    ),
    brick_case((2, 33, 13, 7), "silu", terms=2, norms=2),
    brick_case((2, 48, 9, 9), "silu", terms=2, norms=2, residual=True),
    brick_case((2, 16, 9, 9), "relu", terms=2, norms=1, residual=True),
    brick_case((2, 16, 9, 9), "silu", terms=2, norms=0),
    brick_case((2, 13, 9, 9), "hardtanh", terms=2, norms=1),
    brick_case((2, 48, 9, 9), "hardswish", terms=2, norms=2, residual=True),
    brick_case((2, 33, 13, 7), "mish", terms=2, norms=2),
    brick_case((2, 33, 13, 7), "sigmoid", terms=2, norms=2),
    brick_case((2, 33, 13, 7), "gelu", terms=2, norms=2),
    brick_case((2, 48, 9, 9), "gelu_tanh", terms=2, norms=1, residual=True),
    brick_case((2, 48, 9, 9), "hardsigmoid", terms=2, norms=1, residual=True),
    brick_case((2, 17, 9, 9), "identity", norms=1),
    brick_case((2, 600, 3, 5), "silu", frozen=True),
    brick_case((2, 20, 9, 9), "silu", terms=2, norms=2, frozen=True),
    pool_case((1, 5, 7, 9), "max", 5, 1, 2),
    pool_case((2, 16, 8, 8), "max", 2, 2, 0),
    pool_case((1, 70, 11, 13), "max", 3, 2, 1, ceil=True),
    pool_case((1, 1, 1, 1), "max", 5, 1, 2),
    pool_case((2, 130, 9, 8), "avg", 3, 2, 1),
    pool_case((1, 6, 11, 13), "avg", 3, 2, 1, ceil=True, pad=False),
    pool_case((1, 6, 11, 13), "avg", 3, 2, 1, ceil=True),
    pool_case((1, 16, 9, 9), "avg", 2, 1, 0),
    *(  # large windows and few channels: csrc/cpu/pool_rows.c
        pool_case(shape, kind, k, s, p, ceil)
        for shape, k, s, p, ceil in [
            ((1, 70, 19, 21), 5, 1, 2, False),
            ((2, 530, 6, 5), 4, 3, 1, True),
            ((1, 3, 21, 190), 3, 1, 1, False),
            ((2, 7, 18, 90), 4, 2, 0, True),
            ((1, 33, 24, 17), 13, 1, 6, False),
            ((2, 2, 20, 300), 2, 5, 1, False),
            ((1, 40, 12, 12), 12, 12, 0, False),
        ]
        for kind in ("max", "avg")
    ),
    *(  # windows larger than the image
        pool_case(shape, kind, k, s, p, ceil=True, pad=pad)
        for shape, k, s, p in [
            ((2, 5, 1, 1), 2, 2, 0),
            ((1, 17, 2, 2), 3, 2, 0),
            ((1, 3, 1, 2), 3, 2, 1),
            ((2, 8, 3, 5), 7, 6, 1),
        ]
        for kind, pad in (("max", True), ("avg", True), ("avg", False))
    ),
    upsample_case((2, 3, 4, 5), (2.0, 2.0)),
    upsample_case((1, 64, 3, 3), (3.0, 3.0)),
    upsample_case((1, 600, 2, 3), (5, 4)),
    upsample_case((1, 8, 7, 7), (10, 12)),
    upsample_case((1, 8, 5, 5), (3, 4)),
    *(
        bilinear_case(shape, size, align)
        for shape, size in [
            ((2, 3, 4, 5), (2.0, 2.0)),
            ((1, 64, 7, 5), (1.5, 2.7)),
            ((2, 600, 3, 4), (7, 9)),
            ((1, 16, 13, 17), (0.6, 0.37)),
            ((1, 8, 31, 40), (7, 4)),
            ((2, 5, 1, 1), (4, 3)),
            ((1, 7, 9, 6), (1, 1)),
            ((2, 9, 6, 1), (6, 5)),
            ((1, 8, 9, 11), (9, 11)),
            ((1, 2, 3, 50), (70, 1333)),
        ]
        for align in (False, True)
    ),
    mean_case((3, 17, 9, 11), "hw"),
    mean_case((2, 700, 3, 5), "hwc"),
    mean_case((1, 64, 80, 90), "hw"),
    mean_case((2, 6, 11, 600), "h"),
    mean_case((2, 33, 7, 5), "w"),
    mean_case((2, 1100, 5, 3), "c"),
    mean_case((1, 1, 1, 1), "hw"),
    maximum_case((3, 17, 9, 11), "hw"),
    maximum_case((2, 700, 3, 5), "c"),
    maximum_case((1, 64, 22, 23), "hw"),
    maximum_case((2, 6, 11, 600), "h"),
    maximum_case((2, 530, 7, 5), "w"),
    maximum_case((2, 5, 13, 3), "c"),
    maximum_case((1, 1, 1, 1), "hw"),
    product_case((2, 13, 9, 7), (2, 13, 9, 7)),
    product_case((3, 64, 21, 20), (3, 64, 1, 1)),
    product_case((2, 7, 5, 90), (2, 7, 1, 1), seeds=5),
    product_case((2, 600, 5, 4), (2, 1, 5, 4), seeds=5),
    product_case((2, 24, 9, 8), (1, 24, 1, 1)),
    product_case((2, 24, 9, 8), (1, 1, 1, 1), seeds=5),
    product_case((2, 30, 9, 1), (2, 30, 1, 8)),
    product_case((1, 1, 9, 8), (2, 19, 1, 8)),
    product_case((2, 1, 1, 1), (2, 520, 1, 3)),
    Case("gates", (2, 9, 11, 7), gates, seeds=5),
    Case("slices", (2, 9, 11, 7), slices, seeds=5),
    Case("depthwise slices", (2, 43, 11, 7), depthwise_slices, seeds=5),
    Case("adjoints", (2, 9, 11, 7), adjoints, seeds=5),
    Case("bilinear slices", (2, 9, 9, 11), resized_slices),
    Case("twins", (2, 32, 13, 10), twins),
]
