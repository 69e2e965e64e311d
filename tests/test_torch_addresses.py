# SPDX-License-Identifier: MIT
"""Addresses are kept from step to step, and none of a tensor that lies elsewhere now."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from emulated_gpu import emulated_gpu
from models_for_tests import (
    Brick,
    Net,
    assert_close,
    assert_same_training,
    backward,
    image,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import binding, planned


def trained_pair() -> tuple[nn.Module, nn.Module]:
    """Ours, whose addresses are known, and stock."""
    stock = Brick(8, 8)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_same_training(ours, stock, image(c=8))
    return ours, stock


def grads(module: nn.Module) -> list[Tensor]:
    return [param.grad for param in module.parameters()]


def spoiled(tensor: Tensor) -> Tensor:
    """A copy; what reads the tensor's memory from now on reads NaN."""
    made = tensor.detach().clone(memory_format=torch.preserve_format)
    tensor.detach().fill_(float("nan"))
    return made


def move(tensor: Tensor) -> None:
    """Elsewhere, and the old place is kept, with NaN in it."""
    tensor.old = tensor.data
    tensor.data = spoiled(tensor.data)


def move_params(module: nn.Module) -> None:
    for param in module.parameters():
        move(param)


def move_statistics(module: nn.Module) -> None:
    move(module.bn.running_mean)
    move(module.bn.running_var)


def replace_statistics(module: nn.Module) -> None:
    module.bn.running_var = spoiled(module.bn.running_var)


def transpose(module: nn.Module) -> None:
    weight = module.conv.weight
    before = weight.data_ptr()
    weight.data = weight.data.transpose(0, 1)
    assert weight.data_ptr() == before


def stretch(module: nn.Module) -> None:
    """Gammas in every second number, the first where it was."""
    weight = module.bn.weight
    wide = torch.randn(16)
    weight.data = wide[:8]
    backward(module(image(c=8)))
    weight.data = wide[::2]
    assert weight.data_ptr() == wide.data_ptr()


def channels_last(module: nn.Module) -> None:
    module.conv.weight.data = torch.randn(8, 8, 3, 3)
    module.conv.padding = (1, 1)
    module.zero_grad()
    backward(module(image(c=8)))
    module.to(memory_format=torch.channels_last)


def load(module: nn.Module, assign: bool) -> None:
    kept = {name: value + 0.5 for name, value in module.state_dict().items()}
    kept["bn.num_batches_tracked"] = torch.tensor(7)
    module.load_state_dict(kept, assign=assign)


def swap(module: nn.Module) -> None:
    weight = module.conv.weight
    torch.utils.swap_tensors(weight, nn.Parameter(spoiled(weight)))


@pytest.mark.parametrize(
    "change",
    [
        lambda module: None,
        move_params,
        move_statistics,
        replace_statistics,
        transpose,
        stretch,
        channels_last,
        swap,
        lambda module: load(module, assign=False),
        lambda module: load(module, assign=True),
        lambda module: module.double().float(),
    ],
)
def test_what_lies_elsewhere_is_found_there(change) -> None:
    ours, stock = trained_pair()
    for module in (ours, stock):
        torch.manual_seed(1)
        module.zero_grad()
        change(module)
    before = ran_in_core(ours)
    for _ in range(2):
        assert_same_training(ours, stock, image(c=8))
    assert ran_in_core(ours) == before + 2


@pytest.mark.parametrize("change", [move_params, transpose])
def test_weights_that_move_before_backward(change) -> None:
    """As in stock, backward reads them where they are then."""
    ours, stock = trained_pair()
    for module in (ours, stock):
        module.zero_grad()
        made = module(image(c=8))
        change(module)
        backward(made)
    assert_close(grads(ours), grads(stock), 1e-3)


def test_backward_reads_what_hooks_kept() -> None:
    """saved_tensors_hooks that keep copies, as those that offload do."""
    ours, stock = trained_pair()
    for module in (ours, stock):
        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda kept: kept):
            made = module(image(c=8).requires_grad_())
        for param in module.parameters():
            param.data.fill_(float("nan"))
        backward(made)
    assert_close(grads(ours), grads(stock), 1e-3)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["planar", "packed"]
)
def test_hooks_keep_the_image_of_a_gpu_with_graphs(monkeypatch, layout) -> None:
    """The caller fills its own with the next one meanwhile. There is room there for what
    backward finds again, but that image is not among it."""
    monkeypatch.setattr(planned, "KEPT_WORKSPACE", 1)
    ours, stock = trained_pair()
    for module, context in ((ours, emulated_gpu()), (stock, nullcontext())):
        module.zero_grad()
        x = image(c=8).contiguous(memory_format=layout)
        with context:
            with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda x: x):
                made = module(x)
            x.fill_(float("nan"))
            backward(made)
    assert ym.report(ours).rows[0].reasons == ()
    assert_close(grads(ours), grads(stock), 1e-3)


def test_addresses_are_made_once(monkeypatch) -> None:
    made = []

    def counted(tensor: Tensor) -> object:
        made.append(tensor)
        return address(tensor)

    address = binding.address
    monkeypatch.setattr(binding, "address", counted)
    module = ym.checkpoint(Net())
    backward(module(image()))
    known = len(made)
    assert known == len({id(tensor) for tensor in made}) > 0
    backward(module(image()))
    assert len(made) == known
    module.stem.bn.bias.data = torch.zeros(8)
    backward(module(image()))
    assert len(made) == known + len(list(module.parameters()))
