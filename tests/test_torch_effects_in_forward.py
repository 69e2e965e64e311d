# SPDX-License-Identifier: MIT
"""Forwards that change more than they return: buffers, tensors of others, statistics.

What is compared with what: losses, gradients and what is changed, over three steps, with
those of stock PyTorch; with strict=True such a forward is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Brick, assert_close, image, ran_in_core
from torch import Tensor, nn

import yolov9mem.torch as ym

COUNTS: dict[str, Tensor] = {}
LOG: list[Tensor] = []
MASK = torch.eye(16) > 0


class Store:
    total = torch.zeros(2)


class Unbound:
    """As a proxy of Flask's outside of a request."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("working outside of context")


CURRENT = Unbound()  # which is looked over with the other globals


def clear() -> None:
    COUNTS.clear()
    COUNTS.update(steps=torch.zeros(2))
    LOG[:] = [torch.zeros(2)]
    Store.total = torch.zeros(2)


def outside() -> list[Tensor]:
    return [*COUNTS.values(), *LOG, Store.total]


Effect = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """Two layers with an effect between, which may make what the second reads."""

    def __init__(self, effect: Effect) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.effect = effect
        self.first, self.last = Brick(3, 8, 3), Brick(8, 4, 3)
        self.register_buffer("seen", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        made = self.effect(self, y)
        is_one = isinstance(made, Tensor) and made.shape == y.shape
        return self.last(made if is_one else y)


def observed(module: Net, y: Tensor) -> object:
    """As torch.ao.quantization's observers, whose operator changes what it is given."""
    on, zero = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.int32)
    low, high, scale = (module.seen[i : i + 1] for i in range(3))
    return torch.fused_moving_avg_obs_fake_quant(
        torch.arange(4.0), on, on, low, high, scale, zero, 0.1, 0, 255, 0
    )[:0].sum()


def reassign(module: Net, y: Tensor) -> None:
    COUNTS["steps"] = COUNTS["steps"] + 1


def extend(module: Net, y: Tensor) -> None:
    LOG[0] = LOG[0] + 1


def class_attribute(module: Net, y: Tensor) -> None:
    Store.total = Store.total + 1


def item(module: Net, y: Tensor) -> None:
    COUNTS["steps"][0] += 1


OF_THE_MODULE: dict[str, Effect] = {
    "foreach": lambda module, y: torch._foreach_add_([module.seen], 1.0),
    "foreach copy": lambda m, y: torch._foreach_copy_([m.seen], [torch.zeros(3)]),
    "set": lambda module, y: module.seen.set_(module.seen * 2 + 1),
    "swap": lambda m, y: torch.utils.swap_tensors(m.seen, torch.arange(3.0)),
    "observer": lambda module, y: observed(module, y) * 0 + y,
    "unread observer": observed,
}
OF_OTHERS: dict[str, Effect] = {
    "add to a global": lambda module, y: COUNTS["steps"].add_(1),
    "add to a class's": lambda module, y: Store.total.add_(1),
    "out": lambda m, y: torch.add(COUNTS["steps"], 1, out=COUNTS["steps"]),
    "detached": lambda module, y: COUNTS["steps"].detach().add_(1),
    "data": lambda module, y: COUNTS["steps"].data.add_(1),
    "a view": lambda module, y: COUNTS["steps"].view(1, 2)[0].add_(1),
    "item": item,
    "reassign": reassign,
    "list": extend,
    "class attribute": class_attribute,
}
OF_STATISTICS: dict[str, Effect] = {
    "variance": lambda m, y: F.elu(
        y * (m.first.bn.running_var + 1).sqrt()[:, None, None]
    ),
    "count": lambda module, y: F.elu(y * (1 + module.first.bn.num_batches_tracked)),
    "later variance": lambda m, y: F.elu(y * (m.last.bn.running_var[0] + 1).sqrt()),
}
EFFECTS = OF_THE_MODULE | OF_OTHERS | OF_STATISTICS


def train(module: nn.Module) -> list[Tensor]:
    """Everything there is after three steps."""
    clear()
    found: list[Tensor] = []
    for step in range(3):
        module.zero_grad(set_to_none=True)
        loss = module(image(size=16) * (step + 1)).square().mean()
        loss.backward()
        found += [loss, *(p.grad for p in module.parameters())]
    return found + [*module.buffers(), *(x.clone() for x in outside())]


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("name", EFFECTS)
def test_effects_are_stocks(name: str, keep: str) -> None:
    stock = Net(EFFECTS[name])
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    for a, b in zip(train(ours), train(stock), strict=True):
        assert_close(a.float(), b.float(), 1e-3)


# PyTorch refuses to swap a tensor that has weak references, as a fake may have: then the
# stock forward runs, to see if that is the module's own error.
@pytest.mark.parametrize("name", sorted(EFFECTS.keys() - {"swap"}))
def test_strict_refuses_them_and_leaves_all_as_it_was(name: str) -> None:
    ours = ym.checkpoint(Net(EFFECTS[name]))
    clear()
    before = [x.clone() for x in (*ours.buffers(), *outside())]
    with pytest.raises(NotImplementedError, match="strict=False"):
        ours(image(size=16))
    for a, b in zip((*ours.buffers(), *outside()), before, strict=True):
        assert torch.equal(a, b)


def test_a_change_of_activations_in_a_list_is_made() -> None:
    stock = Net(lambda module, y: torch._foreach_mul_([y], 2.0))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for a, b in zip(train(ours), train(stock), strict=True):
        assert_close(a.float(), b.float(), 1e-3)


class Noisy(nn.Module):
    """A piece that is recomputed ends with the noise: the first is cut behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = Brick(3, 8, 3), Brick(8, 8, 3)
        self.last = Brick(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.rrelu(self.first(x), training=True)
        y = self.middle(F.group_norm(y, 2).tanh())
        return self.last(F.rrelu(y, training=True))


@pytest.mark.parametrize("keep", ["conv", "min"])
def test_noise_that_a_kernel_fills_in_is_not_drawn_again(keep: str) -> None:
    """RReLU saves it for backward before, which is where a recomputation ends."""
    stock = Noisy()
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    found = []
    try:
        torch.use_deterministic_algorithms(True)  # NaN is in what is not filled
        for module in (ours, stock):
            torch.manual_seed(3)
            found.append(train(module))
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(*found, strict=True):
        assert_close(a.float(), b.float(), 1e-3)
    assert ran_in_core(ours) == 3


def test_a_cumulative_average_of_a_stock_call_is_stocks() -> None:
    class Averaged(Net):
        def __init__(self) -> None:
            super().__init__(lambda module, y: module.norm(y.flatten(2)).view(y.shape))
            self.norm = nn.BatchNorm1d(8, momentum=None)

    stock = Averaged()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for a, b in zip(train(ours), train(stock), strict=True):
        assert_close(a.float(), b.float(), 1e-3)


def test_names_that_begin_like_augmented_ones_change_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = Brick(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x * ~MASK)

    stock = Masked()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_close(ours(image()), stock(image()))
    assert ran_in_core(ours) == 1


def test_an_empty_batch_is_stocks() -> None:
    ours = ym.checkpoint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()))
    ours(torch.rand(0, 3, 8, 8)).sum().backward()
    assert ran_in_core(ours) == 0 and "empty" in ym.report(ours).rows[0].detail
    assert ours[0].weight.grad.abs().sum() == 0
    ours(image(size=8)).sum().backward()
    assert ran_in_core(ours) == 1


def test_sizes_may_be_arrays() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Brick(3, 8, 3), Brick(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            size = np.array([x.shape[2] // 2, x.shape[3] // 2])
            return self.last(F.adaptive_avg_pool2d(self.first(x), size))

    torch.manual_seed(0)
    stock = Pooled()
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    assert_close(ours(image(size=16)), stock(image(size=16)))
    assert ran_in_core(ours) == 1
