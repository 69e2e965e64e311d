"""The autograd nodes: gradients, what is refused by name, dtypes, layouts and memory."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from models_for_tests import (
    Brick,
    Elan,
    Net,
    assert_close,
    assert_same_training,
    backward,
    leaves,
    ran_in_core,
)
from torch import Tensor, nn

import yolov9mem.torch as ym


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def image(n: int = 2, c: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(1))


def pair(make=Net, **how) -> tuple[nn.Module, nn.Module]:
    """Ours and stock, alike."""
    stock = make()
    return ym.checkpoint(copy.deepcopy(stock), **how), stock


def grads(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


# Once only


def test_a_second_backward_is_refused_by_name() -> None:
    module = ym.checkpoint(Brick(3, 4))
    loss = module(image()).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="yolov9mem: Brick: backward ran a second time"):
        loss.backward()
    module(image()).sum().backward()


def test_create_graph_is_refused_by_name() -> None:
    x = image().requires_grad_()
    module = ym.checkpoint(Brick(3, 4))
    with pytest.raises(RuntimeError, match="yolov9mem: Brick: create_graph=True"):
        torch.autograd.grad(module(x).sum(), x, create_graph=True)


def test_a_subset_of_gradients() -> None:
    ours, stock = pair(segments=3)
    for module in (ours, stock):
        module.wanted = torch.autograd.grad(
            sum(leaf.sum() for leaf in leaves(module(image()))),
            [module.stem.conv.weight, module.main[0][1].bias],
        )
    assert_close(ours.wanted, stock.wanted, 1e-3)
    loss = sum(leaf.sum() for leaf in leaves(ours(image())))
    torch.autograd.grad(loss, [ours.main[0][1].bias], retain_graph=True)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, [ours.stem.conv.weight])


# Which gradients


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_segments_change_nothing(segments: int) -> None:
    ours, stock = pair(segments=segments)
    assert_same_training(ours, stock, image())
    one = ym.checkpoint(copy.deepcopy(stock), segments=1)
    for module in (ours, one):
        module.load_state_dict(stock.state_dict())
        module.zero_grad()
        backward(module(image()))
    for name, grad in grads(one).items():
        assert torch.equal(grads(ours)[name], grad), name


@pytest.mark.parametrize("segments", [1, 3])
def test_unused_outputs_leave_their_parameters_without_gradient(segments: int) -> None:
    ours, stock = pair(segments=segments)
    for module in (ours, stock):
        backward(module(image()), only=slice(2, 3))  # the finer level of the main head
    assert set(grads(ours)) == set(grads(stock))
    assert "aux.0.weight" not in grads(ours)
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


def test_gradients_accumulate() -> None:
    ours, stock = pair()
    for seed in range(3):
        for module in (ours, stock):
            backward(module(image()), seed)
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("frozen", ["stem", "elan", "main", "stem elan down side"])
def test_frozen_layers(frozen: str, segments: int) -> None:
    ours, stock = pair(segments=segments)
    for module in (ours, stock):
        for name in frozen.split():
            getattr(module, name).requires_grad_(False)
    for _ in range(2):
        assert_same_training(ours, stock, image())
    row = ym.report(ours).rows[0]
    assert row.held_bytes <= row.stock_bytes + image().nbytes


def test_all_frozen_is_stock() -> None:
    module = ym.checkpoint(Net().requires_grad_(False))
    assert not any(leaf.requires_grad for leaf in leaves(module(image())))
    assert ran_in_core(module) == 0
    x = image().requires_grad_()
    backward(module(x))
    assert ran_in_core(module) == 1
    assert x.grad is not None


def test_outputs_of_frozen_layers_need_no_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Brick(3, 4), Brick(4, 4)

        def forward(self, x):
            y = self.a(x)
            return y, self.b(y)

    module = ym.checkpoint(Two())
    module.a.requires_grad_(False)
    fixed, flowing = module(image())
    assert not fixed.requires_grad
    assert flowing.requires_grad


def test_the_gradient_of_the_input() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4), segments=2)
    given, expected = image().requires_grad_(), image().requires_grad_()
    backward(ours(given))
    backward(stock(expected))
    assert_close(given.grad, expected.grad, 1e-3)


def test_an_input_that_is_returned_bypasses_the_node() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.brick = Brick(3, 4)

        def forward(self, x):
            return x, self.brick(x)

    x = image()
    given, made = ym.checkpoint(Both())(x)
    assert given is x
    assert made.requires_grad
    assert not given.requires_grad


def test_several_calls_before_backward() -> None:
    ours, stock = pair()
    for module in (ours, stock):
        outs = [module(image(n)) for n in (2, 3)]
        for out in outs:
            backward(out)
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


def test_a_changed_input_or_weight_raises_as_torch_does() -> None:
    module = ym.checkpoint(Brick(3, 4))
    x = image()
    loss = module(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = module(image()).sum()
    with torch.no_grad():
        module.conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_outputs_may_be_changed_in_place() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4))
    for module in (ours, stock):
        module(image()).mul_(2).relu_().sum().backward()
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


def test_hooks_on_parameters_and_outputs() -> None:
    ours, stock = pair()
    seen = {}
    for key, module in (("ours", ours), ("stock", stock)):
        names = []
        for name, p in module.named_parameters():
            p.register_post_accumulate_grad_hook(lambda p, n=name, names=names: names.append(n))
        out = module(image())
        leaves(out)[0].register_hook(lambda grad: grad * 2)
        backward(out)
        seen[key] = sorted(names)
    assert seen["ours"] == seen["stock"]
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


# Dtypes


def bf16_close(ours: object, stock: object) -> None:
    assert_close(ours, stock, 0.1)


def test_autocast_bf16() -> None:
    ours, stock = pair()
    made = {}
    for key, module in (("ours", ours), ("stock", stock)):
        with torch.autocast("cpu", torch.bfloat16):
            made[key] = module(image())
        backward(made[key])
    bf16_close(made["ours"], made["stock"])
    assert {leaf.dtype for leaf in leaves(made["ours"])} == {torch.bfloat16}
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}
    bf16_close(list(grads(ours).values()), list(grads(stock).values()))
    ours.load_state_dict(stock.state_dict())
    assert_same_training(ours, stock, image())  # and fp32 after it


def test_bfloat16_module() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4).bfloat16())
    assert_same_training(ours, stock, image().bfloat16(), tolerance=0.1)
    assert {p.grad.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.cv1.bn.running_mean.dtype == torch.bfloat16
    assert ran_in_core(ours) == 1


def test_half_module_is_computed_in_float() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4).half())
    made = ours(image().half())
    assert made.dtype == torch.float16
    made.backward(torch.ones_like(made))
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float16}
    assert_close(made, stock.float()(image().half().float()).half(), 0.02)


# Layouts


@pytest.mark.parametrize("channels_last", [False, True])
def test_layouts_are_converted_and_counted(channels_last: bool) -> None:
    ours, stock = pair(lambda: Elan(8, 8, 4))
    x = image(2, 8)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    made = ours(x)
    assert made.is_contiguous(memory_format=torch.channels_last)
    made.backward(torch.ones_like(made))
    row = ym.report(ours).rows[0]
    assert row.inputs_converted == (0 if channels_last else 2)
    assert row.gradients_converted == 0
    stock(x).sum().backward()
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)
    ours.zero_grad()
    ours(x).sum().backward()  # an expanded gradient
    assert ym.report(ours).rows[0].gradients_converted == 1


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (4, 5, 1, 1), (1, 6, 1, 9), (2, 6, 9, 1)])
def test_sizes_of_one(shape: tuple[int, ...]) -> None:
    c = shape[1]
    ours, stock = pair(lambda: nn.Sequential(nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6), nn.SiLU()))
    x = torch.randn(shape)
    assert_same_training(ours, stock, x)
    ours, stock = pair(lambda: nn.Sequential(nn.Conv2d(c, 1, 1), nn.SiLU()))
    assert_same_training(ours, stock, x.to(memory_format=torch.channels_last))


def test_channels_last_weights_get_gradients_of_their_layout() -> None:
    module = ym.checkpoint(Brick(8, 8, 3).to(memory_format=torch.channels_last))
    module(image(2, 8)).sum().backward()
    assert module.conv.weight.grad.stride() == module.conv.weight.stride()


def test_strided_inputs_and_gradients() -> None:
    ours, stock = pair(lambda: Brick(3, 4, 3))
    wide = torch.randn(2, 6, 16, 20)
    for module in (ours, stock):
        out = module(wide[:, ::2, 1:, ::2])
        out.backward(torch.ones(2, 4, 15, 20)[..., ::2])
    assert_close(list(grads(ours).values()), list(grads(stock).values()), 1e-3)


# Memory


def test_held_bytes_equal_the_plan_and_stocks_equal_autograds() -> None:
    """The report's figure for stock is what autograd really keeps, by storage."""
    module = Net()
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in module.state_dict().values()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(image(size=64))
    stock = sum(kept.values())
    del out
    backward(ym.checkpoint(module, keep="conv")(image(size=64)))
    row = ym.report(module).rows[0]
    assert abs(row.stock_bytes - stock) <= 0.01 * stock
    assert row.held_bytes < 0.6 * stock
    assert row.peak_bytes <= row.held_bytes + row.workspace_bytes


def test_saved_memory_is_freed_by_backward_and_by_dropping_the_graph() -> None:
    module = ym.checkpoint(Net())

    def arenas() -> int:
        gc.collect()
        found = [o for o in gc.get_objects() if type(o).__name__ == "Call"]
        return sum(call.saved is not None for call in found)

    out = module(image())
    assert arenas() == 1
    backward(out)
    assert arenas() == 0
    out = module(image())
    del out
    assert arenas() == 0


def test_the_workspace_is_let_go_in_eval_and_by_release() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    assert ym.report(module).kept_workspace_bytes > 0
    module.eval()(image())
    assert ym.report(module).kept_workspace_bytes == 0
    backward(module.train()(image()))
    ym.release(module)
    assert ym.report(module).kept_workspace_bytes == 0


def test_deterministic_fill_is_off_inside_and_restored() -> None:
    module = ym.checkpoint(Net())
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        backward(module(image()))
        first = {n: g.clone() for n, g in grads(module).items()}
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
    module.zero_grad()
    backward(module(image()))
    assert all(torch.equal(g, first[n]) for n, g in grads(module).items())


def test_out_of_memory_leaves_batch_norm_as_it_was(monkeypatch) -> None:
    from yolov9mem.torch import engine

    module = ym.checkpoint(Net())
    backward(module(image()))
    module.zero_grad()
    before = copy.deepcopy(module.state_dict())

    def fail(size: int) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "take_workspace", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            module(image())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    out = module(image())
    with monkeypatch.context() as patch:
        patch.setattr(engine, "take_workspace", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            backward(out)
    assert not grads(module)
    backward(module(image()))


def test_threads_share_plans() -> None:
    ours, stock = pair(lambda: Elan(3, 8, 4))
    for module in (ours, stock):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0
    backward(stock(image()))
    ours(image())
    found: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(5):
            out = ours(image())
            found.append(list(torch.autograd.grad(out.sum(), list(ours.parameters()))))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0]))
    assert ym.report(ours).rows[0].plans == 1


def test_no_growth_over_many_steps() -> None:
    module = ym.checkpoint(Elan(3, 4, 2))
    x = image(2, 3, 8)

    def step() -> None:
        module.zero_grad()
        module(x).sum().backward()

    for _ in range(5):
        step()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        step()
    gc.collect()
    assert len(gc.get_objects()) - before < 50
