# SPDX-License-Identifier: MIT
"""Nodes that become stock calls again: what autograd keeps for them is known, though no
fake has shown it.

What is compared with what: the effects of the call with what PyTorch saves when it runs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from yolov9mem.torch.recording.ir import Node
from yolov9mem.torch.recording.to_stock import ACTIVATIONS, CALLS, stock_call

SIZE = (2, 4, 6, 6)
FIXED = {  # attributes by op
    "add": (),
    "affine": (2.0, 1.0, "gamma", "bias"),
    "prelu": ("slope",),
    "concat": (),
    "slice": (1, 2),
    "max_pool": ((2, 2), (2, 2), (0, 0), False),
    "avg_pool": ((2, 2), (2, 2), (0, 0), False, True),
    "upsample": ((2.0, 2.0), None, "nearest", False),
    "multiply": (),
    "mean": ("hw",),
    "maximum": ("c",),
}
PARAMS = ("gamma", "bias", "slope")
TWO = ("add", "concat", "multiply")
CASES = list(FIXED.items())
CASES += [("affine", (1, 0, "gamma", None)), ("affine", (2.0, 0.0, None, None))]
CASES += [("maximum", ("hw",))]
CASES += [("activation", (name, 0.1, -1.0, 1.0)) for name in ACTIVATIONS]
CASES += [("activation", ("leaky_relu", -0.1, 0.0, 0.0))]


def test_no_node_is_forgotten() -> None:
    assert {op for op, _ in CASES} == set(CALLS)


def _known(numbers: dict[str, Tensor], attribute: object) -> object:
    return numbers[attribute] if attribute in PARAMS else attribute


@pytest.mark.parametrize("op, attributes", CASES, ids=str)
def test_what_is_kept(op: str, attributes: tuple) -> None:
    operands = tuple(range(1 + (op in TWO)))
    given = [torch.randn(SIZE, requires_grad=True) for _ in operands]
    numbers = {name: torch.rand(4, requires_grad=True) for name in PARAMS}
    node = Node(op, operands, attributes, SIZE, torch.float32, "")
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda x: x):
        result = CALLS[op](*given, *(_known(numbers, x) for x in attributes))
    call = stock_call(0, node._replace(shape=tuple(result.shape)))
    places = {x.data_ptr(): ("argument", i) for i, x in enumerate(given)}
    places |= {x.data_ptr(): ("path", 0) for x in numbers.values()}
    places[result.data_ptr()] = ("result", 0)
    found = {places.get(x.data_ptr()) for x in saved} - {("path", 0)}
    inner = [x for x in saved if x.data_ptr() not in places]
    assert found - {None} == call.effects.saves
    assert sum(x.nbytes for x in inner) == call.effects.saved_bytes
