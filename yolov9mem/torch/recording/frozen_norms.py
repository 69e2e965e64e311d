# SPDX-License-Identifier: MIT
"""Batch norms that a module works out by itself from four vectors, as FrozenBatchNorm2d of
torchvision, DETR and RT-DETR does:

    scale = weight * (running_var + eps).rsqrt()
    x * scale + (bias - running_mean * scale)

The product is written down only if it is read by something else than that sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .calls import FLOATS
from .effects import memory_of
from .expressions import Expressions
from .ir import NormCall, Ref
from .sharing import check_in_place

if TYPE_CHECKING:
    from .recorder import Recorder

PRODUCTS = ("mul", "multiply", "__mul__", "__rmul__")
SUMS = ("add", "__add__", "__radd__")
DIFFERENCES = ("sub", "subtract", "__sub__")


class Scale(NamedTuple):
    """gamma / sqrt(variance + eps), and the paths of what it is made of."""

    vector: Ref
    gamma: str
    variance: str
    eps: float
    memory: Any  # of the vector


def _scale(rec: Recorder, vector: Ref, memory: Any) -> Scale | None:
    made = Expressions(rec)
    for weight, factor in made.pair(vector, PRODUCTS):
        gamma = made.path(weight)
        root = made.operands(factor, ("rsqrt",), 1) or (None,)
        for running, eps in made.pair(root[0], SUMS):
            variance = made.path(running)
            is_number = isinstance(eps, (int, float)) and eps > 0
            if gamma and variance and is_number:
                of = made.vector(vector)
                return Scale(of, gamma, variance, float(eps), memory)
    return None


def _shift(rec: Recorder, vector: Any, scale: Scale) -> tuple[str, str] | None:
    """The paths of mean and beta in beta - mean * scale."""
    made = Expressions(rec)
    beta, moved = made.operands(vector, DIFFERENCES) or (None, None)
    for running, factor in made.pair(moved, PRODUCTS):
        mean, bias = made.path(running), made.path(beta)
        if mean and bias and made.vector(factor) == scale.vector:
            return mean, bias
    return None


def _are_vectors(rec: Recorder, call: NormCall, channels: int) -> bool:
    """Is each of that length, with statistics that never want a gradient, which a norm has
    not, and an offset of its own?"""
    paths = map(str, (call.mean, call.variance, call.gamma, call.beta))
    every = list(map(rec.fakes.tensor, paths))
    statistics = every[:2]
    learns = any(isinstance(x, nn.Parameter) or x.requires_grad for x in statistics)
    fit = all(x.shape == (channels,) and x.dtype in FLOATS for x in every)
    return fit and not learns and call.gamma != call.beta


def _per_channel(rec: Recorder, x: Tensor, vector: Tensor) -> Ref | None:
    """What ``vector`` is, if it has a number for each channel of ``x``."""
    channels = x.shape[1] if x.ndim == 4 else 0
    if tuple(vector.shape) not in ((1, channels, 1, 1), (channels, 1, 1)):
        return None
    return rec.ref.get(id(vector))


def frozen_norm_product(rec: Recorder, input: Tensor, other: Tensor) -> Tensor | None:
    """The product of a value and a scale, or None: it is none of a batch norm."""
    for x, vector in ((input, other), (other, input)):
        value = rec.value(x)
        ref = None if value is None else _per_channel(rec, x, vector)
        scale = None if ref is None else _scale(rec, ref, memory_of(vector))
        if value is None or scale is None:
            continue
        dtype = torch.promote_types(x.dtype, vector.dtype)
        made = rec.fakes.empty(rec.shape(value), dtype, x)
        rec.derived.add(made, value, torch.mul, ref)
        rec.derived.scales[id(made)] = scale
        return made
    return None


def frozen_norm_sum(
    rec: Recorder, input: Any, other: Any, in_place: bool = False
) -> Tensor | None:
    """The batch norm whose last sum this is, or None: it is none."""
    for product, vector in ((input, other), (other, input)):
        scale = rec.derived.scales.get(id(product))
        if (
            scale is None
            or product not in rec.derived
            or not isinstance(vector, Tensor)
        ):
            continue
        ref = _per_channel(rec, product, vector)
        paths = None if ref is None else _shift(rec, ref, scale)
        if paths is None or (in_place and product is not input):
            continue
        call = NormCall(
            path=rec.path,
            mean=paths[0],
            variance=scale.variance,
            gamma=scale.gamma,
            beta=paths[1],
            batch_statistics=False,
            eps=scale.eps,
            momentum=0.0,
            call=0,
            sharing=None,
            in_products=True,
        )
        if not _are_vectors(rec, call, product.shape[1]):
            continue
        if in_place:
            check_in_place(rec, product, "add_")
        return _norm(rec, call, product, vector, in_place)
    return None


def _norm(
    rec: Recorder, call: NormCall, product: Tensor, vector: Tensor, in_place: bool
) -> Tensor:
    x = rec.derived.origin(product)
    dtype = torch.promote_types(product.dtype, vector.dtype)
    attributes = (rec.norm_index(call),)
    value = rec.add_node("norm", (x,), attributes, rec.shape(x), dtype)
    if in_place:
        return rec.bind(product, value)
    return rec.bind(rec.fakes.empty(rec.shape(x), dtype, product), value)
