# SPDX-License-Identifier: MIT
"""Parameter gradients that are added to sums, and parameters that several norms share.

What is compared with what: `_core.Plan` on the CPU, the reference and the emulated CUDA
backend (float32) with a sum and stock torch's gradient in float64.
"""

from __future__ import annotations

import random

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from graph_oracle import Run, Tracer, float32_error, nhwc, relative_error
from random_graphs import draw_gradients, random_case

BACKENDS = ["cpu", "ref", "cuda"]


def backend_of(name: str) -> object:
    return ce.capsule() if name == "cuda" else name


def exact_gradients(t: Tracer, grads: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """Of the params, float64."""
    made = [t.values[v] for v in t.outputs]
    return list(
        torch.autograd.grad(made, t.params, grads, allow_unused=True)  # type: ignore[arg-type]
    )


def check_params(
    run: Run,
    exact: list[torch.Tensor | None],
    sums: list[np.ndarray | None],
) -> None:
    """Each gradient is the sum (or 0) and stock's gradient."""
    scale = max(float(g.abs().max()) for g in exact if g is not None)
    for i, (truth, start) in enumerate(zip(exact, sums, strict=True)):
        if truth is None:
            assert not run.reached_params[i]
            continue
        wanted = truth.numpy() + (0.0 if start is None else start.astype(np.float64))
        wrong = np.abs(run.grad_params[i] - wanted).max()
        limit = float32_error(run.tracer) * max(scale, float(np.abs(wanted).max()))
        assert wrong < limit, i


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_added_to_the_sums_that_there_are(
    seed: int, backend: str
) -> None:
    """Of any of the params: of gamma alone, of a weight without its bias, of none."""
    t, before = random_case(300 + seed)
    grads = draw_gradients(t, seed)
    exact = exact_gradients(t, grads)
    chance = random.Random(seed)
    sums = [
        np.random.default_rng(i).normal(0, 10, tuple(p.shape)).astype(np.float32)
        if chance.random() < 0.5
        else None
        for i, p in enumerate(t.params)
    ]
    run = Run(t, before, keep="conv", segments=3, backend=backend_of(backend))
    run.forward()
    run.backward([nhwc(g) for g in grads], sums)
    check_params(run, exact, sums)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", ["gamma", "beta", "both"])
@pytest.mark.parametrize(
    "in_one_brick", [True, False], ids=["side by side", "in a row"]
)
def test_norms_may_share_a_parameter(
    in_one_brick: bool, shared: str, backend: str
) -> None:
    """Both norms add to its gradient, also where they could be one brick's terms."""
    t = Tracer(7)
    x = t.conv(t.input(2, 3, 6, 5), 8, 3, padding=1)
    first = t.new_norm(8)
    of_first = {k: t.norms[first][k] for k in ("gamma", "beta")}
    tied = of_first if shared == "both" else {shared: of_first[shared]}
    second = t.new_norm(8, **tied)
    y = t.batch_norm(t.conv(x, 8, 3, padding=1), first)
    if in_one_brick:
        y = t.act(t.add(y, t.batch_norm(t.conv(x, 8), second)))
    else:
        y = t.act(t.batch_norm(t.conv(t.act(y), 8), second))
    t.output(y)
    grads = draw_gradients(t, 0)
    exact = exact_gradients(t, grads)
    run = Run(t, t.fresh_norms(), backend=backend_of(backend))
    run.forward()
    run.backward([nhwc(g) for g in grads])
    check_params(run, exact, [None] * len(exact))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("single", ["gamma", "beta", "both"])
def test_a_norm_may_have_one_number_for_all_channels(
    single: str, keep: str, backend: str
) -> None:
    t = Tracer(5)
    x = t.input(2, 3, 6, 5)
    counts = [1 if single in (name, "both") else 7 for name in ("gamma", "beta")]
    norm = t.new_norm(7, *map(t.param, counts))
    left = t.batch_norm(t.conv(x, 7, 3, padding=1), norm)
    t.output(t.act(t.add(left, t.batch_norm(t.conv(x, 7)))))
    grads = draw_gradients(t, 0)
    exact = exact_gradients(t, grads)
    sums = [np.random.default_rng(0).normal(0, 1, tuple(p.shape)) for p in t.params]
    sums = [start.astype(np.float32) for start in sums]
    run = Run(t, t.fresh_norms(), keep=keep, backend=backend_of(backend))
    run.forward()
    run.backward([nhwc(g) for g in grads], sums)
    check_params(run, exact, sums)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("kind", ["relu", "leaky_relu"])
def test_rectifiers_without_a_norm(kind: str, keep: str, backend: str) -> None:
    """Backward reads the kept result: whole, in a concat, by slices; or it is no more than
    an output, or others read what the rectifier read."""
    t = Tracer(3)
    first = t.conv(t.input(2, 3, 6, 5), 8, 3, padding=1)
    a = t.act(t.act(first, kind), kind)
    b = t.act(t.conv(a, 8, 3, padding=1), kind)
    c = t.conv(t.concat(a, b, t.batch_norm(first)), 8)
    d = t.act(c, kind)
    t.output(t.conv(t.add(t.max_pool(t.slice(d, 2, 4), 3, 1, 1), t.slice(b, 0, 4)), 4))
    t.output(t.act(t.conv(d, 6), kind))
    grads = draw_gradients(t, 0)
    exact = exact_gradients(t, grads)
    run = Run(t, t.fresh_norms(), keep=keep, segments=3, backend=backend_of(backend))
    run.forward()
    run.backward([nhwc(g) for g in grads])
    check_params(run, exact, [None] * len(exact))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["identity", "silu"])
@pytest.mark.parametrize("wanted", [(False, True), (True, False)])
def test_a_sum_of_which_one_term_wants_a_gradient(
    wanted: tuple[bool, bool], kind: str, backend: str
) -> None:
    """The other may be a frozen batch norm, whose sums nobody asks for."""
    t = Tracer(4)
    x, side = t.input(2, 8, 6, 5), t.input(2, 8, 6, 5)
    t.output(t.act(t.add(t.batch_norm(x), side), kind))
    (grad,) = draw_gradients(t, 0)
    run = Run(
        *(t, t.fresh_norms()),
        input_grads=list(wanted),
        param_grads=[False] * len(t.params),
        backend=backend_of(backend),
    )
    run.forward()
    run.backward([nhwc(grad)])
    exact = torch.autograd.grad(t.values[t.outputs[0]], t.inputs, grad)
    made = run.grad_inputs[wanted.index(True)]
    truth = exact[wanted.index(True)].permute(0, 2, 3, 1)
    assert relative_error(made, truth) < 1e-6


@pytest.mark.parametrize(
    ("accumulate", "error", "text"),
    [
        (b"\1", ValueError, r"accumulate: has 1 bytes, must have 3"),
        ([True], TypeError, "bytes-like"),
    ],
)
def test_what_accumulate_must_be(accumulate, error, text) -> None:
    t = Tracer(1)
    t.output(t.brick(t.input(1, 2, 4, 4), 4))
    run = Run(t, t.fresh_norms())
    run.forward()
    gradient = [np.ones_like(run.outputs[0])]
    places = [np.zeros_like(p) for p in run.params]
    with pytest.raises(error, match=text):
        run.plan.backward(
            *(0, run.inputs, run.params, run.norms, gradient),
            *([np.zeros_like(run.inputs[0])], places, run.saved, None, 0, accumulate),
        )
