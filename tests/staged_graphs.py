# SPDX-License-Identifier: MIT
"""Random graphs of several stages, and how `_core.Plan` runs them: one call for each stage
and one for each segment, where the sine of an early output is an input of a later stage."""

from __future__ import annotations

import random

import numpy as np
import torch
from graph_oracle import Tracer, arena, float32_error, nchw, nhwc, relative_error
from random_graphs import elan, grow

from yolov9mem import _core


class Staged(Tracer):
    """A tracer whose graph has stages."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.stages = 1
        self.stage_of_input: list[int] = []
        self.stage_of_output: list[int] = []
        self.links: list[tuple[int, int]] = []  # (output, the input that is its sine)

    def input(self, n: int, c: int, h: int, w: int) -> int:
        self.stage_of_input.append(self.stages - 1)
        return super().input(n, c, h, w)

    def output(self, x: int) -> None:
        self.stage_of_output.append(self.stages - 1)
        super().output(x)

    def next_stage(self) -> None:
        self.graph.stage()
        self.stages += 1

    def sine(self, output: int) -> int:
        """An input of this stage."""
        value = torch.sin(self.values[self.outputs[output]])
        self.links.append((output, len(self.inputs)))
        self.stage_of_input.append(self.stages - 1)
        self.inputs.append(value)
        return self.keep(self.graph.input(value.shape[1]), value)


class Run:
    """Forward stage by stage and backward segment by segment."""

    def __init__(self, t: Staged, before: list[dict], **request) -> None:
        sizes = [(x.shape[0], x.shape[2], x.shape[3]) for x in t.inputs]
        request.setdefault("param_grads", [True] * len(t.params))
        self.t, self.wanted = t, request["param_grads"]
        planar = request.get("planar_inputs") or [None] * len(sizes)
        self.is_planar = [dtype is not None for dtype in planar]
        self.plan = _core.Plan(
            t.graph, sizes, input_grads=[True] * len(sizes), **request
        )
        self.params = [p.detach().float().numpy().copy() for p in t.params]
        self.running = [
            (n["mean"].float().numpy().copy(), n["var"].float().numpy().copy())
            for n in before
        ]
        self.norms = [
            (m, v, 1e-3, 0.03, True, True) if len(m) else None for m, v in self.running
        ]

    def forward(self) -> list[np.ndarray]:
        p, t = self.plan, self.t
        self.saved, work = arena(p.saved_bytes), arena(p.forward_workspace_bytes)
        linked = {number for _, number in t.links}
        self.inputs = [
            None if i in linked else nchw(x) if self.is_planar[i] else nhwc(x)
            for i, x in enumerate(t.inputs)
        ]
        outputs: list = [None] * len(t.outputs)
        for stage in range(t.stages):
            for output, number in t.links:
                if t.stage_of_input[number] == stage:
                    made = np.sin(outputs[output])
                    if self.is_planar[number]:
                        made = np.ascontiguousarray(made.transpose(0, 3, 1, 2))
                    self.inputs[number] = made
            given = [
                x if of <= stage else None
                for x, of in zip(self.inputs, t.stage_of_input, strict=True)
            ]
            for o, of in enumerate(t.stage_of_output):
                if of == stage:
                    outputs[o] = np.full(p.output_shapes[o], np.nan, np.float32)
            mine = [
                y if of == stage else None
                for y, of in zip(outputs, t.stage_of_output, strict=True)
            ]
            common = self.params, self.norms, mine, self.saved, work
            p.forward(given, *common, 0, stage)
        self.outputs = outputs
        return outputs

    def before_stage(self, stage: int) -> None:
        """Its first segment runs next."""

    def backward(self, grads: list[np.ndarray | None]) -> None:
        p, t = self.plan, self.t
        links: dict[int, list[int]] = {}
        for output, number in t.links:
            links.setdefault(output, []).append(number)
        mask = [g is not None or o in links for o, g in enumerate(grads)]
        self.grad_params = [
            np.full_like(w, np.nan) if want else None
            for w, want in zip(self.params, self.wanted, strict=True)
        ]
        self.reached = p.reached_inputs(mask)
        self.grad_inputs = [np.full_like(nhwc(x), np.nan) for x in t.inputs]
        work = arena(p.backward_workspace(mask))
        given: list = [None] * len(grads)
        stages = p.segment_stages()
        for segment in reversed(range(p.segments)):
            stage = stages[segment]
            if segment + 1 == p.segments or stages[segment + 1] != stage:
                self.before_stage(stage)
            for o, of in enumerate(t.stage_of_output):
                if of == stage and mask[o] and given[o] is None:
                    given[o] = self._gradient(grads[o], o, links.get(o, []))
            p.backward(
                segment,
                [
                    x if of <= stage else None
                    for x, of in zip(self.inputs, t.stage_of_input, strict=True)
                ],
                self.params,
                self.norms,
                given,
                self.grad_inputs,
                self.grad_params,
                self.saved,
                work,
                0,
                None,
                mask,
            )
        self.reached_params = p.reached_params(mask)

    def _gradient(self, own, output: int, inputs: list[int]) -> np.ndarray:
        """Of an early output: its own, and what came back through the sines."""
        total = np.zeros_like(self.outputs[output]) if own is None else own.copy()
        for number in inputs:
            if self.reached[number]:
                total += self.grad_inputs[number] * np.cos(self.outputs[output])
        return total


def staged_case(seed: int) -> tuple[Staged, list[dict]]:
    """As test_plan's random_case; some values of early stages are outputs, sines of
    them inputs, and others simply go on being read."""
    rng = random.Random(seed)
    t = Staged(seed)
    pool = [t.input(2, 3, 6, 5)]
    for stage in range(rng.randrange(2, 5)):
        if stage:
            early = list(range(len(t.outputs)))
            t.next_stage()
            for o in rng.sample(early, k=min(len(early), rng.randrange(1, 3))):
                pool.append(t.sine(o))
            if rng.random() < 0.2:
                t.output(rng.choice(pool))  # of an earlier stage
        for _ in range(rng.randrange(0 if stage else 1, 6)):
            made = grow(t, rng, pool)
            if t.values[made].shape[2] <= 24:
                pool.append(made)
        if rng.random() < 0.2:
            pool.append(elan(t, pool[-1], 3))
        for x in {pool[-1], rng.choice(pool)}:
            t.output(x)
    return t, t.fresh_norms()


def check(
    t: Staged, before: list[dict], grads, kind: type[Run] = Run, **request
) -> Run:
    run = kind(t, before, **request)
    limit = float32_error(t)
    for made, value in zip(t.outputs, run.forward(), strict=True):
        exact = t.values[made].permute(0, 2, 3, 1)
        assert relative_error(value, exact) < limit, (request, made)
    run.backward([None if g is None else nhwc(g) for g in grads])
    chosen = [(t.values[v], g) for v, g in zip(t.outputs, grads) if g is not None]
    exact = torch.autograd.grad(
        [v for v, _ in chosen],
        t.inputs + t.params,
        [g for _, g in chosen],
        retain_graph=True,
        allow_unused=True,
    )
    count = len(t.inputs)
    largest = max(float(g.norm()) for g in exact if g is not None)
    pairs = [*zip(run.grad_inputs, exact[:count], run.reached, strict=True)]
    pairs += zip(run.grad_params, exact[count:], run.reached_params, strict=True)
    for i, (value, truth, reached) in enumerate(pairs):
        if value is None or truth is None or not reached:
            continue
        if i < count:
            truth = truth.permute(0, 2, 3, 1)
        difference = np.linalg.norm(value - truth.detach().numpy())
        assert difference <= limit * (float(truth.norm()) + 0.05 * largest), (
            request,
            i,
        )
    return run


def draw(t: Staged, seed: int, missing: bool) -> list[torch.Tensor | None]:
    random = torch.Generator().manual_seed(seed)
    shapes = [t.values[v].shape for v in t.outputs]
    grads = [torch.randn(s, generator=random, dtype=torch.float64) for s in shapes]
    return [
        None if missing and i % 3 == 1 and i + 1 < len(grads) else g
        for i, g in enumerate(grads)
    ]
