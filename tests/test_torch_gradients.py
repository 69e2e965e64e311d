# SPDX-License-Identifier: MIT
"""Gradients of micro-batches: added to what is in .grad by the kernels, seen as in stock.

What is compared with what: .grad after several backwards, what hooks saw and what
torch.autograd.grad returned, with the same module in stock PyTorch.
"""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulated_gpu import emulated_gpu
from models_for_tests import (
    Brick,
    Net,
    assert_close,
    backward,
    image,
    leaves,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch import devices
from yolov9mem.torch.running import gradients, shared_call


def pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    """A module in the core, the same in stock PyTorch, one backward done."""
    stock = Net()
    ours = ym.checkpoint(copy.deepcopy(stock), **options)
    for module in (ours, stock):
        backward(module(image()))
    return ours, stock


def grads(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def places(module: nn.Module) -> list[int]:
    return [grad.data_ptr() for grad in grads(module)]


def in_one_buffer(module: nn.Module) -> list[Tensor]:
    """A buffer that all gradients are zeroed views of, from its second element on."""
    params = list(module.parameters())
    flat = torch.zeros(1 + sum(p.numel() for p in params))
    at = 1
    for p in params:
        p.grad = flat[at : at + p.numel()].view(p.shape)
        at += p.numel()
    return [flat]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sums each segment has added to."""
    seen: list[int] = []
    stock = shared_call.Call._take_sums

    def counted(call: shared_call.Call, *arguments: Any) -> None:
        stock(call, *arguments)
        seen.append(len(call._taken.grads))

    monkeypatch.setattr(shared_call.Call, "_take_sums", counted)
    return seen


@pytest.mark.parametrize("keep", ["conv", "min"])
@pytest.mark.parametrize("segments", [1, 4])
def test_micro_batches_are_summed_in_the_same_memory(
    segments: int, keep: str, given: list[int]
) -> None:
    ours, stock = pair(keep=keep, segments=segments)
    assert given == [0] * segments  # there was nothing to add to
    before = places(ours)
    for _ in range(2):
        for module in (ours, stock):
            backward(module(image()))
    assert places(ours) == before
    assert sum(given) == 2 * len(before)
    assert_close(grads(ours), grads(stock))
    assert ran_in_core(ours) == 3


def test_on_a_gpu_too(given: list[int]) -> None:
    with emulated_gpu():
        ours, stock = pair(segments=2)
        before = places(ours)
        for module in (ours, stock):
            backward(module(image()))
    assert places(ours) == before and sum(given) == len(before)
    assert_close(grads(ours), grads(stock))


def test_versions_count_up(given: list[int]) -> None:
    ours, _ = pair()
    versions = [grad._version for grad in grads(ours)]
    backward(ours(image()))
    assert all(g._version > v for g, v in zip(grads(ours), versions))


def test_autograd_grad_leaves_the_sums_alone() -> None:
    ours, stock = pair(segments=2)
    found = []
    for module in (ours, stock):
        params = list(module.parameters())
        before = [p.grad.clone() for p in params]
        out = sum(leaf.sum() for leaf in leaves(module(image())))
        found.append(torch.autograd.grad(out, params))
        assert all(map(torch.equal, before, grads(module)))
    assert_close(*map(list, found))


def test_backward_into_some_parameters_leaves_the_others() -> None:
    ours, stock = pair(segments=2)
    for module in (ours, stock):
        before = {n: p.grad.clone() for n, p in module.named_parameters()}
        out = sum(leaf.sum() for leaf in leaves(module(image())))
        out.backward(inputs=[module.stem.conv.weight])
        same = {n: torch.equal(p.grad, before[n]) for n, p in module.named_parameters()}
        assert [n for n, equal in same.items() if not equal] == ["stem.conv.weight"]
    assert_close(grads(ours), grads(stock))


def hook_of_the_tensor(param: Tensor, seen: list[Tensor]) -> None:
    param.register_hook(lambda grad: seen.append(grad.clone()))


def hook_that_changes(param: Tensor, seen: list[Tensor]) -> None:
    param.register_hook(lambda grad: grad * 3)


def hook_after(param: Tensor, seen: list[Tensor]) -> None:
    param.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))


def hook_of_the_node(param: Tensor, seen: list[Tensor]) -> None:
    node = param.expand_as(param).grad_fn.next_functions[0][0]
    node.register_hook(lambda *ignored: seen.append(param.grad.clone()))
    param.kept = node  # DDP and others keep it alive


def hook_of_several(param: Tensor, seen: list[Tensor]) -> None:
    torch.autograd.graph.register_multi_grad_hook(
        [param], lambda grads: seen.extend(grad.clone() for grad in grads)
    )


@pytest.mark.parametrize(
    "add_hook",
    [
        *(hook_of_the_tensor, hook_that_changes, hook_after),
        *(hook_of_the_node, hook_of_several),
    ],
)
def test_hooks_see_what_they_see_in_stock(
    add_hook: Callable[[Tensor, list[Tensor]], None],
) -> None:
    ours, stock = pair(segments=3)
    seen: list[list[Tensor]] = []
    for module in (ours, stock):
        seen.append([])
        add_hook(module.down.conv.weight, seen[-1])
        for _ in range(2):
            backward(module(image()))
    assert len(seen[0]) == len(seen[1])
    if seen[1]:
        assert_close(*seen)
    assert_close(grads(ours), grads(stock))


def test_a_gradient_that_is_held_elsewhere_goes_on_to_be_the_sum() -> None:
    """Autograd adds in place: whoever has .grad has the sum."""
    ours, stock = pair()
    held = [list(grads(module)) for module in (ours, stock)]
    for module in (ours, stock):
        backward(module(image()))
    assert_close(*held)
    assert all(a is b for a, b in zip(held[0], grads(ours)))


def test_gradients_in_one_flat_buffer_stay_there(given: list[int]) -> None:
    """Views of it, at any multiple of four bytes."""
    ours, stock = pair(segments=2)
    flats = []
    for module in (ours, stock):
        flats.append(in_one_buffer(module))
        for _ in range(2):
            backward(module(image()))
    assert_close(*flats)
    assert sum(given) == 2 * len(grads(ours))


@pytest.mark.filterwarnings("ignore:grad and param do not obey")  # stock's, of ours too
@pytest.mark.parametrize("what", ["expanded", "transposed", "wants a gradient"])
def test_odd_gradients(what: str) -> None:
    ours, stock = pair(segments=2)
    for module in (ours, stock):
        weight = module.elan.cv1.conv.weight
        if what == "expanded":
            weight.grad = torch.zeros(1).expand(weight.shape)
        elif what == "transposed":
            weight.grad = torch.ones(*weight.shape[1::-1], 1, 1).transpose(0, 1)
        else:
            weight.grad = torch.ones_like(weight).requires_grad_() * 2
    if what == "expanded":  # as in stock
        for module in (ours, stock):
            with pytest.raises(RuntimeError, match="more than one element"):
                backward(module(image()))
        return
    for module in (ours, stock):
        backward(module(image()))
    assert_close(grads(ours), grads(stock))


def test_some_have_a_gradient_and_some_none() -> None:
    ours, stock = pair(segments=2)
    for module in (ours, stock):
        module.elan.cv1.bn.bias.grad = module.side.weight.grad = None
        backward(module(image()))
    assert_close(grads(ours), grads(stock))


def test_parameters_of_16_bits() -> None:
    stock = Brick(8, 8, 3).bfloat16()
    ours = ym.checkpoint(copy.deepcopy(stock))
    x = torch.randn(2, 8, 8, 8).bfloat16()
    for _ in range(2):
        for module in (ours, stock):
            backward(module(x))
    assert_close(grads(ours), grads(stock), 2e-2)


def test_anomaly_mode_looks_at_each_gradient(given: list[int]) -> None:
    ours, _ = pair()
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        out = ours(image() * float("nan"))
        with pytest.raises(RuntimeError, match="nan"):
            backward(out)
    assert sum(given) == 0


def with_a_term_of_weights(module: nn.Module) -> None:
    loss = sum(leaf.square().sum() for leaf in leaves(module(image())))
    (loss + 5 * module.stem.conv.weight.square().sum()).backward()


def called_twice(module: nn.Module) -> None:
    first, second = module(image()), module(image().flip(3))
    backward([*leaves(first), *leaves(second)])


@pytest.mark.parametrize("step", [with_a_term_of_weights, called_twice])
@pytest.mark.parametrize("flat", [False, True])
def test_a_second_gradient_in_the_same_backward(
    step: Callable[[nn.Module], None], flat: bool, given: list[int]
) -> None:
    """Autograd adds it to ours in new memory; afterwards the sum is where it was."""
    ours, stock = pair(segments=2)
    buffers = [in_one_buffer(module) for module in (ours, stock)] if flat else []
    before = places(ours)
    for _ in range(2):
        for module in (ours, stock):
            step(module)
        assert places(ours) == before
    assert sum(given) > 0
    assert_close(grads(ours), grads(stock))
    if flat:
        assert_close(*buffers)


def test_a_gradient_that_moves_is_kept_until_it_is_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory is of the stream of forward, which does not wait for the copy."""
    kept: list[int] = []
    monkeypatch.setattr(devices, "keep_for_stream", lambda x: kept.append(x.data_ptr()))
    ours, _ = pair()
    called_twice(ours)
    kept.clear()
    called_twice(ours)
    here = places(ours)
    assert len(kept) == len(set(kept)) == len(here)
    assert set(kept).isdisjoint(here)


def test_memory_of_gradients_is_let_go_after_backward() -> None:
    """What remembers their places holds nothing when backward is over."""
    ours, _ = pair()
    called_twice(ours)
    held = [x for x in gc.get_objects() if type(x) is gradients._Places]
    assert held == []


def test_a_stream_of_its_own_goes_the_stock_way(
    given: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AccumulateGrad may be at work on another; afterwards nobody knows."""
    monkeypatch.setattr(gradients, "_streams", {})
    ours, stock = pair()
    for stream in (0, 7, 0):
        monkeypatch.setattr(devices, "stream", lambda device, here=stream: here)
        for module in (ours, stock):
            backward(module(image()))
    assert [bool(count) for count in given] == [False, True, False, False]
    assert_close(grads(ours), grads(stock))


def test_threads_that_train_the_same_module(given: list[int]) -> None:
    """Each adds its gradients; none takes a sum that another may be adding to."""
    ours, stock = pair(segments=2)
    count = 4
    given.clear()
    together = threading.Barrier(count)

    def work() -> None:
        outs = [ours(image()) for _ in range(3)]
        for out in outs:
            together.wait()
            backward(out)
            together.wait()  # their graphs are alive till all have ended

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(3 * count):
        backward(stock(image()))
    assert_close(grads(ours), grads(stock), 1e-3)
    assert given[-2:] == [0, 0]
    backward(ours(image()))
    assert sum(given[-2:]) == len(grads(ours))


def test_a_backward_that_fails_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, _ = pair()
    before, values = places(ours), [grad.clone() for grad in grads(ours)]
    out = ours(image())
    with monkeypatch.context() as patch:

        def fails(*arguments: Any) -> None:
            raise MemoryError("no memory left")

        patch.setattr(shared_call.BackwardState, "make_places", fails)
        with pytest.raises(MemoryError, match="no memory left"):
            backward(out)
    assert places(ours) == before
    assert all(map(torch.equal, values, grads(ours)))
    backward(ours(image()))
    assert_close([g / 2 for g in grads(ours)], values)
