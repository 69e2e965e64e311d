# SPDX-License-Identifier: MIT
"""Batch norms whose statistics several processes share (SyncBatchNorm), in the core.

What is compared with what: plans that each run a part of a batch, in threads that sum for
each other, with stock torch in float64 on the whole batch.
"""

from __future__ import annotations

import cuda_emulation as ce
import numpy as np
import pytest
import torch
from graph_oracle import Run, Tracer, float32_error, relative_error
from processes import Parts
from random_graphs import output_gradients, random_case, rep_conv

from yolov9mem import _core

BACKENDS = ("cpu", "ref", "emulated")


def backend_of(name: str) -> object:
    return ce.capsule("ym_cuda_plain_backend") if name == "emulated" else name


def exact_gradients(t: Tracer, grads: list[torch.Tensor | None]) -> list:
    chosen = [(t.values[v], g) for v, g in zip(t.outputs, grads) if g is not None]
    return list(
        torch.autograd.grad(
            [v for v, _ in chosen],
            t.inputs + t.params,
            [g for _, g in chosen],
            retain_graph=True,
            allow_unused=True,
        )
    )


def check(t: Tracer, parts: Parts, grads: list[torch.Tensor | None]) -> None:
    """As test_plan.check, of all parts together."""
    parts.step(grads)
    limit = float32_error(t)
    for made, value in zip(t.outputs, parts.outputs(), strict=True):
        assert relative_error(value, t.values[made].permute(0, 2, 3, 1)) < limit, made
    for run in parts.runs:
        for (mean, var), n in zip(run.running, t.norms, strict=True):
            assert relative_error(mean, n["mean"]) < limit
            assert relative_error(var, n["var"]) < limit
    exact = exact_gradients(t, grads)
    of_inputs, of_params = exact[: len(t.inputs)], exact[len(t.inputs) :]
    for i, (made, x) in enumerate(zip(parts.grad_inputs(), of_inputs, strict=True)):
        if x is not None:
            assert relative_error(made, x.permute(0, 2, 3, 1)) < limit, ("input", i)
    scale = max(float(g.norm()) for g in exact if g is not None)
    for i, (made, x) in enumerate(zip(parts.grad_params(), of_params, strict=True)):
        if x is not None:
            error = float((torch.from_numpy(made) - x).norm())
            assert error < 3 * limit * max(float(x.norm()), 2e-3 * scale), ("param", i)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("seed", range(6))
def test_random_graphs(seed: int, keep: str, backend: str) -> None:
    """Parts of one and two images, and of three processes."""
    images = 3 + seed % 2
    sizes = (1, 2) if images == 3 else (1, 2, 1)

    def trace() -> tuple[Tracer, list[dict]]:
        return random_case(200 + seed, images)

    t, _ = trace()
    parts = Parts(trace, sizes, keep=keep, segments=2, backend=backend_of(backend))
    check(t, parts, output_gradients(t, seed, drop=seed % 3 == 0))


@pytest.mark.parametrize("seed", range(6))
def test_each_process_may_keep_what_it_likes(seed: int) -> None:
    """The order of the sums is the graph's."""

    def trace() -> tuple[Tracer, list[dict]]:
        return random_case(300 + seed, 3)

    t, _ = trace()
    parts = Parts(trace, (1, 1, 1), keeps=("all", "min", "conv"))
    check(t, parts, output_gradients(t, seed, drop=False))


def one_pixel() -> tuple[Tracer, list[dict]]:
    t = Tracer(3)
    t.output(t.brick(t.input(4, 6, 1, 1), 70))
    return t, t.fresh_norms()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_of_a_channel_in_each_process(backend: str) -> None:
    t, _ = one_pixel()
    parts = Parts(one_pixel, (1, 1, 1, 1), backend=backend_of(backend))
    check(t, parts, output_gradients(t, 1, drop=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_processes_have_the_same_bits(backend: str) -> None:
    def trace() -> tuple[Tracer, list[dict]]:
        return random_case(204, 3)

    parts = Parts(trace, (2, 1), backend=backend_of(backend))
    parts.step(output_gradients(parts.runs[0].tracer, 1, drop=False))
    for first, second in zip(*(run.running for run in parts.runs), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
def test_one_sum_of_a_norm_in_forward_and_one_in_backward(keep: str) -> None:
    """What is rebuilt has the statistics that forward saved."""

    def trace() -> tuple[Tracer, list[dict]]:
        t = Tracer(6)
        t.output(t.brick(t.brick(t.brick(t.input(2, 3, 8, 8), 8, 3), 8, 3), 8))
        return t, t.fresh_norms()

    parts = Parts(trace, (1, 1), keep=keep)
    parts.step(output_gradients(parts.runs[0].tracer, 1, drop=False))
    assert parts.group.sums == 3 + 3


def two_branches() -> tuple[Tracer, list[dict]]:
    """Two batch norms in one brick, as in RepConv."""
    t = Tracer(7)
    t.output(rep_conv(t, t.input(3, 4, 6, 5)))
    return t, t.fresh_norms()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_of_its_own_beside_a_shared_one(backend: str) -> None:
    """The oracle has batches of its own for that one: stock on each part, the first norm
    in running statistics that are those of the whole batch."""
    parts = Parts(two_branches, (1, 2), lambda n: n == 0, backend=backend_of(backend))
    t, _ = two_branches()
    grads = output_gradients(t, 2, drop=False)
    parts.step(grads)
    x = t.inputs[0]
    y = [
        torch.nn.functional.conv2d(x, w, padding=w.shape[2] // 2)
        for w in (t.params[0], t.params[3])
    ]
    whole = torch.nn.functional.batch_norm(
        y[0], None, None, t.params[1], t.params[2], True, 0, 1e-3
    )
    own = torch.cat(
        [
            torch.nn.functional.batch_norm(
                y[1][rows], None, None, t.params[4], t.params[5], True, 0, 1e-3
            )
            for rows in parts.rows
        ]
    )
    exact = x + torch.nn.functional.silu(whole + own)
    assert relative_error(parts.outputs()[0], exact.permute(0, 2, 3, 1)) < 3e-4
    (dx,) = torch.autograd.grad(exact, x, grads[0])
    assert relative_error(parts.grad_inputs()[0], dx.permute(0, 2, 3, 1)) < 3e-4


def test_a_norm_in_evaluation_sums_nothing() -> None:
    def trace() -> tuple[Tracer, list[dict]]:
        t, before = one_pixel()
        for norm in before:
            norm["training"] = False
        return t, before

    parts = Parts(trace, (2, 2))
    parts.step(output_gradients(parts.runs[0].tracer, 1, drop=False))
    assert parts.group.sums == 0


def test_no_gradient_of_a_value_no_sum_in_backward() -> None:
    """gamma and beta alone learn: their gradients are each process's own."""

    def trace() -> tuple[Tracer, list[dict]]:
        t = Tracer(4)
        t.output(t.act(t.batch_norm(t.input(2, 3, 4, 4))))
        return t, t.fresh_norms()

    parts = Parts(trace, (1, 1), input_grads=[False])
    parts.step(output_gradients(parts.runs[0].tracer, 1, drop=False))
    assert parts.group.sums == 1


def shared_run(**request) -> Run:
    t, before = one_pixel()
    t.graph.share(0, 1, 2, 0)
    return Run(t, before, **request)


def test_nothing_that_sums_is_refused() -> None:
    with pytest.raises(
        ValueError, match="shared by 2 processes, and nothing was given"
    ):
        shared_run().forward()


def test_what_the_sum_raises_is_raised() -> None:
    run = shared_run()

    def fail(group: int, address: int, count: int) -> None:
        raise ConnectionError("the other process has ended")

    run.sum = fail
    with pytest.raises(ConnectionError, match="the other process"):
        run.forward()


def test_a_sum_that_can_not_be_called() -> None:
    run = shared_run()
    run.sum = 3
    with pytest.raises(TypeError, match="not callable"):
        run.forward()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 1, 2, 0), "norm 1 does not exist, the graph has 1"),
        ((0, 0, 2, 0), "group is 0, must be positive"),
        ((0, 1, 0, 0), "is shared by 0 processes, must be 1 to"),
        ((0, 1, 1 << 20, 0), "is shared by 1048576 processes, must be 1 to"),
        ((0, 1, 2, 2), r"rank is 2, must be in \[0, 2\)"),
    ],
)
def test_sharing_is_checked(arguments: tuple, message: str) -> None:
    graph = _core.Graph()
    graph.norm(4, name="bn")
    with pytest.raises(ValueError, match=message):
        graph.share(*arguments)


def test_a_shared_plan_repeats_no_launches() -> None:
    assert shared_run(replays=True, backend=ce.capsule()).plan.replays is None
