# SPDX-License-Identifier: MIT
"""The numbers of a case of kernel_cases.py, what stock PyTorch makes of them in any dtype,
and what a plan does on the host: the same list of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from activation_rule import SHAPE, check_activation
from graph_oracle import arena
from kernel_calls import EPS, MOMENTUM, Net
from kernel_cases import Case, brick_case

from yolov9mem import _core

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-9}  # of one product and its sum


@dataclass
class Arrays:
    """The numbers of a case: float32, activations already rounded to its dtype."""

    inputs: list[torch.Tensor]
    params: list[torch.Tensor]
    running: list[tuple[torch.Tensor, torch.Tensor]]
    grad: torch.Tensor


def draw(case: Case, dtype: torch.dtype, seed: int = 3) -> tuple[object, Arrays]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    graph = _core.Graph()
    net = Net(graph)
    c = case.shape[1]
    xs = [graph.input(shape[1]) for shape in case.shapes]
    graph.output(case.build(net, xs))
    spread, offset = 1 + normal(1, c, 1, 1).abs(), 5 * normal(1, c, 1, 1)
    inputs = [normal(*shape) for shape in case.shapes]
    inputs = [x * spread + offset for x in inputs] if any(net.norms) else inputs
    params = [normal(*s) / max(1, np.prod(s[1:])) ** 0.5 for s in net.shapes]
    running = [(normal(c), 0.5 + normal(c).abs()) for c in net.norms]
    inputs = [x.to(dtype).float() for x in inputs]
    arrays = Arrays(inputs, params, running, torch.empty(0))
    shape = stock(case, arrays, torch.float64)[0].shape
    arrays.grad = normal(*shape).to(dtype).float()
    return graph, arrays


def stock(case: Case, arrays: Arrays, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, then (if there is a gradient) gradients and running statistics."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = [x.to(dtype).requires_grad_() for x in arrays.inputs]
    params = [p.to(wide).requires_grad_() for p in arrays.params]
    running = [
        (m.to(wide, copy=True), v.to(wide, copy=True)) for m, v in arrays.running
    ]
    values = dict(enumerate(inputs))
    net = Net(None, values, params, running=running, frozen=case.frozen)
    y = net.values[case.build(net, list(range(len(inputs))))]
    if arrays.grad.numel() == 0:
        return [y]
    y.backward(arrays.grad.to(dtype))
    grads = [x.grad for x in inputs + params]
    return [y.detach(), *grads, *(t for pair in running for t in pair)]


def packed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, C, H, W) -> packed (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).to(dtype).contiguous()


def argument(x: torch.Tensor) -> tuple:
    name = str(x.dtype).removeprefix("torch.")
    return x.data_ptr(), name, tuple(x.shape), x.stride(), -1


def ours(
    case: Case, graph: object, arrays: Arrays, backend: object, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The same list as `stock`, from a plan."""
    name = str(dtype).removeprefix("torch.")
    inputs = [packed(x, dtype) for x in arrays.inputs]
    params = [p.clone() for p in arrays.params]
    running = [(m.clone(), v.clone()) for m, v in arrays.running]
    plan = _core.Plan(
        graph,
        [(n, h, w) for n, _, h, w in case.shapes],
        dtype=name,
        keep="all",
        backend=backend,
        input_grads=[True] * len(inputs),
        param_grads=[True] * len(params),
    )
    norms = [
        (argument(m), argument(v), EPS, MOMENTUM, not case.frozen, not case.frozen)
        if len(m)
        else None
        for m, v in running
    ]
    output = torch.full(plan.output_shapes[0], float("nan"), dtype=dtype)
    grad = packed(arrays.grad, dtype)
    grad_inputs = [torch.full_like(x, float("nan")) for x in inputs]
    grad_params = [torch.full_like(p, float("nan")) for p in params]
    saved, work = arena(plan.saved_bytes), arena(plan.forward_workspace_bytes)
    given = [argument(x) for x in inputs], [argument(p) for p in params], norms
    plan.forward(*given, [argument(output)], saved, work)
    wanted = [argument(g) for g in grad_inputs], [argument(g) for g in grad_params]
    work = arena(plan.backward_workspace(None))
    plan.backward(0, *given, [argument(grad)], *wanted, saved, work)
    images = [t.permute(0, 3, 1, 2) for t in [output, *grad_inputs]]
    return [*images, *grad_params, *(t for pair in running for t in pair)]


def error(value: torch.Tensor, exact: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(value.double() - exact)
    return float(difference / (torch.linalg.vector_norm(exact) + 1e-30))


def check_activation_of(backend: object, kind: str, dtype: torch.dtype) -> None:
    case = brick_case(SHAPE, kind, norms=0)
    graph, arrays = draw(case, dtype)
    arrays.grad = torch.ones(SHAPE)

    def run(z: torch.Tensor) -> list[torch.Tensor]:
        arrays.inputs = [z.float()]
        return ours(case, graph, arrays, backend, dtype)

    check_activation(kind, dtype, run)
