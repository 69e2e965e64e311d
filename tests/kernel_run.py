# SPDX-License-Identifier: MIT
"""Cases of kernel_cases.py on torch's tensors, emulated or on a GPU, against float64: the
relative L2 error may be at most twice that of stock PyTorch in the same dtype.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import torch
from activation_rule import SHAPE, check_activation
from kernel_cases import CASES, Case, brick_case
from kernel_nets import products
from kernel_oracle import Arrays, draw, error, stock
from tensor_run import TensorRun

# Graphs of products and means, in gates of maxima too, without batch norms.
KINDS = ("mean", "product", "gates")
PRODUCTS = [case for case in CASES if case.name.split()[0] in KINDS]
ADJOINTS = [
    case
    for case in CASES
    if case.name.split()[0] in ("conv_transpose", "affine", "adjoints")
]
PRODUCTS.append(Case("products", (2, 9, 11, 7), products, seeds=5))
BILINEAR = [case for case in CASES if case.name.startswith("bilinear ")]
# Of one product and its sum, where stock is exact.
ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-12, torch.bfloat16: 2.0**-9}


def run_of(
    graph: object, arrays: Arrays, backend: str, dtype: torch.dtype
) -> TensorRun:
    norms = [{"mean": mean} for mean, _ in arrays.running]
    made = SimpleNamespace(
        graph=graph, inputs=arrays.inputs, params=arrays.params, norms=norms
    )
    return TensorRun(made, backend, dtype, "all")


def check_an_activation(kind: str, dtype: torch.dtype, backend: str) -> None:
    graph, arrays = draw(brick_case(SHAPE, kind, norms=0), dtype)
    made = run_of(graph, arrays, backend, dtype)

    def run(z: torch.Tensor) -> list[torch.Tensor]:
        made.inputs = [made.put(z.permute(0, 2, 3, 1), dtype)]
        return [t.permute(0, 3, 1, 2) for t in made.run([torch.ones(SHAPE)])]

    check_activation(kind, dtype, run, made.device)


def check_a_case(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Outputs and gradients, of as many draws as the case says; and their bits when it
    runs again."""
    errors: dict[int, list[tuple[float, float]]] = {}
    for seed in range(3, 3 + case.seeds):
        graph, arrays = draw(case, dtype, seed)
        run = run_of(graph, arrays, backend, dtype)
        mine = run.run([arrays.grad])
        for a, b in zip(mine, run.run([arrays.grad]), strict=True):
            assert torch.equal(a, b), "two runs differ"
        exact, usual = (stock(case, arrays, kind) for kind in (torch.float64, dtype))
        # Those of running statistics stand behind them.
        usual, exact = usual[: len(mine)], exact[: len(mine)]
        for i, (a, b, truth) in enumerate(zip(mine, usual, exact, strict=True)):
            is_image = i <= len(arrays.inputs)  # else of a param
            a = a.cpu().permute(0, 3, 1, 2) if is_image else a.cpu()
            pair = error(a, truth), error(b, truth)
            errors.setdefault(i, []).append(pair)
    for place, pairs in errors.items():
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        assert ours <= 2 * max(theirs, ROUNDING[dtype]), place
