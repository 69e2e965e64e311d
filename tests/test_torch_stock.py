# SPDX-License-Identifier: MIT
"""When the stock forward runs, and that the user is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from models_for_tests import (
    JIT,
    Brick,
    Elan,
    Net,
    assert_close,
    backward,
    image,
    leaves,
    ran_in_core,
    trains_in_core,
)
from torch import Tensor, fx, nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import entry


def test_eval_and_no_grad_are_stock() -> None:
    module = ym.checkpoint(Net())
    stock = copy.deepcopy(module)
    with torch.no_grad():
        assert all(map(torch.equal, leaves(module(image())), leaves(stock(image()))))
    module.eval(), stock.eval()
    assert all(map(torch.equal, leaves(module(image())), leaves(stock(image()))))
    assert ran_in_core(module) == 0
    assert trains_in_core(module.train())


@JIT
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_is_stock() -> None:
    module = ym.checkpoint(Elan(3, 8, 4))
    traced = torch.jit.trace(module, image(), check_trace=False)
    assert ran_in_core(module) == 0
    assert trains_in_core(module)
    assert_close(traced(image()), copy.deepcopy(module)(image()))


@JIT
def test_scripting_compiles_the_stock_source() -> None:
    module = ym.checkpoint(nn.Sequential(Brick(3, 4)))
    ym.checkpoint(module[0])
    scripted = torch.jit.script(module[0])
    assert_close(scripted.eval()(image()), module[0].eval()(image()))


def test_symbolic_tracing_is_stock() -> None:
    module = ym.checkpoint(nn.Sequential(Brick(3, 8, 3)))
    traced = fx.symbolic_trace(module)
    assert ran_in_core(module) == 0
    assert "torch.fx is tracing" in ym.report(module).rows[0].detail
    stock = fx.symbolic_trace(copy.deepcopy(module))
    assert str(traced.graph) == str(stock.graph)
    assert torch.equal(traced(image()), stock(image()))
    assert trains_in_core(module)


def test_proxies_without_a_tracer_are_stock() -> None:
    module = ym.checkpoint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()))
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
    assert isinstance(module(x), fx.Proxy)
    assert ran_in_core(module) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_is_prepared_for_quantization_as_stock() -> None:
    quantization = pytest.importorskip(
        "torch.ao.quantization", reason="PyTorch has no torch.ao any more"
    )
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    module = ym.checkpoint(nn.Sequential(Brick(3, 8, 3)))
    mapping = quantization.get_default_qat_qconfig_mapping("x86")
    made = [
        prepare_qat_fx(model, mapping, (image(),)).graph
        for model in (module, copy.deepcopy(module))
    ]
    assert str(made[0]) == str(made[1])
    assert ran_in_core(module) == 0


@JIT
def test_transforms_are_stock() -> None:
    module = ym.checkpoint(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()))
    params = {n: p.detach() for n, p in module.named_parameters()}

    def loss(params):
        return torch.func.functional_call(module, params, (image(),)).sum()

    torch.func.grad(loss)(params)
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(image(), image()))
    assert ran_in_core(module) == 0


def test_other_modes_are_stock_and_a_default_device_is_not() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = ym.checkpoint(Elan(3, 8, 4))
    with FlopCounterMode(display=False) as counter:
        module(image())
    assert counter.get_total_flops() > 0
    assert ran_in_core(module) == 0
    with torch.device("cpu"):
        assert trains_in_core(module)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiling_is_stock() -> None:
    module = ym.checkpoint(Elan(3, 8, 4))
    compiled = torch.compile(module, backend="eager")
    assert_close(compiled(image()), copy.deepcopy(module)(image()))
    assert ran_in_core(module) == 0


def test_subclassed_tensors_are_stock() -> None:
    class Marked(Tensor):
        pass

    module = ym.checkpoint(Elan(3, 8, 4))
    module(image().as_subclass(Marked))
    assert ran_in_core(module) == 0


def test_an_inner_hook_is_stock_and_said_once() -> None:
    module = ym.checkpoint(nn.Sequential(Elan(3, 8, 4), Elan(8, 8, 4)))
    seen = []
    hook = module[0].cv1.register_forward_hook(lambda *args: seen.append(1))
    with pytest.warns(ym.StockForwardWarning, match="0.cv1 has a hook"):
        backward(module(image()))
    backward(module(image()))
    assert len(seen) == 2
    assert ran_in_core(module) == 0
    hook.remove()
    assert trains_in_core(module)


def test_not_strict_swaps_what_an_inner_hook_leaves() -> None:
    module = ym.checkpoint(nn.Sequential(Elan(3, 8, 4), Elan(8, 8, 4)), strict=False)
    module[0].cv1.register_forward_hook(lambda *args: None)
    with pytest.warns(ym.StockForwardWarning, match="0.cv1 has a hook") as told:
        backward(module(image()))
    assert len(told) == 1  # the report tells of the other modules
    found = {row.path: row.state for row in ym.report(module).rows}
    assert found["1"] == "swapped"
    assert found[""] == "stock"


def test_hooks_of_the_module_itself_are_kept() -> None:
    module, seen = ym.checkpoint(Elan(3, 8, 4)), []
    module.register_forward_pre_hook(lambda *args: seen.append("pre"))
    module.register_forward_hook(lambda *args: seen.append("post"))
    module.register_full_backward_hook(lambda *args: seen.append("back"))
    assert trains_in_core(module, image().requires_grad_())
    assert seen == ["pre", "post", "back"]


def test_a_module_that_computes_nothing_is_stock_without_error() -> None:
    x = image()
    assert ym.checkpoint(nn.Identity())(x) is x
    twice = ym.checkpoint(nn.Flatten())
    assert twice(x.requires_grad_()).shape == (2, 768)


def test_layers_without_parameters_run_in_the_core() -> None:
    module = ym.checkpoint(nn.Sequential(nn.MaxPool2d(5, 1, 2), nn.SiLU()))
    assert trains_in_core(module, image().requires_grad_())


def test_a_module_that_is_recorded_every_time_is_told_of() -> None:
    class Scheduled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.temperature = Brick(3, 4), 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.temperature

    module = ym.checkpoint(Scheduled())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in range(1, entry.MOST_IN_A_ROW):  # as with images of many sizes
            module(image(size=size))
        module(image(size=1))
        for step in range(entry.MOST_IN_A_ROW - 1):
            module.temperature = 1.0 / (step + 2)
            module(image())
    module.temperature = 3.0
    with pytest.warns(ym.StockForwardWarning, match="30 forwards in a row") as told:
        module(image())
    assert told[0].filename == __file__
