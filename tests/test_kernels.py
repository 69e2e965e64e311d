# SPDX-License-Identifier: MIT
"""Each kernel of the backends "ref" and "cpu", by way of graphs of one or few nodes.

What is compared with what: forward, input gradients, parameter gradients and running
statistics of `_core.Plan` with stock PyTorch in float64. The relative L2 error may be at
most twice that of stock PyTorch in the same dtype (bfloat16: float32 parameters cast at
the call, as under autocast), or the rounding of one operation where stock is exact.
"""

from __future__ import annotations

import os
import statistics

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import each_lesser_isa, run_again
from kernel_calls import ACTIVATIONS, HIGH, LOW
from kernel_cases import (
    CASES,
    Case,
    bilinear_case,
    brick_case,
    conv_case,
    maximum_case,
    pool_case,
)
from kernel_oracle import (
    DTYPES,
    ROUNDING,
    check_activation_of,
    draw,
    error,
    ours,
    stock,
)

from yolov9mem import _core

# PyTorch's slopes at the corners of hardswish were others in earlier versions (2.4).
OLD_HARDSWISH = bool(
    torch.autograd.functional.vjp(F.hardswish, torch.tensor([-3.0]), torch.ones(1))[1]
)


# Weights outnumber the pixels: csrc/cpu/many_weights.c, and the blocks of winograd.c.
FEW_PIXELS = [
    conv_case(2, 9, 10, 64, 256, 3, 1, 1),
    conv_case(3, 12, 9, 64, 512, 3, 1, 1, 1, 2),
    conv_case(5, 3, 4, 260, 70, 1),
    conv_case(2, 6, 7, 40, 300, (3, 2), 2, 1),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES + FEW_PIXELS, ids=lambda case: case.name)
def test_kernel_keeps_the_error_rule(case: Case, dtype: str) -> None:
    errors: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for seed in range(3, 3 + case.seeds):
        graph, arrays = draw(case, DTYPES[dtype], seed)
        exact = stock(case, arrays, torch.float64)
        usual = stock(case, arrays, DTYPES[dtype])
        for backend in ("ref", "cpu"):
            mine = ours(case, graph, arrays, backend, DTYPES[dtype])
            for i, (a, b, truth) in enumerate(zip(mine, usual, exact, strict=True)):
                pair = error(a, truth), error(b, truth)
                errors.setdefault((backend, i), []).append(pair)
    for place, pairs in errors.items():
        mine, usual = (statistics.median(side) for side in zip(*pairs, strict=True))
        assert mine <= 2 * max(usual, ROUNDING[dtype]), place


def test_result_does_not_depend_on_the_threads() -> None:
    before = _core.get_num_threads()
    chosen = [CASES[3], CASES[6], CASES[12], CASES[24], CASES[-1]]
    chosen += FEW_PIXELS
    chosen.append(bilinear_case((2, 16, 40, 40), (90, 70)))
    chosen.append(conv_case(2, 40, 39, 40, 80, 3, 2, 1, 1, 40))
    chosen.append(conv_case(1, 90, 85, 37, 37, 5, 1, 2, 1, 37))
    chosen.append(conv_case(1, 21, 19, 130, 70, 3, 1, 10, 10))
    chosen.append(conv_case(2, 90, 1, 32, 48, 3, 1, 1))
    chosen.append(conv_case(3, 90, 85, 3, 40, 3, 2, 1))
    chosen += [pool_case((2, 40, 31, 30), kind, 5, 1, 2) for kind in ("max", "avg")]
    try:
        for case in chosen:
            graph, arrays = draw(case, torch.float32)
            results = []
            for count in (1, 2, 5):
                _core.set_num_threads(count)
                results.append(ours(case, graph, arrays, "cpu", torch.float32))
            for other in results[1:]:
                assert all(map(torch.equal, results[0], other)), case.name
    finally:
        _core.set_num_threads(before)


def check_that_the_first_and_nan_win(case: Case, backend: str) -> None:
    graph, arrays = draw(case, torch.float32)
    arrays.inputs[0].round_()
    arrays.inputs[0][0, 3, 4, 4] = float("nan")
    arrays.inputs[0][1, 2] = float("-inf")
    arrays.grad.round_()
    exact = stock(case, arrays, torch.float32)
    mine = ours(case, graph, arrays, backend, torch.float32)
    for a, b in zip(mine, exact, strict=True):
        assert torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_max_pool_takes_the_first_maximum_and_nan_wins(
    backend: str, kernel: int
) -> None:
    case = pool_case((2, 19, 9, 8), "max", kernel, 1, kernel // 2)
    check_that_the_first_and_nan_win(case, backend)


@pytest.mark.parametrize("axes", ["hw", "h", "w", "c"])
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_maximum_takes_the_first_and_nan_wins(backend: str, axes: str) -> None:
    check_that_the_first_and_nan_win(maximum_case((2, 19, 9, 8), axes), backend)


def assert_same_at(
    places: torch.Tensor,
    mine: list[torch.Tensor],
    exact: list[torch.Tensor],
    **near: float,
) -> None:
    """Output and gradient of the first elements, which are `places`. At NaN even torch's
    vectorized and scalar loops differ in the gradient."""
    known = ~places.isnan()
    (y, dx), (exact_y, exact_dx) = (
        [t.reshape(-1)[: len(places)].double() for t in side[:2]]
        for side in (mine, exact)
    )
    assert torch.allclose(y, exact_y, **near, equal_nan=True)
    assert torch.allclose(dx[known], exact_dx[known], **near)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_activation_of_extreme_values(backend: str, kind: str) -> None:
    """No overflow on the way, NaN stays NaN."""
    case = brick_case((1, 4, 3, 3), kind, norms=0)
    graph, arrays = draw(case, torch.float32)
    places = torch.tensor([1e30, -1e30, 88.8, -88.8, 200.0, -104.0, float("nan")])
    arrays.inputs[0].view(-1)[:7] = places
    exact = stock(case, arrays, torch.float64)
    mine = ours(case, graph, arrays, backend, torch.float32)
    assert_same_at(places, mine, exact, rtol=1e-5, atol=1e-34)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("terms", "norms"), [(1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_activation_at_infinities(
    backend: str, terms: int, norms: int, kind: str
) -> None:
    """Every result and gradient that stock has a number for is that number: one pixel too
    large does not make NaN of what is summed over all."""
    case = brick_case((1, 4, 5, 3), kind, terms=terms, norms=norms, frozen=True)
    graph, arrays = draw(case, torch.float32)
    inf = float("inf")
    places = torch.tensor([inf, -inf, 1e38, -1e38, 3e38, -3e38]).repeat(2)
    arrays.inputs[-1].view(-1)[: len(places)] = places
    exact = stock(case, arrays, torch.float64)
    usual = stock(case, arrays, torch.float32)
    mine = ours(case, graph, arrays, backend, torch.float32)
    for made, b, truth in zip(mine, usual, exact, strict=True):
        known = b.isfinite()
        assert torch.allclose(made[known].double(), truth[known], 1e-5, 1e-6)


@pytest.mark.parametrize(
    "kind", ["relu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid"]
)
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_activation_at_its_corners(backend: str, kind: str) -> None:
    """At and beside each, derivatives are torch's; 0 even where the gradient from above
    is infinite."""
    case = brick_case((1, 4, 5, 3), kind, norms=0)
    graph, arrays = draw(case, torch.float32)
    corners = torch.tensor([0.0, LOW, HIGH, -3.0, 3.0])
    beside = [torch.nextafter(corners, torch.tensor(to)) for to in (-9.0, 9.0)]
    places = torch.cat([corners, *beside]).repeat(2)
    arrays.inputs[0].view(-1)[:30] = places
    arrays.grad.view(-1)[15:30] = float("inf")
    exact = stock(case, arrays, torch.float32)
    mine = ours(case, graph, arrays, backend, torch.float32)
    if kind == "hardswish" and OLD_HARDSWISH:
        places = places.where(places.abs() != 3, float("nan"))
    assert_same_at(places, mine, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_activation_keeps_the_error_rule(backend: str, kind: str, dtype: str) -> None:
    check_activation_of(backend, kind, DTYPES[dtype])


def test_bounds_of_an_activation_are_in_order() -> None:
    graph = _core.Graph()
    x = graph.input(1)
    graph.activation(x, "hardtanh", low=0.5, high=0.5)
    for low, high in ((2.0, 1.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match=f"low is {low:g}, must be at most high"):
            graph.activation(x, "hardtanh", low=low, high=high)


def test_upsampling_that_is_refused() -> None:
    graph = _core.Graph()
    x = graph.input(1)
    for words, given in {
        "mode is 'bicubic', must be nearest or bilinear": {"mode": "bicubic"},
        "align_corners is for bilinear only": {"align_corners": True},
        "scale or size": {"scale": (2.0, 2.0)},
    }.items():
        with pytest.raises(ValueError, match=f"upsample.*{words}"):
            graph.upsample(x, size=(3, 3), **given)
    for scale in (0.0, -1.0, 1025.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1024"):
            graph.upsample(x, scale=(1.0, scale), mode="bilinear")
    graph.output(graph.upsample(x, scale=(0.4, 1.0), mode="bilinear"))
    with pytest.raises(ValueError, match=r"upsample : .* has an output of \(0, 7\)"):
        _core.Plan(graph, [(1, 2, 7)])


def test_child_of_a_fork_has_its_own_threads() -> None:
    case = CASES[3]
    graph, arrays = draw(case, torch.float32)
    expected = ours(case, graph, arrays, "cpu", torch.float32)
    child = os.fork()
    if child == 0:
        again = ours(case, graph, arrays, "cpu", torch.float32)
        os._exit(0 if all(map(torch.equal, expected, again)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@each_lesser_isa
def test_other_instruction_sets(isa: str) -> None:
    """Elsewhere than on x86-64 there is only "plain"."""
    run_again(__file__, "error_rule or first_maximum or activation_", isa)
