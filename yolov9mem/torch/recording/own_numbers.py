# SPDX-License-Identifier: MIT
"""Parameters that have one number for each channel, or one for all, in sums and products:
LayerScale (arXiv:2103.17239), the implicit knowledge of YOLOR and YOLOv7
(arXiv:2105.04206), the learnable affine blocks of PP-HGNetV2, gates of shortcuts; and as
the slopes of PReLU (arXiv:1502.01852).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .calls import FLOATS, handles
from .derived import Expanded
from .expressions import Expressions
from .sharing import check_in_place

if TYPE_CHECKING:
    from .recorder import Recorder


def times_parameter(
    rec: Recorder, input: Any, other: Any, name: str, in_place: bool
) -> Tensor | None:
    """The product of a value and such a parameter, or None: it is none."""
    return _affine(rec, input, other, name, in_place, is_product=True)


def plus_parameter(
    rec: Recorder, input: Any, other: Any, name: str, in_place: bool
) -> Tensor | None:
    """The sum of a value and such a parameter, or None: it is none."""
    return _affine(rec, input, other, name, in_place, is_product=False)


def expanded(rec: Recorder, func: Any, input: Tensor, *args: Any, **named: Any) -> Any:
    """Such a parameter, expanded as YOLOR does it. None: it is none."""
    path = _own_path(rec, input)
    if path is None or not _is_vector(rec, path):
        return None
    out = func(input, *args, **named)
    return rec.derived.add_expanded(out, Expanded(input, func, args, named))


@handles("prelu")
def _prelu(rec: Recorder, func: Any, input: Tensor, weight: Tensor) -> Any:
    path = rec.parameter_path(weight)
    out = func(input, weight)
    autocast = out.dtype is not input.dtype
    if path is None or not _is_vector(rec, path) or autocast:
        return None
    value = rec.import_value(input)
    if value is None:
        return None
    made = rec.add_node("prelu", (value,), (path,), rec.shape(value), out.dtype)
    return rec.bind(out, made)


def _affine(
    rec: Recorder, input: Any, other: Any, name: str, in_place: bool, is_product: bool
) -> Tensor | None:
    for x, numbers in ((input, other), (other, input)):
        value = rec.value(x)
        path = None if value is None else _path(rec, x, numbers)
        if value is None or path is None or (in_place and x is not input):
            continue
        if in_place:
            check_in_place(rec, x, name)
        shape, dtype = rec.shape(value), torch.result_type(x, numbers)
        dtype = x.dtype if in_place else dtype
        params = (path, None) if is_product else (None, path)
        made = rec.add_node("affine", (value,), (1.0, 0.0, *params), shape, dtype)
        out = x if in_place else rec.fakes.empty(shape, dtype, x)
        return rec.bind(out, made)
    return None


def _path(rec: Recorder, x: Tensor, numbers: Any) -> str | None:
    """Of the parameter that ``numbers`` is, if those are for the channels of ``x``."""
    if not isinstance(numbers, Tensor) or x.dtype not in FLOATS or x.ndim != 4:
        return None
    if torch.broadcast_shapes(x.shape, numbers.shape) != x.shape:
        return None
    numbers = rec.derived.unexpanded(numbers)
    sides = (1,) * (4 - numbers.ndim) + tuple(numbers.shape)
    if sides not in ((1, 1, 1, 1), (1, x.shape[1], 1, 1)):
        return None
    path = _own_path(rec, numbers)
    if path is None:
        return None
    count = rec.fakes.tensor(path).numel()
    return path if _is_vector(rec, path) and count == numbers.numel() else None


def _own_path(rec: Recorder, tensor: Tensor) -> str | None:
    """Of the module's tensor that it is, or a view of with other sides of 1."""
    ref = rec.ref.get(id(tensor))
    return rec.parameter_path(tensor) if ref is None else Expressions(rec).path(ref)


def _is_vector(rec: Recorder, path: str) -> bool:
    """Is it a parameter of numbers in a row, of whatever shape?"""
    own = rec.fakes.tensor(path)
    in_a_row = sum(side > 1 for side in own.shape) <= 1 and own.is_contiguous()
    return in_a_row and isinstance(own, nn.Parameter) and own.dtype in FLOATS
