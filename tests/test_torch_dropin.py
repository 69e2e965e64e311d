"""checkpoint() changes how forward runs and nothing else."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import weakref

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
from yolov9mem.torch import patch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


JIT = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def image(n: int = 2, c: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(1))


def trains_in_core(module: nn.Module, *inputs: Tensor) -> bool:
    before = ran_in_core(module)
    backward(module(*(inputs or (image(),))))
    return ran_in_core(module) == before + 1


# What it leaves alone


def test_it_returns_the_same_object_and_leaves_it_as_it_was() -> None:
    module = Net()
    attributes = {n: dict(m.__dict__) for n, m in module.named_modules()}
    keys = list(module.state_dict())
    assert ym.checkpoint(module) is module
    assert trains_in_core(module)
    assert list(module.state_dict()) == keys
    for name, part in module.named_modules():
        assert part.__dict__.keys() == attributes[name].keys()
        assert all(value is attributes[name][key] for key, value in part.__dict__.items())
    assert type(module) is Net
    assert not any("yolov9mem" in text for text in (repr(module), str(pickle.dumps(module))))


def test_copies_are_stock() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        backward(other(image()))
        assert ym.report(other).rows == ()
    assert ran_in_core(module) == 1
    assert trains_in_core(module)


def test_a_pickle_opens_without_yolov9mem(tmp_path) -> None:
    model = ym.checkpoint(Net())
    backward(model(image()))
    file = tmp_path / "last.pt"
    torch.save({"model": copy.deepcopy(model).half(), "live": model}, file)
    code = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "yolov9mem":
                    raise ImportError("yolov9mem is not here")
        sys.meta_path.insert(0, Refuse())
        sys.path.insert(0, {str(sys.path[0])!r})
        for path in {[p for p in sys.path if p]!r}:
            sys.path.append(path)
        import torch
        ckpt = torch.load({str(file)!r}, weights_only=False)
        assert not any(name.startswith("yolov9mem") for name in sys.modules)
        for model in (ckpt["model"].float(), ckpt["live"]):
            out = model.train()(torch.zeros(2, 3, 16, 16))
            sum(leaf.sum() for head in out for leaf in head).backward()
        print("opened")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert "opened" in done.stdout, done.stderr


def test_the_module_can_be_collected() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
    assert not any(reference() is None for reference, _ in patch._runners.values())


def test_release_restores_the_class() -> None:
    class Own(Elan):
        def forward(self, x):
            return super().forward(x)

    forward, inherited = Own.__dict__["forward"], Elan.forward
    module, other = ym.checkpoint(Own(3, 8, 4)), ym.checkpoint(Own(3, 8, 4))
    assert trains_in_core(module)
    ym.release(module)
    assert not ym.report(module).rows
    backward(module(image()))
    assert trains_in_core(other)
    ym.uncheckpoint(other)
    assert Own.__dict__["forward"] is forward
    assert Elan.forward is inherited
    ym.release(ym.checkpoint(Elan(3, 8, 4)))
    assert "forward" in Elan.__dict__


def test_subclasses_and_their_bases_do_not_mix() -> None:
    class Own(Elan):
        def forward(self, x):
            return super().forward(x) * 2

    base, own = ym.checkpoint(Elan(3, 8, 4)), ym.checkpoint(Own(3, 8, 4))
    stock = copy.deepcopy(own)
    assert trains_in_core(base)
    assert_same_training(own, stock, image())
    assert_close(own.eval()(image()), stock.eval()(image()))


# When the stock forward runs


def test_eval_and_no_grad_are_stock() -> None:
    module = ym.checkpoint(Net())
    stock = copy.deepcopy(module)
    with torch.no_grad():
        assert all(map(torch.equal, leaves(module(image())), leaves(stock(image()))))
    module.eval(), stock.eval()
    assert all(map(torch.equal, leaves(module(image())), leaves(stock(image()))))
    assert ran_in_core(module) == 0
    assert trains_in_core(module.train())


def test_arguments_that_are_not_default_are_stock() -> None:
    module = ym.checkpoint(Net())
    backward(module(image(), augment=True))
    backward(module(image(), True))
    assert ran_in_core(module) == 0
    assert "augment=True is not its default" in ym.report(module).rows[0].detail
    assert trains_in_core(module, image(), False)


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
    with pytest.warns(ym.StockForwardWarning):
        backward(module(image()))
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


# Changes under the same root


def test_what_may_change_between_forwards() -> None:
    ours = ym.checkpoint(Net())
    stock = copy.deepcopy(ours)

    def both(change) -> None:
        for module in (ours, stock):
            change(module)
        ours.load_state_dict(stock.state_dict())
        before = ran_in_core(ours)
        assert_same_training(ours, stock, image())
        assert ran_in_core(ours) == before + 1

    both(lambda m: None)
    both(lambda m: m.half().float())
    both(lambda m: setattr(m.stem.bn, "eps", 0.1))
    both(lambda m: setattr(m.stem.bn, "momentum", None))
    both(lambda m: m.elan.cv1.bn.eval())
    both(lambda m: m.train())
    both(lambda m: setattr(m.stem, "act", nn.ReLU()))
    both(lambda m: setattr(m.down, "conv", nn.Conv2d(16, 16, 1, 2, bias=False)))
    both(lambda m: setattr(m.down.conv, "weight", nn.Parameter(m.stem.conv.weight.detach().new_ones(16, 16, 1, 1))))
    both(lambda m: setattr(m.elan.cv2[0], "forward", m.elan.cv2[0].b.forward))
    both(lambda m: m.requires_grad_(False).main.requires_grad_())
    both(lambda m: m.to(memory_format=torch.channels_last))
    both(nn.SyncBatchNorm.convert_sync_batchnorm)


def test_a_weight_of_another_shape_under_the_same_parameter() -> None:
    module = ym.checkpoint(nn.Sequential(Brick(3, 4), nn.Conv2d(4, 2, 1)))
    backward(module(image()))
    module[1].weight.data = torch.ones(2, 4, 3, 3)
    module[1].padding = (1, 1)
    module[1].weight.grad = None
    stock = copy.deepcopy(module)
    assert_same_training(module, stock, image())


def test_half_and_back_without_a_forward_between() -> None:
    module = ym.checkpoint(Elan(3, 8, 4))
    backward(module(image()))
    module.half()
    made = module(image().half())
    assert made.dtype == torch.float16
    module.float()
    assert trains_in_core(module)


def test_fuse_of_inner_blocks() -> None:
    module = ym.checkpoint(Elan(3, 8, 4))
    backward(module(image()))
    for part in module.modules():
        if isinstance(part, Brick):
            delattr(part, "bn")
            part.forward = part.forward_fuse
    stock = copy.deepcopy(module)
    assert_same_training(module, stock, image())


def test_sizes_and_batches_change() -> None:
    module = ym.checkpoint(Net())
    stock = copy.deepcopy(module)
    for n, size in ((2, 16), (4, 16), (1, 32), (3, 48), (2, 16)):
        assert_same_training(module, stock, image(n, 3, size))
    row = ym.report(module).rows[0]
    assert (row.calls, row.recordings, row.plans) == (5, 4, 4)


def test_eval_between_does_not_plan_again() -> None:
    module = ym.checkpoint(Net())
    for _ in range(3):
        backward(module.train()(image()))
        module.eval()(image())
    row = ym.report(module).rows[0]
    assert (row.calls, row.recordings, row.plans) == (3, 1, 1)


# DataParallel


def replicate(module: nn.Module) -> nn.Module:
    """What torch.nn.parallel.replicate does, on one CPU: parameters become attributes."""
    parts = list(module.modules())
    made = {part: part._replicate_for_data_parallel() for part in parts}
    for part in parts:
        for name, child in part._modules.items():
            made[part]._modules[name] = None if child is None else made[child]
        for name, param in part._parameters.items():
            if param is not None:
                setattr(made[part], name, param * 1)
            else:
                made[part]._parameters[name] = None
        made[part]._buffers = dict(part._buffers)
    return made[module]


def test_replicas_run_in_the_core_and_update_the_buffers() -> None:
    module = ym.checkpoint(Net())
    stock = copy.deepcopy(module)
    replica = replicate(module)
    assert list(replica.parameters()) == []
    before = module.stem.bn.running_mean
    out = replica(image())
    assert ran_in_core(module) == 1
    backward(out)
    backward(stock(image()))
    assert_close([p.grad for p in module.parameters()], [p.grad for p in stock.parameters()], 1e-3)
    assert module.stem.bn.running_mean is before
    assert_close(before, stock.stem.bn.running_mean)
    assert module.stem.bn.num_batches_tracked == 1


# Ready-made blocks

BLOCKS = {
    "Conv": (lambda: ym.Conv(8, 12, 3, 2), 8),
    "RepConvN": (lambda: ym.RepConvN(8, 12), 8),
    "RepNBottleneck": (lambda: ym.RepNBottleneck(8, 8), 8),
    "RepNCSP": (lambda: ym.RepNCSP(8, 8, 2), 8),
    "RepNCSPELAN4": (lambda: ym.RepNCSPELAN4(8, 12, 16, 8, 2), 8),
    "ELAN1": (lambda: ym.ELAN1(8, 12, 16, 8), 8),
    "SPPELAN": (lambda: ym.SPPELAN(8, 12, 4), 8),
    "AConv": (lambda: ym.AConv(8, 12), 8),
    "ADown": (lambda: ym.ADown(8, 12), 8),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_ready_made_blocks(name: str) -> None:
    make, c = BLOCKS[name]
    block = make()
    stock = ym.release(copy.deepcopy(block))
    assert_same_training(block, stock, image(2, c))
    assert ran_in_core(block) == 1
    assert ran_in_core(stock) == 0
    copied = pickle.loads(pickle.dumps(copy.deepcopy(block)))
    assert trains_in_core(copied, image(2, c))
    assert_close(block.eval()(image(2, c)), stock.eval()(image(2, c)))


def test_ready_made_keys_are_the_fields() -> None:
    keys = list(ym.RepNCSPELAN4(8, 8, 8, 4, 1).state_dict())
    assert keys[0] == "cv1.conv.weight"
    assert "cv2.0.m.0.cv1.conv2.bn.running_var" in keys
    assert "cv3.1.bn.num_batches_tracked" in keys
    assert [k for k in ym.ELAN1(8, 8, 8, 4).state_dict() if "weight" in k][-1] == "cv4.bn.weight"
    assert "cv5.conv.weight" in ym.SPPELAN(8, 8, 4).state_dict()
    assert list(ym.CBLinear(8, [4, 8]).state_dict()) == ["conv.weight", "conv.bias"]


def test_rep_conv_folds_into_one() -> None:
    block = ym.RepConvN(8, 12, g=2)
    for _ in range(3):
        block(image(2, 8))
    expected = block.eval()(image(2, 8))
    block.fuse_convs()
    block.forward = block.forward_fuse
    assert list(block.state_dict()) == ["conv.weight", "conv.bias"]
    assert_close(block(image(2, 8)), expected, 1e-5)


def test_ready_made_blocks_inside_a_checkpointed_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = ym.ELAN1(3, 8, 8, 4), ym.CBLinear(8, [4, 8])
            self.fuse = ym.CBFuse([1])
            self.c, self.silence = ym.ADown(8, 8), ym.Silence()

        def forward(self, x):
            y = self.a(self.silence(x))
            return self.c(self.fuse([self.b(y), y]))

    stock = Model()
    for part in stock.modules():
        ym.release(part)
    model = ym.checkpoint(Model())
    model.load_state_dict(stock.state_dict())
    assert_same_training(model, stock, image())
    rows = ym.report(model).rows
    assert [(row.path, row.calls) for row in rows] == [("", 1)]


# The call itself


@pytest.mark.parametrize("keep", ["everything", "", "GB", "-3GB", 0, -1, None, 1.5, True, "0MB"])
def test_bad_keep(keep) -> None:
    with pytest.raises(ValueError, match=r"keep: is .*must be 'all', 'conv', 'min' or a size"):
        ym.checkpoint(Brick(3, 4), keep)


@pytest.mark.parametrize("keep", ["6GB", "1.5 GiB", "300MB", 10**9])
def test_sizes(keep) -> None:
    module = ym.checkpoint(Net(), keep)
    assert trains_in_core(module)


def test_a_budget_is_kept_to_and_the_smallest_possible_is_named() -> None:
    x = image(2, 3, 64)
    peaks = {}
    for keep in ("all", "conv", "min"):
        module = ym.checkpoint(Net(), keep)
        backward(module(x))
        peaks[keep] = ym.report(module).rows[0].peak_bytes - x.nbytes
    budget = (peaks["min"] + peaks["all"]) // 2
    module = ym.checkpoint(Net(), budget)
    backward(module(x))
    assert ym.report(module).rows[0].peak_bytes - x.nbytes <= budget
    with pytest.raises(ValueError, match=str(peaks["min"])):
        ym.checkpoint(Net(), 1000)(x)


@JIT
def test_bad_modules() -> None:
    with pytest.raises(TypeError, match="module: is a function"):
        ym.checkpoint(lambda x: x)
    with pytest.raises(TypeError, match=r"is a DataParallel, checkpoint its \.module"):
        ym.checkpoint(nn.DataParallel(Brick(3, 4)))
    with pytest.raises(TypeError, match="ScriptModule"):
        ym.checkpoint(torch.jit.script(nn.SiLU()))
    with pytest.raises(ValueError, match="segments: is 0"):
        ym.checkpoint(Brick(3, 4), segments=0)


def test_the_report_prints() -> None:
    module = nn.Sequential(ym.checkpoint(Brick(3, 4)), nn.Sigmoid(), Brick(4, 4))
    text = str(ym.report(module))
    assert "waiting" in text
    backward(module(image()))
    text = str(ym.report(module))
    assert "0 Brick" in text
    assert "swapped" in text
    assert "keep=conv" in text
    assert "kept" in ym.report(module).plan("0")
    with pytest.raises(KeyError, match="has no plan"):
        ym.report(module).plan("2")
    assert "nothing is checkpointed" in str(ym.report(nn.SiLU()))


def test_checkpoint_again_changes_keep() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    conv = ym.report(module).rows[0].held_bytes
    backward(ym.checkpoint(module, "min")(image()))
    assert ym.report(module).rows[0].held_bytes < conv
