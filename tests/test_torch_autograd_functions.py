# SPDX-License-Identifier: MIT
"""Functions with a backward of their own within a forward: one stock call each."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_of
from emulated_gpu import autocast_of_a_gpu  # noqa: F401
from models_for_tests import Brick, assert_same_training, image, trained_with_seed
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten

import yolov9mem.torch as ym
from yolov9mem.torch.recording.fakes import FakeCopy
from yolov9mem.torch.recording.record import record
from yolov9mem.torch.running import registry


class Swish(Function):
    """As of EfficientNets that save memory so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class Scaled(Function):
    """Takes a parameter, a number and nothing; has two results, one without gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, power: float, bias: None) -> Any:
        ctx.save_for_backward(x, scale)
        ctx.power = power
        signs = x.sign()
        ctx.mark_non_differentiable(signs)
        return x * scale * power, signs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        x, scale = ctx.saved_tensors
        return grad * scale * ctx.power, (grad * x).sum() * ctx.power, None, None


class InPlace(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 3


class Straight(Function):
    """Rounds, with the gradient of doing nothing; in the later way of writing."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mul(8).round().div(8)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Shaken(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.rand(len(grad), 1, 1, 1)


class Decorated(Function):
    """As those of mmcv and of state space models are written."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


def scaling(factor: float) -> type[Function]:
    class ByFactor(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * factor

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * factor

    return ByFactor


class Twice(Function):
    """Calls another function in its own forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return Swish.apply(x) + x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)) + 1)


class Measured(Function):
    """Has the sizes among its results, before the one that it keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        made = x.exp()
        ctx.save_for_backward(made)
        return x.shape, made

    @staticmethod
    def backward(ctx: Any, _: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class Calls(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(Brick(3, 8, 3), Brick(8, 8, 3))
        self.last = nn.Sequential(Brick(8, 8), Brick(8, 4))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def scaled(module: nn.Module, x: Tensor) -> Tensor:
    y, signs = Scaled.apply(x, module.scale, 2.0, None)
    return y + signs


def measured(module: nn.Module, x: Tensor) -> Tensor:
    shape, y = Measured.apply(x)
    return y.view(shape)


KINDS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "swish": lambda m, x: Swish.apply(x),
    "scaled": scaled,
    "in place": lambda m, x: InPlace.apply(x * 2),
    "straight": lambda m, x: Straight.apply(x),
    "drawn": lambda m, x: Shaken.apply(x),
    "decorated": lambda m, x: Decorated.apply(x),
    "with a number": lambda m, x: scaling(3.0).apply(x),
    "one in another": lambda m, x: Twice.apply(x),
    "by a device": lambda m, x: by_device(x),
    "measured": measured,
}


def by_device(x: Tensor) -> Tensor:
    with torch.device("cpu"):
        return Swish.apply(x)


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
@pytest.mark.parametrize("name", KINDS)
def test_a_function_is_one_stock_call(name: str, keep: str) -> None:
    torch.manual_seed(0)
    stock = Calls(KINDS[name])
    ours = ym.checkpoint(copy.deepcopy(stock), keep, strict=False)
    for _ in range(2):
        made, expected = (trained_with_seed(m, image()) for m in (ours, stock))
        torch.testing.assert_close(made, expected, rtol=2e-3, atol=1e-5)
    assert ym.report(ours).rows[0].calls == 2


def test_of_several_results_it_is_known_which_autograd_keeps() -> None:
    ours = ym.checkpoint(Calls(measured), strict=False)
    ours(image()).sum().backward()
    (lowered,) = registry.runner_of(ours).lowered.values()
    call = lowered.recording.calls[0]
    assert call.effects.saves == {*call.made} == {("result", 1)}


class Deep(nn.Module):
    """Six convolutions with a batch norm and the function behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms):
            x = Swish.apply(norm(conv(x)))
        return x


def test_it_is_made_again_and_nothing_else_is_held_for_it() -> None:
    """Stock PyTorch holds arguments of convolution, norm and function."""
    torch.manual_seed(0)
    stock = Deep()
    peaks = []
    for keep in ("min", None):
        module = copy.deepcopy(stock)
        if keep is not None:
            ym.checkpoint(module, keep, strict=False)
        x = image(c=8, size=64)
        module(x).sum().backward()  # recorded
        module.zero_grad()
        peaks.append(peak_of(lambda m=module, x=x: m(x).sum().backward()))
    assert peaks[0] < 0.6 * peaks[1]


def test_apply_is_as_it_was_and_other_threads_do_not_notice() -> None:
    before = vars(Function)["apply"]
    seen: list[Any] = []

    def other_thread() -> None:
        x = torch.ones(1, 1, 1, 1, requires_grad=True)
        seen.append(type(Swish.apply(x).grad_fn).__name__)

    def spying(module: nn.Module, x: Tensor) -> Tensor:
        if vars(Function)["apply"] is not before and not seen:
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()
        return Swish.apply(x)

    stock = Calls(spying)
    assert_same_training(
        ym.checkpoint(copy.deepcopy(stock), strict=False), stock, image()
    )
    assert seen == ["SwishBackward"]
    assert vars(Function)["apply"] is before


def test_what_would_hold_the_copy_is_refused() -> None:
    """A replay would call the module that was recorded."""

    class Whole(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, module: nn.Module) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad * 2, None

    def in_a_closure(module: nn.Module, x: Tensor) -> Tensor:
        class Closed(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * module.scale.detach()

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Tensor:
                return grad * module.scale.detach()

        return Closed.apply(x)

    for function, why in (
        (lambda m, x: Whole.apply(x, m), "an argument of it is a Calls"),
        (in_a_closure, "defined within a function"),
    ):
        stock = Calls(function)
        ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
        assert_same_training(ours, stock, image())
        row = ym.report(ours).rows[0]
        assert row.state == "stock" and why in row.detail


ADDRESSES: list[tuple[int, int]] = []


class ByAddress(Function):
    """Runs a kernel that takes addresses, as of Triton or of an extension in C++."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        made = torch.empty_like(x)
        ADDRESSES.append((x.data_ptr(), made.data_ptr()))
        return made.copy_(x).mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Addressing(nn.Module):
    """Asks for the address of a value or of a parameter, or calls such a function."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.scale, self.kind = nn.Parameter(torch.ones(1)), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "function":
            return ByAddress.apply(x) * self.scale
        given = self.scale if self.kind == "parameter" else x
        ADDRESSES.append((given.data_ptr(), 1))
        return x * self.scale


@pytest.mark.parametrize("kind", ["function", "value", "parameter"])
def test_no_kernel_gets_the_address_of_a_fake(kind: str) -> None:
    """It would work at address 0, which on a GPU ends the process's use of it."""
    torch.manual_seed(1)
    first = nn.Sequential(Brick(3, 8), Brick(8, 8))
    stock = nn.Sequential(first, Addressing(kind), Brick(8, 4))
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    ADDRESSES.clear()
    assert_same_training(ours, stock, image())
    assert ADDRESSES and 0 not in {place for pair in ADDRESSES for place in pair}
    row, *parts = ym.report(ours).rows
    assert row.state == "stock" and "by the addresses of tensors" in row.detail
    assert "swapped" in [part.state for part in parts]
    with pytest.raises(ym.CannotLower, match="by the addresses of tensors"):
        ym.checkpoint(copy.deepcopy(stock))(image())


@pytest.mark.usefixtures("autocast_of_a_gpu")
def test_a_recurrent_layer_asks_for_addresses_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many call flatten_parameters() in their forward, which on a GPU compares them."""
    monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda x: True)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rows = Brick(3, 8), nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            self.rows.flatten_parameters()
            return self.first(x)

    module = Recurrent().requires_grad_(False)
    leaves, spec = tree_flatten(((image(),), {}))
    assert record(FakeCopy(module), leaves, spec, strict=True).parts
    assert "flatten_parameters" not in vars(module.rows)
