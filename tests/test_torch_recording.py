# SPDX-License-Identifier: MIT
"""What can be recorded and lowered, what is refused, and that recording leaves no trace."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    Apply,
    Brick,
    Elan,
    Net,
    assert_close,
    assert_same_training,
    backward,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
def test_the_whole_vocabulary(keep: str) -> None:
    stock = Net()
    ours = ym.checkpoint(copy.deepcopy(stock), keep=keep)
    for _ in range(2):
        assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 2


LOWERED = {
    "chunk": lambda x: torch.cat(list(x.chunk(2, 1))[::-1], 1),
    "split": lambda x: torch.cat(x.split([3, 5], dim=1), dim=1),
    "torch.split": lambda x: torch.cat(torch.split(x, 4, 1), -3),
    "slices": lambda x: torch.cat((x[:, 4:], x[:, :4, :, :]), 1),
    "narrow": lambda x: torch.cat((x.narrow(1, 4, 4), x.narrow(1, 0, 4)), 1),
    "plus zero": lambda x: 0 + (x + 0),
    "add": lambda x: torch.add(x, x),
    "python sum": lambda x: sum([x, x]),
    "add_": lambda x: x.clone().add_(x),
    "iadd": lambda x: _iadd(x),
    "relu": lambda x: F.relu(x),
    "relu_": lambda x: torch.relu_(x + x),
    "method relu": lambda x: x.relu(),
    "leaky relu": lambda x: F.leaky_relu(x, 0.1, inplace=True),
    "silu in place": lambda x: F.silu(x + x, inplace=True),
    "relu6": lambda x: F.relu6(x),
    "relu6 in place": lambda x: F.relu6(x + x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.125, 0.75),
    "hardtanh_": lambda x: F.hardtanh_(x + x),
    "hardtanh in place": lambda x: F.hardtanh(x + x, 0, max_val=2, inplace=True),
    "hardswish": lambda x: F.hardswish(x),
    "hardswish in place": lambda x: F.hardswish(x + x, True),
    "mish": lambda x: F.mish(x),
    "mish in place": lambda x: F.mish(x + x, inplace=True),
    "stack and sum": lambda x: torch.stack((x, x, x)).sum(0),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "upsample": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
    "half the size": lambda x: F.interpolate(
        x, scale_factor=0.5, recompute_scale_factor=True
    ),
    "upsample to a size": lambda x: F.interpolate(x, size=(37, 53), mode="nearest"),
    "no dropout": lambda x: F.dropout(x, 0.0),
    "contiguous": lambda x: x.contiguous(),
    "no padding": lambda x: F.pad(x, [0, 0, 0, 0]) + x,
}


def _iadd(x: Tensor) -> Tensor:
    x = x + x
    x += x
    return x


@pytest.mark.parametrize("name", LOWERED)
def test_lowered_calls(name: str) -> None:
    stock = Apply(LOWERED[name])
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ran_in_core(ours) == 1


REFUSED = {
    "softmax": lambda x: x.softmax(1),
    "tanh": lambda x: x * x.tanh(),
    "pow": lambda x: x**3,
    "clamp": lambda x: x.clamp(0, 6),  # has a gradient at its bounds, unlike relu6
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 4),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, dilation=2),
    "pad": lambda x: F.pad(x, [1, 1, 1, 1]),
    "detach": lambda x: x.detach(),
    "permute": lambda x: x.permute(0, 1, 3, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_calls_are_named_and_stay_stock(name: str) -> None:
    stock = nn.Sequential(Brick(3, 3), Apply(REFUSED[name]))
    ours = ym.checkpoint(copy.deepcopy(stock))
    with pytest.raises(
        ym.CannotLower, match=rf"{name} in 1\b|conv2d in 1.last.*{name}"
    ):
        ours(image(size=32))
    ym.checkpoint(ours, strict=False)
    ours.load_state_dict(stock.state_dict())
    assert_same_training(ours, stock, image(size=32))
    found = {row.path: row for row in ym.report(ours).rows}
    assert found[""].state == "swapped" and "2 stages" in found[""].detail
    assert found["1"].state == "stock"
    assert name in found["1"].detail


@pytest.mark.parametrize("scale", [0.5, 1.5, (2.0, 1.5), 1.03])
def test_a_scale_that_is_not_whole_is_one_refused_call(scale: object) -> None:
    """1.03: the size stays, but some pixels are those before."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=scale)

    stock = nn.Sequential(Brick(3, 8, 3), Scaled(), Brick(8, 4, 3))
    with pytest.raises(ym.CannotLower, match=r"interpolate in 1: its scale is .*whole"):
        ym.checkpoint(copy.deepcopy(stock))(image(size=32))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_same_training(ours, stock, image(size=32))
    found = {row.path: row for row in ym.report(ours).rows}
    assert found[""].state == "swapped" and found["1"].state == "stock"


def test_every_activation_is_part_of_its_brick() -> None:
    """None costs memory beside the convolution's output."""

    def held_bytes(act: nn.Module) -> int:
        stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act)
        ours = ym.checkpoint(copy.deepcopy(stock))
        assert_same_training(ours, stock, image(size=32))
        return ym.report(ours).rows[0].held_bytes

    usual = held_bytes(nn.SiLU(inplace=True))
    for act in (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Mish):
        for in_place in (False, True):
            assert held_bytes(act(inplace=in_place)) == usual
    assert held_bytes(nn.Hardtanh(-0.25, 0.5)) == usual


def test_bounds_in_disorder_raise_torchs_own_error() -> None:
    module = ym.checkpoint(Apply(lambda x: F.hardtanh(x, 1.0, -1.0)))
    with pytest.raises(ValueError, match="min_val cannot be greater than max_val"):
        module(image(size=32))


def test_in_place_on_a_view_is_refused() -> None:
    def change_half(x: Tensor) -> Tensor:
        x.chunk(2, 1)[0].add_(1)
        return x

    def change_base(x: Tensor) -> Tensor:
        half = x[:, :4]
        return torch.cat((x.add_(x), half), 1)

    for function, c2 in ((change_half, 8), (change_base, 12)):
        module = ym.checkpoint(Apply(function, c2=c2))
        with pytest.raises(ym.CannotLower, match="view in place"):
            module(image(size=32))


def test_in_place_on_an_input_is_refused() -> None:
    module = ym.checkpoint(nn.Sequential(nn.SiLU(inplace=True), Brick(3, 4)))
    with pytest.raises(ym.CannotLower, match="silu in 0: it changes an input in place"):
        module(image(size=32))


def test_state_that_forward_changes_is_refused() -> None:
    class Counts(Brick):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen.add_(1)
            return super().forward(x)

    class Stores(Brick):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    with pytest.raises(ym.CannotLower, match="add_.*changes seen in place"):
        ym.checkpoint(Counts())(image(size=32))
    with pytest.raises(ym.CannotLower, match="changes the module itself; if its first"):
        ym.checkpoint(Stores(3, 4))(image(size=32))
    ours = ym.checkpoint(Stores(3, 4), strict=False)
    assert ours(image(size=32)) is ours.last


def test_a_computed_weight_is_refused_by_name() -> None:
    module = nn.Sequential(Brick(3, 4), Brick(4, 4))
    nn.utils.parametrizations.weight_norm(module[1].conv)
    with pytest.raises(ym.CannotLower, match=r"weight_norm in 1.conv"):
        ym.checkpoint(module)(image(size=32))


def test_values_decide_the_flow() -> None:
    module = ym.checkpoint(Apply(lambda x: x + x if x.sum() > 0 else x))
    with pytest.raises(ym.CannotLower, match="values of tensors"):
        module(image(size=32))


def test_no_gradient_inside_forward_is_refused() -> None:
    def frozen(x: Tensor) -> Tensor:
        with torch.no_grad():
            return F.relu(x)

    with pytest.raises(ym.CannotLower, match="gradients are disabled"):
        ym.checkpoint(Apply(frozen))(image(size=32))


def test_double_precision_is_refused() -> None:
    module = ym.checkpoint(Brick(3, 4).double())
    with pytest.raises(ym.CannotLower, match="float64"):
        module(image(size=32).double())


def test_a_module_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 3, 3)

        def forward(self, x):
            return self.brick(self.brick(x))

    stock = Twice()
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    assert ours.brick.bn.num_batches_tracked == 2


def test_tied_weights_sum_their_gradients() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Brick(3, 3), Brick(3, 3)
            self.b.conv.weight = self.a.conv.weight

        def forward(self, x):
            return self.b(self.a(x))

    stock = Tied()
    assert_same_training(ym.checkpoint(copy.deepcopy(stock)), stock, image(size=32))


def test_momentum_none_is_a_cumulative_average() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 3, 3)
            self.brick.bn.momentum = None

        def forward(self, x):
            return self.brick(self.brick(x))

    stock = Twice()
    ours = ym.checkpoint(copy.deepcopy(stock))
    for seed in range(3):
        assert_same_training(ours, stock, image(2 + seed, size=32))


def test_batch_norm_kinds() -> None:
    stock = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, affine=False),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
    )
    stock[5].running_mean.normal_()
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(size=32))
    for module in (ours, stock):
        module[5].eval()
    before = ours[5].running_mean.clone()
    assert_same_training(ours, stock, image(size=32))
    assert torch.equal(ours[5].running_mean, before)


def test_one_value_per_channel_raises_as_torch_does() -> None:
    module = ym.checkpoint(Brick(3, 4))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        module(image(1, 3, 1))
    module(image(2, 3, 1))


def test_shape_errors_are_torchs() -> None:
    module = ym.checkpoint(Brick(3, 4))
    with pytest.raises(RuntimeError, match="expected input.*to have 3 channels"):
        module(image(1, 5, 32))


def test_sync_batch_norm_without_a_process_group_is_batch_norm() -> None:
    stock = nn.SyncBatchNorm.convert_sync_batchnorm(Elan(3, 8, 4))
    assert_same_training(ym.checkpoint(copy.deepcopy(stock)), stock, image(size=32))


def test_recording_leaves_no_trace() -> None:
    module = Net()
    state = copy.deepcopy(module.state_dict())
    attributes = {n: set(m.__dict__) for n, m in module.named_modules()}
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    generators = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state(),
    )
    out = ym.checkpoint(module)(image(size=32))
    assert random.getstate() == generators[0]
    assert np.random.get_state()[1].tolist() == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])
    assert {n: set(m.__dict__) for n, m in module.named_modules()} == attributes
    for name, before in state.items():
        now = module.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert now == before + 1, name
        elif "running" not in name:
            assert torch.equal(now, before), name
    assert not any(p.grad is not None for p in module.parameters())
    backward(out)


def test_hooks_and_heavy_attributes_are_not_copied() -> None:
    class NoCopy:
        def __deepcopy__(self, memo):
            raise AssertionError

        def __call__(self, *args):
            return None

    module = Brick(3, 4)
    module.register_forward_hook(NoCopy())
    ym.checkpoint(module)(image(size=32))
    assert ran_in_core(module) == 1
    module.trainer = NoCopy()
    with pytest.raises(ym.CannotLower, match="cannot be deep-copied"):
        module(image(size=32))


def test_a_list_that_forward_writes_into() -> None:
    class Head(nn.Module):
        """As the field's Detect: replaces the features in the list that it is given."""

        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(Brick(3, 4) for _ in range(2))

        def forward(self, x):
            for i, head in enumerate(self.heads):
                x[i] = head(x[i])
            return x

    stock = Head()
    ours = ym.checkpoint(copy.deepcopy(stock))
    given, expected = [image(size=32), image()], [image(size=32), image()]
    made = ours(given)
    assert made is given
    assert_close(made, stock(expected))
    backward(made)
    assert ran_in_core(ours) == 1
