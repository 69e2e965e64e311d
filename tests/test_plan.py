# SPDX-License-Identifier: MIT
"""Plans of arbitrary graphs against float64 autograd: every keep rule, any cut.

What is compared with what: `_core.Plan` on the reference and the CPU backend (float32)
with stock torch in float64. The graphs are random: values are read several times, sliced,
concatenated (also twice), added to themselves, norms are shared, outputs are inner values.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from graph_oracle import Run, Tracer, nhwc, relative_error
from kernel_calls import ACTIVATIONS

KEEPS = ("all", "conv", "min")


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


def float32_error(t: Tracer) -> float:
    """The scale of float32's own error in a graph: amplification by its norms."""
    return 3e-4


def check(t: Tracer, before: list[dict], grads, **request) -> Run:
    run = Run(t, before, **request)
    outputs = run.forward()
    limit = float32_error(t)
    for made, value in zip(t.outputs, outputs, strict=True):
        exact = t.values[made].permute(0, 2, 3, 1)
        assert relative_error(value, exact) < limit, (request, made)
    for (mean, var), n in zip(run.running, t.norms, strict=True):
        assert relative_error(mean, n["mean"]) < limit
        assert relative_error(var, n["var"]) < limit
    run.backward([None if g is None else nhwc(g) for g in grads])
    leaves = t.inputs + t.params
    chosen = [
        (t.values[v], g) for v, g in zip(t.outputs, grads, strict=True) if g is not None
    ]
    exact = torch.autograd.grad(
        [v for v, _ in chosen],
        leaves,
        [g for _, g in chosen],
        retain_graph=True,
        allow_unused=True,
    )
    for i, x in enumerate(exact[: len(t.inputs)]):
        assert run.reached_inputs[i] == (x is not None and request_input(run, i))
        if run.reached_inputs[i]:
            error = relative_error(run.grad_inputs[i], x.permute(0, 2, 3, 1))
            assert error < limit, (request, "input", i, error)
    # One scale for all: a gradient that is nothing but rounding noise (a bias before a
    # batch norm) has no relative error of its own. Stock's noise is up to 9e-7 of it.
    scale = max(float(g.norm()) for g in exact if g is not None)
    for i, x in enumerate(exact[len(t.inputs) :]):
        if not run.request["param_grads"][i]:
            continue
        assert run.reached_params[i] == (x is not None), (request, i)
        if x is not None:
            value = torch.from_numpy(run.grad_params[i]).double()
            error = float((value - x).norm()) / max(float(x.norm()), 2e-3 * scale)
            assert error < limit * 3, (request, "param", i, error)
    return run


def request_input(run: Run, i: int) -> bool:
    return run.request["input_grads"][i]


def output_gradients(t: Tracer, seed: int, drop: bool) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed + 1000)
    grads: list[torch.Tensor | None] = [
        torch.randn(t.values[v].shape, generator=generator).double() for v in t.outputs
    ]
    if drop and len(grads) > 1:
        grads[seed % len(grads)] = None
    return grads


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    t, before = random_case(seed)
    grads = output_gradients(t, seed, drop=seed % 3 == 0)
    peaks = {}
    for keep in KEEPS:
        for backend in ("cpu",) if seed % 4 else ("cpu", "ref"):
            run = check(
                t,
                copy.deepcopy(before),
                grads,
                keep=keep,
                backend=backend,
                segments=1 + seed % 3,
            )
            peaks[keep, backend] = run.plan.peak_bytes
    assert peaks["min", "cpu"] <= peaks["all", "cpu"]


@pytest.mark.parametrize("seed", range(20))
def test_partly_frozen_graphs(seed: int) -> None:
    t, before = random_case(seed)
    rng = random.Random(seed)
    grads = output_gradients(t, seed, drop=False)
    for keep in KEEPS:
        check(
            t,
            copy.deepcopy(before),
            grads,
            keep=keep,
            input_grads=[rng.random() < 0.3 for _ in t.inputs],
            param_grads=[rng.random() < 0.6 for _ in t.params],
        )
