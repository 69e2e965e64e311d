# SPDX-License-Identifier: MIT
"""The named blocks on NumPy arrays against stock PyTorch modules in float64.

Rule: relative L2 error, pooled over the tensors of a case, median over five seeds, at
most twice that of stock PyTorch in the same dtype.
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import yolov9mem
from yolov9 import blocks as stock

CASES = {
    "conv": (yolov9mem.conv, stock.Conv, (6, 10, 3, 2)),
    "conv, 5x5, no padding": (yolov9mem.conv, stock.Conv, (6, 10, 5, 1, 0)),
    "conv, groups, dilation": (yolov9mem.conv, stock.Conv, (6, 9, 3, 1, None, 3, 2)),
    "aconv": (yolov9mem.aconv, stock.AConv, (6, 7)),
    "adown": (yolov9mem.adown, stock.ADown, (6, 10)),
    "elan1": (yolov9mem.elan1, stock.ELAN1, (5, 11, 6, 7)),
    "rep_ncsp_elan4": (
        yolov9mem.rep_ncsp_elan4,
        stock.RepNCSPELAN4,
        (6, 11, 8, 6, 2),
    ),
    "sppelan": (yolov9mem.sppelan, stock.SPPELAN, (6, 9, 5)),
}
SIZE = (2, 13, 11)


def to_nhwc(x: Tensor) -> np.ndarray:
    """(N, C, H, W) float32 to (N, H, W, C), packed."""
    return np.ascontiguousarray(x.detach().permute(0, 2, 3, 1).numpy())


def to_nchw(x: np.ndarray) -> Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def to_bits(x: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16."""
    return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()


def from_bits(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).view(torch.bfloat16).float().numpy()


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Norms away from ones and zeros."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.rand(m.weight.shape, generator=g) + 0.5)
                m.bias.copy_(torch.randn(m.bias.shape, generator=g) * 0.3)
                m.running_mean.copy_(torch.randn(m.bias.shape, generator=g) * 0.3)
                m.running_var.copy_(torch.rand(m.bias.shape, generator=g) + 0.5)
    return module


def params_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}


def run_torch(module: nn.Module, x: Tensor, dy: Tensor, bf16: bool) -> list[Tensor]:
    """Output, input gradient, parameter gradients, running buffers."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = module(x)
    y.backward(dy.to(y.dtype))
    grads = [p.grad for p in module.parameters()]
    state = [b for b in module.buffers() if b.is_floating_point()]
    return [y.detach(), x.grad, *grads, *state]


def run_block(
    block: yolov9mem.Block,
    module: nn.Module,
    x: Tensor,
    dy: Tensor,
    bf16: bool,
    **options,
) -> list[Tensor]:
    convert, back = (to_bits, from_bits) if bf16 else (lambda a: a, lambda a: a)
    params = params_of(module)
    y = block.forward(convert(to_nhwc(x)), params, **options)
    dx, grads = block.backward(convert(to_nhwc(dy)))
    return [
        to_nchw(back(y)),
        to_nchw(back(dx)),
        *(torch.from_numpy(grads[name]) for name, _ in module.named_parameters()),
        *(
            torch.from_numpy(params[name])
            for name, b in module.named_buffers()
            if b.is_floating_point()
        ),
    ]


def pooled_error(found: list[Tensor], exact: list[Tensor]) -> float:
    pairs = list(zip(found, exact, strict=True))
    wrong = sum(float((a.double() - b).square().sum()) for a, b in pairs)
    return (wrong / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, bf16: bool) -> None:
    build, module_class, arguments = CASES[name]
    block = build(*arguments)
    options = [{"keep": k} for k in ("conv", "min", "all")] + [{"backend": "ref"}]
    errors: list[list[float]] = []
    for seed in range(5):
        torch.manual_seed(seed)
        module = shaken(module_class(*arguments), seed)
        x = torch.randn(SIZE[0], arguments[0], *SIZE[1:])
        exact_module = copy.deepcopy(module).double()
        dy = torch.randn(module(x).shape)
        shaken(module, seed)  # the trial run moved the buffers
        exact = run_torch(exact_module, x.double(), dy.double(), False)
        ours = [run_block(block, module, x, dy, bf16, **o) for o in options]
        theirs = run_torch(module, x, dy, bf16)
        errors.append([pooled_error(found, exact) for found in [*ours, theirs]])
    *ours, theirs = (statistics.median(column) for column in zip(*errors, strict=True))
    for option, error in zip(options, ours, strict=True):
        assert error <= 2 * theirs, f"{option}: {error:.3g}, stock {theirs:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_the_state_dict(name: str) -> None:
    build, module_class, arguments = CASES[name]
    module = module_class(*arguments)
    shapes = {k: v.shape for k, v in build(*arguments).initial_params().items()}
    assert shapes == {k: tuple(v.shape) for k, v in module.state_dict().items()}


def small() -> tuple[yolov9mem.Block, dict[str, np.ndarray], np.ndarray]:
    block = yolov9mem.elan1(4, 6, 4, 3)
    x = np.random.default_rng(1).standard_normal((2, 5, 7, 4), np.float32)
    return block, block.initial_params(3), x


def test_evaluation_uses_and_leaves_the_running_buffers() -> None:
    torch.manual_seed(0)
    module = shaken(stock.ELAN1(4, 6, 4, 3), 0).eval()
    block, _, x = small()
    params = params_of(module)
    before = copy.deepcopy(params)
    y = block.forward(x, params, training=False)
    dx, grads = block.backward(y)
    leaf = to_nchw(x).clone().requires_grad_()
    expected = module(leaf)
    expected.backward(expected.detach())
    torch.testing.assert_close(to_nchw(y), expected.detach())
    torch.testing.assert_close(to_nchw(dx), leaf.grad)
    for key, p in module.named_parameters():
        torch.testing.assert_close(torch.from_numpy(grads[key]), p.grad)
    for key, value in before.items():
        np.testing.assert_array_equal(params[key], value)


def test_the_caller_owns_the_gradients() -> None:
    block, params, x = small()
    y = block.forward(x, params)
    _, expected = block.backward(y)
    block.forward(x, params)
    mine = np.full((4, 4, 1, 1), np.nan, np.float32)
    dx = np.full(x.shape, np.nan, np.float32)
    got, grads = block.backward(y, out={"cv1.conv.weight": mine, "x": dx})
    assert grads["cv1.conv.weight"] is mine
    assert got is dx
    np.testing.assert_array_equal(mine, expected["cv1.conv.weight"])
    assert np.isfinite(dx).all()


def test_frozen_parameters_and_no_input_gradient() -> None:
    block, params, x = small()
    y = block.forward(x, params)
    _, expected = block.backward(y)
    frozen = {"cv1.conv.weight", "cv2.bn.bias"}
    block.forward(x, params, frozen=frozen, input_grad=False)
    dx, grads = block.backward(y)
    assert dx is None
    assert set(grads) == set(block.param_shapes) - frozen
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, expected[name])


def test_backward_once() -> None:
    block, params, x = small()
    with pytest.raises(RuntimeError, match="no forward"):
        block.backward(x)
    y = block.forward(x, params)
    block.backward(y)
    with pytest.raises(RuntimeError, match="once per forward"):
        block.backward(y)
    block.forward(x, params)
    block.release()
    with pytest.raises(RuntimeError, match="no forward"):
        block.backward(y)


def test_the_plan_reads_as_a_table() -> None:
    block, params, x = small()
    plan = block.plan((2, 5, 7))
    text = str(plan)
    assert "cv4.conv" in text
    assert "kept" in text
    assert "rebuilt" in text
    held = sum(row["bytes"] for row in plan.core.table() if row["state"] == "kept")
    assert held <= plan.saved_bytes <= held + 64 * (2 * len(block.norms) + 8) * 2
    assert plan.peak_bytes == plan.saved_bytes + plan.workspace_bytes
    assert block.forward(x, params).shape == plan.output_shape


def test_keeping_less_saves_memory() -> None:
    block = yolov9mem.rep_ncsp_elan4(16, 16, 16, 8, 1)
    sizes = [block.plan((2, 40, 40), keep=k) for k in ("all", "conv", "min")]
    saved = [plan.saved_bytes for plan in sizes]
    assert saved[0] > saved[1] > saved[2]
    budget = block.plan((2, 40, 40), keep=f"{sizes[1].peak_bytes / 1000:.3f}kB")
    assert budget.peak_bytes <= sizes[1].peak_bytes


def conv_params() -> dict[str, np.ndarray]:
    return yolov9mem.conv(4, 4).initial_params()


def wrong_calls():
    block, params, x = small()
    missing = {k: v for k, v in params.items() if k != "cv2.bn.bias"}
    double = params | {"cv1.conv.weight": params["cv1.conv.weight"].astype(float)}
    shape = params | {"cv1.conv.weight": np.zeros((4, 3, 1, 1), np.float32)}
    locked = params["cv3.bn.running_var"].copy()
    locked.flags.writeable = False
    f = block.forward
    return {
        "no array": (lambda: f([1.0], params), TypeError, "x: is a list"),
        "dimensions": (lambda: f(x[0], params), ValueError, r"x: shape is \(5, 7, 4\)"),
        "packed": (lambda: f(x[:, :, ::2], params), ValueError, "x: strides"),
        "channels": (lambda: f(x.repeat(2, 3), params), ValueError, "must be .*4"),
        "dtype": (lambda: f(x.astype(float), params), TypeError, "x: dtype is float64"),
        "missing": (lambda: f(x, missing), ValueError, "'cv2.bn.bias' is missing"),
        "unknown": (lambda: f(x, params | {"a": x}), ValueError, "'a' is no tensor"),
        "weight dtype": (lambda: f(x, double), TypeError, "cv1.conv.weight.*float64"),
        "weight shape": (lambda: f(x, shape), ValueError, r"cv1.conv.weight.*4, 3, 1"),
        "read-only": (
            lambda: f(x, params | {"cv3.bn.running_var": locked}),
            ValueError,
            "running_var of cv3.bn: is read-only",
        ),
        "keep": (lambda: f(x, params, keep="some"), ValueError, "keep: is 'some'"),
        "budget": (lambda: f(x, params, keep="1kB"), ValueError, "budget"),
        "backend": (lambda: f(x, params, backend="gpu"), ValueError, "backend"),
        "frozen": (lambda: f(x, params, frozen=["b"]), ValueError, "'b' is no param"),
        "size": (lambda: block.plan((2, 0, 7)), ValueError, "0"),
        "builder": (lambda: yolov9mem.elan1(4, 6, 5, 3), ValueError, "c3 is 5"),
        "builder 0": (lambda: yolov9mem.conv(4, 0), ValueError, "c2 is 0"),
        "groups": (lambda: yolov9mem.conv(4, 6, g=4), ValueError, "g is 4"),
        "groups of 1.5": (lambda: yolov9mem.conv(4, 6, g=1.5), ValueError, "g is 1.5"),
        "eps": (lambda: yolov9mem.conv(4, 6, eps=np.nan), ValueError, "eps is nan"),
        "momentum": (
            lambda: yolov9mem.adown(4, 6, momentum=2.0),
            ValueError,
            "momentum is 2.0",
        ),
        "huge padding": (
            lambda: yolov9mem.conv(4, 6, 3, p=2**31 - 1).plan((1, 5, 5)),
            ValueError,
            "leaves no output, or one of more than",
        ),
        "one value": (
            lambda: f(x[:1, :1, :1], params),
            ValueError,
            "batch norm cv1.* has one value",
        ),
        "count": (
            lambda: f(x, params | {"cv1.bn.num_batches_tracked": 3}),
            TypeError,
            "cv1.bn.num_batches_tracked: is int, must be an integer array",
        ),
        "own memory": (
            lambda: yolov9mem.conv(4, 4).forward(x, conv_params(), out=x),
            ValueError,
            "out: shares memory with x",
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_wrong_calls_name_tensor_value_and_rule(name: str) -> None:
    call, kind, words = wrong_calls()[name]
    with pytest.raises(kind, match=words):
        call()


def test_sizes_may_be_numpy_s_integers() -> None:
    block = yolov9mem.elan1(*np.array([4, 6, 6, 3]))
    assert block.param_shapes == yolov9mem.elan1(4, 6, 6, 3).param_shapes
    assert block.plan((1, 5, 5)).output_shape == (1, 5, 5, 6)


def test_wrong_gradients() -> None:
    block, params, x = small()
    y = block.forward(x, params)
    with pytest.raises(ValueError, match=r"grad_outputs\[0\]: shape"):
        block.backward(y[:1])
    with pytest.raises(ValueError, match="no gradient of 'z'"):
        block.backward(y, out={"z": y})
    with pytest.raises(TypeError, match=r"cv1\.bn\.bias.*float64"):
        block.backward(y, out={"cv1.bn.bias": np.zeros(4)})
    same = np.zeros_like(params["cv1.bn.bias"])
    for out in (
        {"cv1.bn.bias": same, "cv1.bn.weight": same},
        {"cv1.bn.bias": params["cv1.bn.bias"]},
        {"x": x},
    ):
        with pytest.raises(ValueError, match="shares memory with"):
            block.backward(y, out=out)
    block.backward(y)  # a refused call consumed nothing


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, yolov9mem as y; b = y.adown(2, 2); p = b.initial_params()\n"
        "import numpy as np; r = b.forward(np.ones((1, 6, 6, 2), np.float32), p)\n"
        "b.backward(r); assert not {'torch', 'cv2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
