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


def test_running_buffers_may_be_read_only_where_nothing_moves_them() -> None:
    block, params, x = small()
    wanted = block.forward(x, params, training=False)
    locked = {name: array.copy() for name, array in params.items()}
    for array in locked.values():
        array.flags.writeable = False
    np.testing.assert_array_equal(block.forward(x, locked, training=False), wanted)


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


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys, yolov9mem as y; b = y.adown(2, 2); p = b.initial_params()\n"
        "import numpy as np; r = b.forward(np.ones((1, 6, 6, 2), np.float32), p)\n"
        "b.backward(r); assert not {'torch', 'cv2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_seed_is_a_whole_number() -> None:
    """Of None other weights would be drawn each time."""
    block = yolov9mem.conv(2, 2)
    for seed in (None, 0.5, True, [1]):
        with pytest.raises(TypeError, match="seed: is .*, must be a whole number"):
            block.initial_params(seed)
    with pytest.raises(ValueError, match="seed: is -1, must be 0 to"):
        block.initial_params(-1)


def test_an_epsilon_of_few_bits() -> None:
    """Compared in its own type, the largest float32 would overflow, with a warning."""
    assert yolov9mem.conv(2, 2, eps=np.float16(0.5)).norms[0].eps == 0.5
    with pytest.raises(ValueError, match="eps: is inf, must be finite"):
        yolov9mem.conv(2, 2, eps=np.float16(np.inf))
