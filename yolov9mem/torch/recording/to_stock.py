# SPDX-License-Identifier: MIT
"""Nodes that no graph is worth making for become the stock calls that they were."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ir import NO_EFFECTS, CannotLower, Effects, Node, Recording, Ref, StockCall
from .refs import renumber_calls


class _LeakyReLU(torch.autograd.Function):
    """Keeps its result, which the next call mostly keeps as well, and not its argument: as
    stock PyTorch's in place, without overwriting what a recomputed call may read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        made = F.leaky_relu(x, slope)
        ctx.save_for_backward(made)
        ctx.slope = slope
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (made,) = ctx.saved_tensors
        of_result = torch.ops.aten.leaky_relu_backward(grad, made, ctx.slope, True)
        return of_result, None


def _leaky_relu(x: Tensor, slope: float, *_: float) -> Tensor:
    made: Tensor = F.leaky_relu(x, slope) if slope <= 0 else _LeakyReLU.apply(x, slope)
    return made


ACTIVATIONS: dict[str, Callable[..., Tensor]] = {  # of x, slope, low and high
    "silu": lambda x, *_: F.silu(x),
    "relu": lambda x, *_: F.relu(x),
    "leaky_relu": _leaky_relu,
    "hardtanh": lambda x, _, low, high: F.hardtanh(x, low, high),
    "hardswish": lambda x, *_: F.hardswish(x),
    "mish": lambda x, *_: F.mish(x),
    "sigmoid": lambda x, *_: torch.sigmoid(x),
    "hardsigmoid": lambda x, *_: F.hardsigmoid(x),
    "gelu": lambda x, *_: F.gelu(x),
    "gelu_tanh": lambda x, *_: F.gelu(x, approximate="tanh"),
}


def _activation(x: Tensor, kind: str, *settings: float) -> Tensor:
    return ACTIVATIONS[kind](x, *settings)


def _add(*terms: Tensor) -> Tensor:
    return torch.add(*terms) if len(terms) == 2 else torch.stack(terms).sum(0)


def _concat(*members: Tensor) -> Tensor:
    return torch.cat(members, 1)


def _slice(x: Tensor, first: int, count: int) -> Tensor:
    return x.narrow(1, first, count)


def _max_pool(x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Tensor:
    return F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)


def _upsample(x: Tensor, scale: Any, size: Any, mode: str, corners: bool) -> Tensor:
    given = {"size": size} if scale is None else {"scale_factor": scale}
    align = corners if mode == "bilinear" else None
    return F.interpolate(x, mode=mode, align_corners=align, **given)


def _affine(x: Tensor, scale: float, shift: float, *learnt: Tensor | None) -> Tensor:
    gamma, bias = (p if p is None else p.reshape(-1, 1, 1) for p in learnt)
    x = x + shift if shift else x
    x = x * scale if scale != 1 else x
    x = x if gamma is None else x * gamma
    return x if bias is None else x + bias


def _mean(x: Tensor, axes: str) -> Tensor:
    return x.mean(["nchw".index(axis) for axis in axes], keepdim=True)


def _maximum(x: Tensor, axes: str) -> Tensor:
    if axes == "hw":
        return F.adaptive_max_pool2d(x, 1)
    return x.max("nchw".index(axes), keepdim=True).values


CALLS: dict[str, Callable[..., Tensor]] = {  # take the operands, then the attributes
    "activation": _activation,
    "add": _add,
    "affine": _affine,
    "prelu": lambda x, slope: torch.prelu(x, slope.to(x.dtype)),  # as autocast does
    "concat": _concat,
    "slice": _slice,
    "max_pool": _max_pool,
    "avg_pool": F.avg_pool2d,
    "upsample": _upsample,
    "multiply": torch.mul,
    "mean": _mean,
    "maximum": _maximum,
}
NAMES = {  # as a user knows them, where a node has another
    "gelu_tanh": "gelu",
    "concat": "cat",
    "max_pool": "max_pool2d",
    "avg_pool": "avg_pool2d",
    "upsample": "interpolate",
    "multiply": "mul",
    "maximum": "max",
}


KEEP_RESULTS = ("relu", "sigmoid")  # for their backward, in place or not
PASSING_ON = ("add", "affine", "concat", "slice")  # their backward needs no operand


def _scales_by_a_parameter(node: Node) -> bool:
    return node.op == "affine" and node.attributes[2] is not None


def _passes_on(node: Node) -> bool:
    return node.op in PASSING_ON and not _scales_by_a_parameter(node)


def can_be_left(node: Node) -> bool:
    """Is there a stock call that does the same?"""
    if node.op == "activation":
        return node.attributes[0] in ACTIVATIONS
    return node.op in CALLS


def tails(nodes: list[Node]) -> list[int]:
    """Sigmoids that no convolution, batch norm or product follows, and what does follow;
    and last ReLUs, and last products with a parameter, that are made of convolutions
    without a batch norm between.

    Eager PyTorch keeps the result of both activations, which the caller has anyway, and a
    graph would keep what it is made of. Both keep the product's operand, but a graph that
    hands it out needs no copy of its own. In what follows there is nothing to save either.
    """
    leads_on = [False] * len(nodes)
    for number in reversed(range(len(nodes))):
        node = nodes[number]
        for value in node.operands:
            saves = node.op == "multiply" or not can_be_left(node)
            leads_on[value] |= leads_on[number] or saves
    found: set[int] = set()
    for number, node in enumerate(nodes):
        sigmoid = node.op == "activation" and node.attributes[0] == "sigmoid"
        if (sigmoid and not leads_on[number]) or not found.isdisjoint(node.operands):
            found.add(number)
    return sorted(found.union(_last_of_convolutions(nodes)))


def without_gradient(done: Recording) -> list[int]:
    """What is made of results of stock calls that carry no gradient, as of a mask that is
    drawn: autograd keeps none of it, and a graph would keep what it is made of."""
    carries: list[bool] = []  # by node
    for node in done.nodes:
        if node.op == "input":
            kind, key = node.attributes[0]
            carries.append(kind != "stock" or done.calls[key[0]].carries)
        else:
            learns = not can_be_left(node) or bool(node.params)
            carries.append(learns or any(carries[v] for v in node.operands))
    return [
        number
        for number, (node, carried) in enumerate(zip(done.nodes, carries))
        if not carried and node.op != "input"
    ]


def _last_of_convolutions(nodes: list[Node]) -> list[int]:
    """ReLUs and products that no node reads, and for which alone results of convolutions
    are kept: a batch norm keeps them as well."""
    read = {value for node in nodes for value in node.operands}
    bare: list[bool] = []  # by node: is it a sum or the like of such a result?
    for node in nodes:
        passes_on = _passes_on(node) and any(bare[v] for v in node.operands)
        bare.append(node.is_convolution or passes_on)
    return [
        number
        for number, node in enumerate(nodes)
        if (node.attributes[:1] == ("relu",) or _scales_by_a_parameter(node))
        and number not in read
        and bare[node.operands[0]]
    ]


def effects_of_replay(node: Node) -> Effects:
    """What autograd keeps of the stock call that does the same; indices are int64."""
    of_first = frozenset([("argument", 0)])
    if node.op == "activation":
        name, slope, *_ = node.attributes
        keeps_result = name in KEEP_RESULTS or (name == "leaky_relu" and slope > 0)
        return Effects(saves=frozenset([("result", 0)]) if keeps_result else of_first)
    if node.op == "multiply":
        return Effects(saves=of_first | {("argument", 1)})
    if node.op in ("max_pool", "maximum"):
        indices = 8 * math.prod(node.shape)
        is_pool = node.op == "max_pool" or node.attributes[0] == "hw"
        return Effects(saves=of_first if is_pool else frozenset(), saved_bytes=indices)
    if _scales_by_a_parameter(node) and node.attributes[:2] != (1, 0):
        return Effects(saved_bytes=node.nbytes)  # what numbers have made of it before
    if node.op in ("avg_pool", "prelu") or _scales_by_a_parameter(node):
        return Effects(saves=of_first)
    return NO_EFFECTS


def stock_call(number: int, node: Node) -> StockCall:
    """That does what the node does, of this number."""
    name = node.attributes[0] if node.op == "activation" else node.op
    if node.op == "affine":
        name = "mul" if node.attributes[0] != 1 or node.attributes[2] else "add"
    name = NAMES.get(name, name)

    def call(*given: Any) -> Tensor:
        return CALLS[node.op](*given).to(node.dtype)  # as an addition in place does

    own = node.params
    settings = (Ref("path", x) if x in own else x for x in node.attributes)
    args = (*(Ref("value", value) for value in node.operands), *settings)
    return StockCall(
        call,
        args,
        {},
        name,
        node.path,
        cause=(name, node.path),
        autocast=None,
        nodes_before=number,
        refs=tuple(arg for arg in args if isinstance(arg, Ref)),
        made=(("result", 0),),
        memory=(None,) if node.op == "slice" else (),  # of a view
        bytes=(node.nbytes,),
        effects=effects_of_replay(node),
    )


def leave_to_stock(
    done: Recording, numbers: list[int], reason: str = "", learns: bool = True
) -> None:
    """The nodes become stock calls, in the order of the module, and their values inputs,
    which are the results of these. With a reason the report tells of it. ``learns``: they
    may want gradients."""
    for number in numbers:
        node = done.nodes[number]
        call = stock_call(number, node)
        if not learns:
            call.effects = NO_EFFECTS
        place = sum(other.nodes_before <= number for other in done.calls)
        renumber_calls(
            done, {old: old + (old >= place) for old in range(len(done.calls))}
        )
        done.calls.insert(place, call)
        source = Ref("stock", (place, 0))
        done.nodes[number] = Node("input", (), (source,), node.shape, node.dtype, "")
        failure = CannotLower(call.name, call.path, reason)
        if reason:
            done.leave(failure)
