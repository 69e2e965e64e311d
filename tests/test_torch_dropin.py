# SPDX-License-Identifier: MIT
"""checkpoint() changes how forward runs and nothing else."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import weakref

import torch
from models_for_tests import (
    Brick,
    Elan,
    Net,
    assert_close,
    assert_same_training,
    backward,
    image,
    ran_in_core,
    replicate,
    trains_in_core,
)
from torch import nn

import yolov9mem.torch as ym
from yolov9mem.torch.running import registry


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
        assert all(
            value is attributes[name][key] for key, value in part.__dict__.items()
        )
    assert type(module) is Net
    assert not any(
        "yolov9mem" in text for text in (repr(module), str(pickle.dumps(module)))
    )


def test_copies_are_stock() -> None:
    module = ym.checkpoint(Net())
    backward(module(image()))
    for other in (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
    ):
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
    assert not any(reference() is None for reference, _ in registry._runners.values())


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


def times_five(forward):
    return lambda self, x: forward(self, x) * 5


def test_a_forward_that_is_set_afterwards_is_kept() -> None:
    class Own(Elan):
        pass

    module = ym.checkpoint(Own(3, 8, 4))
    assert trains_in_core(module)
    Own.forward = times_five(Elan.forward)
    mine = Own.__dict__["forward"]
    ym.release(module)
    assert Own.__dict__["forward"] is mine
    assert trains_in_core(ym.checkpoint(module))
    stock = copy.deepcopy(module)
    assert_close(module(image()), Elan.forward(stock, image()) * 5)
    ym.release(module)
    assert Own.__dict__["forward"] is mine
    assert "_replicate_for_data_parallel" not in Own.__dict__
    ym.checkpoint(module)
    del Own.forward
    ym.release(module)
    assert "forward" not in Own.__dict__


def test_subclasses_and_their_bases_do_not_mix() -> None:
    class Own(Elan):
        def forward(self, x):
            return super().forward(x) * 2

    base, own = ym.checkpoint(Elan(3, 8, 4)), ym.checkpoint(Own(3, 8, 4))
    stock = copy.deepcopy(own)
    assert trains_in_core(base)
    assert_same_training(own, stock, image())
    assert_close(own.eval()(image()), stock.eval()(image()))


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
    both(
        lambda m: setattr(
            m.down.conv,
            "weight",
            nn.Parameter(m.stem.conv.weight.detach().new_ones(16, 16, 1, 1)),
        )
    )
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
    assert_close(
        [p.grad for p in module.parameters()],
        [p.grad for p in stock.parameters()],
        1e-3,
    )
    assert module.stem.bn.running_mean is before
    assert_close(before, stock.stem.bn.running_mean)
    assert module.stem.bn.num_batches_tracked == 1
