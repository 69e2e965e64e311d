# SPDX-License-Identifier: MIT
"""Graphs for the tests of plans: random ones, and blocks and backbones of YOLOv9's kind."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from graph_oracle import Tracer
from kernel_calls import ACTIVATIONS


def grow(t: Tracer, rng: random.Random, pool: list[int]) -> int:
    """Adds one random call that reads values of the pool."""
    x = rng.choice(pool[-6:])
    n, c, h, w = t.values[x].shape
    kind = rng.randrange(18)
    if kind <= 2:
        return t.brick(x, rng.choice((2, 4, 6)), rng.choice((1, 3)))
    if kind == 3:
        return t.conv(x, rng.choice((2, 3, 5)), 3, rng.choice((1, 2)), 1, bias=True)
    if kind == 4 and c >= 2:
        first = rng.randrange(c - 1)
        return t.slice(x, first, rng.randrange(1, c - first))
    if kind == 5:
        return t.max_pool(x, 3, rng.choice((1, 2)), 1)
    if kind == 6:
        return t.avg_pool(x, 2, 1, 1)
    if kind == 7:
        return t.upsample(x, scale=2, mode=rng.choice(("nearest", "bilinear")))
    if kind == 8:
        return t.act(t.batch_norm(x), rng.choice(list(ACTIVATIONS)))
    same_pixels = [v for v in pool if t.values[v].shape[2:] == (h, w)]
    if kind == 9:
        return t.concat(x, *rng.choices(same_pixels, k=rng.randrange(1, 4)))
    same = [v for v in pool if t.values[v].shape == (n, c, h, w)]
    if kind == 10:
        return t.add(x, *rng.choices(same, k=rng.randrange(1, 3)))
    if kind == 11:
        return t.multiply(t.act(x, "hardtanh"), rng.choice(same))
    if kind == 12:
        return gated(t, x, rng.choice(("h", "w", "c", "hw", "hwc")))
    if kind == 13:
        return gated(t, x, rng.choice(("h", "w", "c", "hw")), t.maximum)
    if kind == 14:
        return t.affine(upscaled(t, rng, x), bias="each")
    if kind == 15:
        return t.affine(x, *rng.choice(((0.5, 0.0), (-1.0, -1.0), (1.0, 0.3))))
    if kind == 16:
        learnt = {name: rng.choice((None, "each", "one")) for name in ("bias", "gamma")}
        made = t.affine(x, rng.choice((1.0, 0.5)), rng.choice((0.0, 0.3)), **learnt)
        return (
            t.act(made, rng.choice(list(ACTIVATIONS))) if rng.random() < 0.5 else made
        )
    return rep_conv(t, x)


def upscaled(t: Tracer, rng: random.Random, x: int) -> int:
    """A transposed convolution, as decoders of masks have, or of stride 1."""
    if t.values[x].shape[2] > 12:
        return t.conv_transpose(x, rng.choice((2, 4)), 3, 1, 1)
    return t.conv_transpose(x, rng.choice((2, 3)), *rng.choice(((2, 2), (3, 2, 1, 1))))


def gated(t: Tracer, x: int, axes: str, squeeze: Callable | None = None) -> int:
    """Squeeze and excitation, over any sides: x * hardtanh(conv(silu(conv(mean(x)))))"""
    c = 1 if "c" in axes else t.values[x].shape[1]
    inner = t.act(t.conv((squeeze or t.mean)(x, axes), 2, bias=True))
    gate = t.act(t.conv(inner, c, bias=True), "hardtanh")
    return t.multiply(x, gate) if len(axes) == 1 else t.multiply(gate, x)


def rep_conv(t: Tracer, x: int) -> int:
    """RepConvN and a residual: x + silu(bn(conv3x3) + bn(conv1x1))."""
    c = t.values[x].shape[1]
    both = t.add(t.batch_norm(t.conv(x, c, 3, 1, 1)), t.batch_norm(t.conv(x, c)))
    return t.add(x, t.act(both))


def elan(t: Tracer, x: int, c: int) -> int:
    """An E-ELAN block: chunk, two branches of bricks, concat of all, 1x1."""
    first = t.brick(x, 2 * c)
    left, right = t.slice(first, 0, c), t.slice(first, c, c)
    a = t.brick(rep_conv(t, t.brick(right, c)), c, 3)
    b = t.brick(rep_conv(t, t.brick(a, c)), c, 3)
    return t.brick(t.concat(left, right, a, b), 2 * c)


def random_case(seed: int, images: int = 2) -> tuple[Tracer, list[dict]]:
    rng = random.Random(seed)
    t = Tracer(seed)
    pool = [t.input(images, 3, 6, 5)]
    if rng.random() < 0.3:
        pool.append(t.input(images, 2, 6, 5))
    for _ in range(rng.randrange(4, 16)):
        made = grow(t, rng, pool)
        if t.values[made].shape[2] <= 24:
            pool.append(made)
    if rng.random() < 0.5:
        pool.append(elan(t, pool[-1], 3))
    for x in {pool[-1], *rng.sample(pool[1:] or pool, k=min(2, len(pool) - 1))}:
        t.output(x)
    return t, t.fresh_norms()


def output_gradients(t: Tracer, seed: int, drop: bool) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed + 1000)
    grads: list[torch.Tensor | None] = [
        torch.randn(t.values[v].shape, generator=generator).double() for v in t.outputs
    ]
    if drop and len(grads) > 1:
        grads[seed % len(grads)] = None
    return grads


def draw_gradients(t: Tracer, seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [
        torch.randn(t.values[v].shape, generator=random, dtype=torch.float64)
        for v in t.outputs
    ]


def small_elan() -> tuple[Tracer, list[dict]]:
    t = Tracer(5)
    t.output(elan(t, t.input(1, 8, 6, 5), 8))
    return t, t.fresh_norms()


def tower(depth: int = 4, px: int = 32) -> tuple[Tracer, list[dict]]:
    """A small backbone of E-ELAN blocks with a neck that reads an early value."""
    t = Tracer(0)
    x = t.brick(t.input(1, 3, px, px), 8, 3, 2)
    early = None
    for i in range(depth):
        x = elan(t, x, 8)
        early = x if i == 0 else early
    small = t.brick(t.max_pool(x, 2, 2, 0), 16)
    x = elan(t, t.concat(t.upsample(small, scale=2), early), 8)
    t.output(t.conv(x, 5, bias=True))
    return t, [dict(n) for n in t.norms]
