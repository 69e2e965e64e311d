# SPDX-License-Identifier: MIT
"""The ready-made blocks: the field's names, arguments and keys."""

from __future__ import annotations

import copy
import pickle

import pytest
from models_for_tests import (
    assert_close,
    assert_same_training,
    image,
    ran_in_core,
    trains_in_core,
)
from torch import nn

import yolov9mem.torch as ym

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
    x = image(2, c).requires_grad_()  # as between layers
    assert_same_training(block, stock, x)
    assert ran_in_core(block) == 1
    assert ran_in_core(stock) == 0
    copied = pickle.loads(pickle.dumps(copy.deepcopy(block)))
    assert trains_in_core(copied, x)
    assert_close(block.eval()(image(2, c)), stock.eval()(image(2, c)))


def test_ready_made_keys_are_the_fields() -> None:
    keys = list(ym.RepNCSPELAN4(8, 8, 8, 4, 1).state_dict())
    assert keys[0] == "cv1.conv.weight"
    assert "cv2.0.m.0.cv1.conv2.bn.running_var" in keys
    assert "cv3.1.bn.num_batches_tracked" in keys
    assert [k for k in ym.ELAN1(8, 8, 8, 4).state_dict() if "weight" in k][
        -1
    ] == "cv4.bn.weight"
    assert "cv5.conv.weight" in ym.SPPELAN(8, 8, 4).state_dict()
    assert list(ym.CBLinear(8, [4, 8]).state_dict()) == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize("more", [{"d": 2}, {"bn": True}, {"deploy": True}])
def test_a_rep_conv_takes_what_has_no_effect(more) -> None:
    keys = list(ym.RepConvN(8, 12).state_dict())
    assert list(ym.RepConvN(8, 12, **more).state_dict()) == keys
    given = ym.RepConvN(8, 12, 3, 2, 1, 1, 1, True, False, False)
    assert given.conv1.conv.stride == (2, 2)


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
